"""Percentile bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile bootstrap interval over n resampled units."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def mean_interval(values: Sequence[float], samples: int = 2000, seed: int = 0) -> Interval:
    """Interval of the mean; the units are resampled with replacement. ValueError for no value.

    For a paired comparison pass the per-unit differences.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("a bootstrap needs at least one value")
    rng = np.random.default_rng(seed)
    means = np.array([data[rng.integers(0, data.size, data.size)].mean() for _ in range(samples)])
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high), int(data.size))
