"""Percentile bootstrap intervals."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

# Values drawn at once: more do not fit a processor's cache and are slower.
_BATCH_VALUES = 1 << 16


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile bootstrap interval over n resampled units."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def mean_interval(
    values: Sequence[float],
    samples: int = 2000,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Interval of the mean over all values; what is resampled with replacement are the clusters.

    Values that share something (the pairs of one prompt) vary together. Resampled apart they
    would count as more evidence than they are, and the interval would be too short.

    For a paired comparison pass the differences.

    Args:
        values: [n]. clusters: [n], equal for values that belong together; by default each value
            is a cluster of its own.
    Raises: ValueError for no value, or lengths that differ.
    Source: the cluster bootstrap, Davison and Hinkley (1997), section 3.8.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("a bootstrap needs at least one value")
    members = cluster_members(range(data.size) if clusters is None else clusters)
    if sum(map(len, members)) != data.size:
        raise ValueError(
            f"{data.size} values in {sum(map(len, members))} places of clusters: both must be as "
            "many"
        )
    sums = np.array([data[rows].sum() for rows in members])
    sizes = np.array([len(rows) for rows in members], dtype=np.float64)
    return _quotient(float(data.mean()), sums, sizes, samples, seed)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    samples: int = 2000,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Interval of the sum of the numerators over that of the denominators, resampled as pairs.

    Args:
        numerators, denominators: [n], the denominators >= 0 with a sum > 0. clusters: as in
            `mean_interval`.
    Raises: ValueError for no value, lengths that differ, or denominators that are nowhere positive.
    Source: the ratio of two paired means, Davison and Hinkley (1997), example 2.12.
    """
    above, below = (np.asarray(v, dtype=np.float64) for v in (numerators, denominators))
    members = cluster_members(range(above.size) if clusters is None else clusters)
    if not above.size == below.size == sum(map(len, members)):
        raise ValueError(f"a ratio of {above.size} and {below.size} values: they must be as many")
    if not below.sum() > 0 or (below < 0).any():
        raise ValueError("a ratio needs denominators that are not negative, and one above 0")
    sums, sizes = (np.array([v[rows].sum() for rows in members]) for v in (above, below))
    return _quotient(float(above.sum() / below.sum()), sums, sizes, samples, seed)


def _quotient(
    value: float,
    sums: NDArray[np.float64],
    sizes: NDArray[np.float64],
    samples: int,
    seed: int,
) -> Interval:
    """Interval of sums over sizes, one of each per cluster; value is theirs as measured."""
    if len(sums) == 1 or np.isnan(value):  # nothing to resample, for which scipy has no answer
        return Interval(value, value, value, len(sums))
    from scipy.stats import bootstrap  # 0.4 s, which a page without intervals does not pay

    found = bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=samples,
        batch=max(1, _BATCH_VALUES // len(sums)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high), len(sums))


def cluster_members(clusters: Sequence[Hashable]) -> list[NDArray[np.intp]]:
    """The places of every cluster's members, clusters in order of their first member."""
    found: dict[Hashable, list[int]] = {}
    for place, name in enumerate(clusters):
        found.setdefault(name, []).append(place)
    return [np.array(places, dtype=np.intp) for places in found.values()]
