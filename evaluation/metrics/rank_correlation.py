"""Spearman's rank correlation of two numbers of every token. Range: [-1, 1]; 0 is no relation."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from evaluation.intervals import Interval, cluster_numbers, student


def rank_correlation_interval(
    first: Any, second: Any, clusters: Sequence[Hashable], samples: int, seed: int
) -> Interval:
    """The correlation over all tokens with its interval over clusters.

    The standard error is that of a bootstrap, which draws clusters with replacement, on Fisher's
    scale. Student's quantile counts clusters.

    Args:
        first, second: [tokens], neither of them constant. clusters: of the tokens, equal for those
            of one prompt. samples: draws of the bootstrap.
    """
    numbers = cluster_numbers(clusters)
    count = int(numbers.max()) + 1
    if np.isnan(first).any() or np.isnan(second).any():
        return Interval(math.nan, math.nan, math.nan, count)
    one, other = (np.unique(np.asarray(x, dtype=np.float64), return_inverse=True)[1] for x in
                  (first, second))  # fmt: skip
    whole = _correlation(one, other, np.ones(numbers.size))
    if count < 2 or math.isnan(whole):
        return Interval(whole, math.nan, math.nan, count)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(samples):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        draws.append(_correlation(one, other, times[numbers].astype(np.float64)))
    known = np.array([draw for draw in draws if not math.isnan(draw)])
    if known.size < 2:
        return Interval(whole, math.nan, math.nan, count)
    half = student(count - 1) * float(_fisher(known).std(ddof=1)) * math.sqrt(count / (count - 1))
    middle = float(_fisher(whole))
    return Interval(whole, math.tanh(middle - half), math.tanh(middle + half), count)


def _correlation(one: Any, other: Any, times: Any) -> float:
    """Pearson's of the mid-ranks, each token counted so many times.

    Args:
        one, other: [tokens], place among the sorted distinct values. times: [tokens].
    """
    total = times.sum()
    a, b = (_ranks(values, times) - total / 2 for values in (one, other))
    scale = math.sqrt(float((times * a * a).sum()) * float((times * b * b).sum()))
    return float((times * a * b).sum()) / scale if scale > 0 else math.nan


def _ranks(values: Any, times: Any) -> Any:
    counts = np.bincount(values, times)
    return (counts.cumsum() - counts / 2)[values]


def _fisher(value: Any) -> Any:
    return np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
