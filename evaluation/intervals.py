"""95 % intervals of means, rates and other statistics of values that come in clusters.

A cluster is what was drawn as one: a prompt with all its pairs and samples. `benchmarks/
interval_coverage.py` shows how often the intervals hold the truth.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
_TAIL = (1 + LEVEL) / 2
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval from n clusters; the limits are nan where n is too few."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def at_least(self, least: float) -> "Interval":
        """Cut to where the quantity can lie."""
        return replace(
            self,
            mean=max(self.mean, least),
            low=max(self.low, least) if self.low == self.low else self.low,
            high=max(self.high, least) if self.high == self.high else self.high,
        )


def mean_interval(values: ArrayLike, clusters: Sequence[Hashable] | None = None) -> Interval:
    """Interval of the mean over all values, which is right for skewed values too.

    For a paired comparison pass the differences. Of values that are all equal it is a point: take
    `rate_interval` where their range is known.

    The variance is the cluster-robust CR2 with Satterthwaite's degrees of freedom (of equal
    clusters: the variance of their means, clusters less one). Student's quantiles go through the
    inverse of Hall's cubic transformation, which takes the skewness out; without skewness it is
    Student's interval.

    Args:
        values: [n]. clusters: [n], equal for values that belong together; by default each value is
            a cluster of its own.
    Raises: ValueError for no value, or lengths that differ.
    Source: Bell and McCaffrey, Survey Methodology 28 (2002); Hall, JRSS B 54 (1992), 221-228.
    """
    mean = _ClusterMean.of(values, clusters)
    if mean.num_clusters == 1 or math.isnan(mean.value):
        return Interval(mean.value, math.nan, math.nan, mean.num_clusters)
    error, quantile = math.sqrt(mean.variance()), student(mean.degrees())
    spread = float(np.square(mean.parts).sum())
    skew = float((mean.parts**3).sum()) / spread**1.5 if spread > 0 else 0.0
    return Interval(
        mean.value,
        mean.value - error * _unskewed(quantile, skew),
        mean.value - error * _unskewed(-quantile, skew),
        mean.num_clusters,
    )


def rate_interval(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    span: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Interval of the mean of values whose range is known, such as wins, hits or pass@k.

    It stays in the range, and has a width where all values are equal. Wilson's score interval with
    the effective number of values, which is p (1 - p) / variance; of single zeros and ones it is
    Wilson's own. Where all lie at one end it is Clopper's and Pearson's for as many clusters. Where
    all are equal elsewhere, the variance is that with one more cluster at each end.

    Args:
        values, clusters: as of `mean_interval`. span: where the values can lie; (-1, 1) for
            differences of rates.
    Raises: ValueError for no value, lengths that differ, or a value outside of the range.
    Source: Wilson, JASA 22 (1927); Korn and Graubard, Survey Methodology 24 (1998); Agresti and
        Caffo, The American Statistician 54 (2000).
    """
    low, high = span
    data = np.asarray(values, dtype=np.float64)
    slack = 1e-6 * (high - low)  # of rounding
    if data.size and (data.min() < low - slack or data.max() > high + slack):
        raise ValueError(
            f"values reach from {data.min():g} to {data.max():g}: must be in [{low:g}, {high:g}]"
        )
    mean = _ClusterMean.of((data - low) / (high - low), clusters)
    count = mean.num_clusters
    if math.isnan(mean.value):
        return Interval(mean.value, math.nan, math.nan, count)
    variance = mean.variance() * (count - 1) / count if count > 1 else 0.0
    # Of single zeros and ones the variance is known with the mean, and none is estimated.
    is_known = count == 1 or mean.is_of_zeros_and_ones()
    quantile = student(math.inf if is_known else mean.degrees())
    found = score_interval(mean.value, variance, quantile, count)
    return Interval(
        low + (high - low) * found.mean,
        low + (high - low) * found.low,
        low + (high - low) * found.high,
        count,
    )


def t_interval(values: ArrayLike) -> Interval:
    """Student's interval of the mean of independent values, such as one of each seed.

    Raises: ValueError for no value.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("an interval needs at least one value")
    mean, count = float(data.mean()), data.size
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = student(count - 1) * float(data.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Student's interval of the sum of the numerators over that of the denominators.

    The limits are nan where one cluster has all of the denominators.

    Args:
        numerators, denominators: [n], paired; the denominators >= 0 with a sum > 0. clusters: as of
            `mean_interval`.
    Raises: ValueError for lengths that differ, or denominators that are nowhere positive.
    Source: the jackknife of a ratio, Quenouille, Biometrika 43 (1956).
    """
    above, below = (np.asarray(v, dtype=np.float64) for v in (numerators, denominators))
    numbers = np.arange(above.size) if clusters is None else cluster_numbers(clusters)
    if not above.size == below.size == numbers.size:
        raise ValueError(f"a ratio of {above.size} and {below.size} values: they must be as many")
    if not below.sum() > 0 or (below < 0).any():
        raise ValueError("a ratio needs denominators that are not negative, and one above 0")
    over, under = (v.sum() - np.bincount(numbers, v) for v in (above, below))
    estimate = float(above.sum() / below.sum())
    if under.min() <= 1e-12 * below.sum():
        return Interval(estimate, math.nan, math.nan, under.size)
    return jackknife_interval(estimate, over / under)


