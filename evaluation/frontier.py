"""Pareto fronts of several objectives, and the point of a front to take."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import Interval, jackknife_interval


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


def reward_at(points: Sequence[tuple[float, float]], distance: float) -> float | None:
    """The reward of a front at a distance from the reference, on the line between its points.

    Args:
        points: (KL, reward) of one method at several strengths. Those that another dominates are
            left out.
    Returns: None where the front does not reach so far, or begins farther away.
    """
    front = sorted(points[i] for i in pareto_front(points, (False, True)))
    if not front or not front[0][0] <= distance <= front[-1][0]:
        return None
    return float(np.interp(distance, [kl for kl, _ in front], [reward for _, reward in front]))


def reward_at_interval(
    points: Sequence[tuple[Sequence[float], Sequence[float]]], distance: float
) -> Interval | None:
    """`reward_at` of one run per strength, with its interval over prompts.

    It says nothing about another seed: of several, take `t_interval` of `reward_at` of each.

    Args:
        points: (KL, reward) of every prompt, the same prompts in the same order for all points.
    Returns: None where the front does not reach so far, all prompts taken or any left out.
    """
    data = np.asarray(points, dtype=np.float64)  # [points, 2, prompts]
    count = data.shape[2]
    whole = reward_at([(float(kl), float(r)) for kl, r in data.mean(2)], distance)
    left = (data.sum(2, keepdims=True) - data) / max(1, count - 1)
    without = [
        reward_at([(float(kl), float(r)) for kl, r in left[:, :, i]], distance)
        for i in range(count)
    ]
    known = [value for value in without if value is not None]
    if whole is None or len(known) < count:
        return None
    return jackknife_interval(whole, known)
