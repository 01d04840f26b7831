"""Pareto fronts of several objectives, and the point of a front to take."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pareto_front(values: Sequence[Sequence[float]], maximise: Sequence[bool]) -> list[int]:
    """Indices of the points that no other point dominates, best in the first objective first.

    A point dominates another if it is at least as good in every objective and better in one; of
    equal points all stay.

    Args:
        values: [points, objectives], finite. maximise: per objective.
    """
    if not values:
        return []
    costs = _costs(values, maximise)
    # Ours: optuna offers a front of its own studies alone.
    no_worse = (costs[:, None] <= costs[None]).all(-1)
    better = (costs[:, None] < costs[None]).any(-1)
    dominated = (no_worse & better).any(0)
    front = np.flatnonzero(~dominated)
    return [int(i) for i in front[np.lexsort(costs[front].T[::-1])]]


def knee_point(values: Sequence[Sequence[float]], maximise: Sequence[bool]) -> int:
    """The index of the front's knee.

    Every objective is scaled to the front's range. The knee is the point farthest below the plane
    through the extremes (Das 1999). That point's scaled costs have the smallest sum. Ties go to the
    first objective's better.

    Raises: ValueError without points.
    """
    front = pareto_front(values, maximise)
    if not front:
        raise ValueError("a knee needs at least one point")
    costs = _costs(values, maximise)[front]
    low, spread = costs.min(0), np.ptp(costs, axis=0)
    scaled = np.where(spread > 0, (costs - low) / np.where(spread > 0, spread, 1.0), 0.0)
    return front[int(np.argmin(scaled.sum(1).round(12)))]


def _costs(values: Sequence[Sequence[float]], maximise: Sequence[bool]) -> NDArray[np.float64]:
    """The values with signs such that less is better."""
    return np.asarray(values, dtype=np.float64) * np.where(np.asarray(maximise), -1.0, 1.0)