def jackknife_interval(
    estimate: float, without: ArrayLike, span: tuple[float, float] | None = None
) -> Interval:
    """Student's interval of a smooth statistic of clusters that is no mean.

    Args:
        without: [clusters], the statistic without one of them. span: (0, 1) for a share, whose
            interval is then a score interval.
    Source: Efron and Stein, Annals of Statistics 9 (1981).
    """
    left = np.asarray(without, dtype=np.float64)
    count = left.size
    if count < 2 or math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan, count)
    variance = float(np.square(left - left.mean()).sum()) * (count - 1) / count
    quantile = student(count - 1)
    if span is not None:
        return score_interval(estimate, variance, quantile, count)
    half = quantile * math.sqrt(variance)
    return Interval(estimate, estimate - half, estimate + half, count)


def score_interval(share: float, variance: float, quantile: float, count: int) -> Interval:
    """Wilson's interval of a share in [0, 1] whose estimate has this variance.

    Args:
        quantile: of the standardised estimate. count: clusters, which decide where the variance
            says nothing.
    """
    share = min(max(share, 0.0), 1.0)
    if share < 1e-12 or share > 1 - 1e-12:
        reach = 1 - (1 - _TAIL) ** (1 / count)  # of Clopper and Pearson
        low, high = (0.0, reach) if share < 0.5 else (1 - reach, 1.0)
        return Interval(share, low, high, count)
    if variance < 1e-18:
        more = count + 2
        middle = (count * share + 1) / more
        squares = count * (share - middle) ** 2 + middle**2 + (1 - middle) ** 2
        variance, quantile = squares / (more * (more - 1)), student(more - 1)
    effective = share * (1 - share) / variance
    square = quantile**2 / effective
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), count)


def mean_of(value: dict[str, float] | float) -> float:
    """Of an interval's record, or of a number as evaluations had it before there was one."""
    return float(value["mean"] if isinstance(value, dict) else value)


def cluster_members(clusters: Sequence[Hashable]) -> list[NDArray[np.intp]]:
    """The places of every cluster's members, clusters in order of their first member."""
    found: dict[Hashable, list[int]] = {}
    for place, name in enumerate(clusters):
        found.setdefault(name, []).append(place)
    return [np.array(places, dtype=np.intp) for places in found.values()]


def cluster_numbers(clusters: Sequence[Hashable]) -> NDArray[np.intp]:
    """Every value's cluster as a number, clusters in order of their first member."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in clusters], dtype=np.intp)


@dataclass(frozen=True)
class _ClusterMean:
    """The mean over all values, as a sum of one part of each cluster.

    Attributes:
        parts: [clusters], by how much a cluster moves the mean; their sum is 0. shares: [clusters],
            of all values.
    """

    value: float
    parts: Floats
    shares: Floats

    @classmethod
    def of(cls, values: ArrayLike, clusters: Sequence[Hashable] | None) -> "_ClusterMean":
        data = np.asarray(values, dtype=np.float64)
        if data.size == 0:
            raise ValueError("an interval needs at least one value")
        numbers = np.arange(data.size) if clusters is None else cluster_numbers(clusters)
        if numbers.size != data.size:
            raise ValueError(
                f"{data.size} values in {numbers.size} places of clusters: both must be as many"
            )
        mean = float(data.mean())
        sizes = np.bincount(numbers)
        parts = np.bincount(numbers, data - mean) / data.size
        # What rounding leaves of equal values is no spread.
        parts[np.abs(parts) < 1e-15 * max(1.0, float(np.abs(data).max()))] = 0.0
        return cls(mean, parts, sizes / data.size)

    @property
    def num_clusters(self) -> int:
        return self.parts.size

    def variance(self) -> float:
        """CR2: unbiased where the values are independent. nan of one cluster."""
        if self.num_clusters == 1:
            return math.nan
        return float((np.square(self.parts) / (1 - self.shares)).sum())

    def is_of_zeros_and_ones(self) -> bool:
        """Whether clusters are of equal size, and each has one value alone, 0 or 1."""
        levels = self.value + self.parts / self.shares
        ends = np.minimum(np.abs(levels), np.abs(levels - 1))
        return bool(np.ptp(self.shares) < 1e-12 and ends.max() < 1e-9)

    def degrees(self) -> float:
        """Of freedom of the variance; one less than clusters of equal size."""
        weights = np.square(self.shares) / (1 - self.shares)
        others = float(weights.sum() ** 2 - np.square(weights).sum())
        return 1 / (float(np.square(self.shares).sum()) + others)


def student(degrees: float) -> float:
    """The quantile of a two-sided 95 % interval; the normal one for infinite degrees of freedom."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(_TAIL) if math.isinf(degrees) else stdtrit(degrees, _TAIL))


def _unskewed(quantile: float, skew: float) -> float:
    """Where the studentised mean has this quantile, given the skewness of the mean.

    It solves t + skew t^2 / 3 + skew^2 t^3 / 27 + skew / 6 = quantile.
    """
    if abs(skew) < 1e-6:
        return quantile
    return 3 / skew * (float(np.cbrt(1 + skew * (quantile - skew / 6))) - 1)
