"""How well token weights rank labelled key tokens above the others.

Range: [0, 1]; chance 0.5. Higher is better.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from evaluation.intervals import Interval, cluster_numbers, score_interval, student


def auc(scores: Any, labels: Any) -> float:
    """Area under the ROC curve, ties counting half.

    It is the probability that a random key token outscores a random other one. Returns nan if
    either class is empty or a score is nan. ValueError if the lengths differ.
    """
    from scipy.stats import rankdata

    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if values.shape != positive.shape:
        raise ValueError(f"scores have shape {values.shape}, labels {positive.shape}")
    num_positive = int(positive.sum())
    num_negative = positive.size - num_positive
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    # Mann and Whitney's U, from the ranks that `auc_interval` needs as well.
    rank_sum = rankdata(values)[positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def auc_interval(scores: Any, labels: Any, clusters: Sequence[Hashable]) -> Interval:
    """`auc` over all tokens with its interval over clusters.

    The variance is that of the clusters' parts in the estimate, DeLong's for tokens that come in
    clusters. The limits are nan where `auc` is, or where one cluster has all there is.

    Args:
        clusters: of the tokens, equal for those of one prompt.
    Source: Obuchowski, Biometrics 53 (1997), 567-578.
    """
    from scipy.stats import rankdata

    area = auc(scores, labels)
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    numbers = cluster_numbers(clusters)
    count = int(numbers.max()) + 1 if numbers.size else 0
    if math.isnan(area) or count < 2:
        return Interval(area, math.nan, math.nan, count)
    # Of a key token the share of others that it outscores; of another that of key tokens above it.
    ranks, among = rankdata(values), np.empty(values.size)
    for side in (positive, ~positive):
        among[side] = rankdata(values[side])
    total = np.where(positive, positive.sum(), (~positive).sum())
    placed = (ranks - among) / (values.size - total)
    parts = (np.where(positive, placed, 1 - placed) - area) / total
    by_cluster = np.bincount(numbers, parts)
    sides = [len(set(numbers[side].tolist())) for side in (positive, ~positive)]
    variance = float(np.square(by_cluster).sum()) * count / (count - 1)
    found = score_interval(area, variance, student(count - 1), min(sides))
    return Interval(area, found.low, found.high, count)


class TokenAUC(evaluate.Metric):
    """compute(predictions=weights, references=labels) -> {"auc"}."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("float64"), "references": datasets.Value("int32")}
        )
        return evaluate.MetricInfo(description=__doc__ or "", citation="", features=features)

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, Any]:
        return {"auc": auc(predictions, references)}
