"""Diversity of texts: distinct n-grams over all n-grams. Range: [0, 1]. Higher is more varied."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from evaluation.intervals import Interval, cluster_numbers, jackknife_interval


def distinct_n(texts: list[str], n: int = 2) -> float:
    """Share of distinct word n-grams among all word n-grams of the texts; 0 if there is none.

    It falls with the amount of text: compare samples of like number and length only. Source: Li et
    al., arXiv:1510.03055.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def distinct_n_interval(texts: Sequence[str], clusters: Sequence[Hashable], n: int = 2) -> Interval:
    """`distinct_n` with its interval over clusters, for as many of them as there are.

    Args:
        clusters: of the texts, equal for those of one prompt.
    """
    numbers = cluster_numbers(clusters)
    count = int(numbers.max()) + 1 if numbers.size else 0
    seen: dict[tuple[str, ...], int] = {}  # n-gram -> its only cluster, or -1
    totals = np.zeros(count)
    for text, number in zip(texts, numbers, strict=True):
        for gram in _grams(text, n):
            totals[number] += 1
            if seen.setdefault(gram, int(number)) != number:
                seen[gram] = -1
    own = Counter(seen.values())
    left = totals.sum() - totals
    distinct = len(seen) - np.array([own[i] for i in range(count)], dtype=np.float64)
    without = np.divide(distinct, left, out=np.zeros(count), where=left > 0)
    return jackknife_interval(distinct_n(list(texts), n), without, (0.0, 1.0))


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n={n}: must be >= 1")
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


class DistinctN(evaluate.Metric):
    """compute(predictions=texts, n=2) -> {"distinct_n"}."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], n: int = 2) -> dict[str, Any]:
        return {"distinct_n": distinct_n(predictions, n)}
