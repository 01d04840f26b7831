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
    sizes = np.array([len(rows) for rows in members])
    mean = float(data.mean())
    if len(members) == 1 or np.isnan(mean):  # nothing to resample, for which scipy has no answer
        return Interval(mean, mean, mean, len(members))
    from scipy.stats import bootstrap  # 0.4 s, which a page without intervals does not pay

    found = bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=samples,
        batch=max(1, _BATCH_VALUES // len(members)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), len(members))


def cluster_members(clusters: Sequence[Hashable]) -> list[NDArray[np.intp]]:
    """The places of every cluster's members, clusters in order of their first member."""
    found: dict[Hashable, list[int]] = {}
    for place, name in enumerate(clusters):
        found.setdefault(name, []).append(place)
    return [np.array(places, dtype=np.intp) for places in found.values()]
