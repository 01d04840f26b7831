"""Pareto fronts against the definition, written out; knees against hand-made fronts."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from evaluation.frontier import knee_point, pareto_front, reward_at, reward_at_interval

VALUES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12
)


def dominates(a: tuple[float, ...], b: tuple[float, ...], maximise: tuple[bool, ...]) -> bool:
    better = [(x > y if up else x < y) for x, y, up in zip(a, b, maximise, strict=True)]
    worse = [(x < y if up else x > y) for x, y, up in zip(a, b, maximise, strict=True)]
    return any(better) and not any(worse)


@given(VALUES, st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_front_is_what_nothing_dominates(
    values: list[tuple[int, ...]], maximise: tuple[bool, ...]
) -> None:
    front = pareto_front(values, maximise)
    assert sorted(front) == [
        i for i, a in enumerate(values) if not any(dominates(b, a, maximise) for b in values)
    ]
    first = [values[i][0] for i in front]
    assert first == sorted(first, reverse=maximise[0]), "best in the first objective first"
    assert knee_point(values, maximise) in front


def test_knee() -> None:
    # Reward up, KL down. From (0, 0) reward rises steeply to (0.8, 2), then hardly: the knee is
    # where it turns.
    values = [(0.0, 0.0), (0.4, 1.2), (0.8, 2.0), (0.9, 6.0), (1.0, 10.0), (0.5, 9.0)]
    assert knee_point(values, (True, False)) == 2
    # Units do not matter.
    assert knee_point([(a * 1000, b / 50) for a, b in values], (True, False)) == 2
    assert knee_point([(1.0, 1.0)], (True, False)) == 0
    assert knee_point([(0.0, 1.0), (1.0, 2.0)], (True, False)) == 1, (
        "a straight front: the better first objective"
    )
    with pytest.raises(ValueError, match="at least one point"):
        knee_point([], (True, False))


def test_reward_at_a_distance_lies_between_the_front_s_points() -> None:
    """(0, 0), (1, 2), (3, 3): 2.5 at 2 nats. (2, 1) is dominated and bends no line; beyond 3 nats,
    and before the first point, nothing was reached.
    """
    points = [(3.0, 3.0), (0.0, 0.0), (2.0, 1.0), (1.0, 2.0)]
    assert reward_at(points, 2.0) == 2.5
    assert (reward_at(points, 0.0), reward_at(points, 3.0)) == (0.0, 3.0)
    assert reward_at(points, 3.1) is None and reward_at(points[:1], 2.0) is None
    assert reward_at([], 1.0) is None


def test_reward_at_a_distance_varies_as_the_delta_method_says() -> None:
    """Of two strengths the reward is a + (b - a) (2 - k) / (l - k) of four means: its variance is
    that of their influences over the prompts.
    """
    rng = np.random.default_rng(0)
    k, low = rng.gamma(4, 0.25, 300), rng.normal(0.2, 0.5, 300)
    far, high = 3 * rng.gamma(4, 0.25, 300), low + rng.normal(0.3, 0.5, 300)
    found = reward_at_interval([(k, low), (far, high)], 2.0)
    share = (2 - k.mean()) / (far.mean() - k.mean())
    gain, wide = high.mean() - low.mean(), far.mean() - k.mean()
    influence = (1 - share) * (low - low.mean()) + share * (high - high.mean())
    influence -= gain / wide * ((1 - share) * (k - k.mean()) + share * (far - far.mean()))
    half = stats.t.ppf(0.975, 299) * influence.std(ddof=1) / np.sqrt(300)
    assert found is not None and found.n == 300
    assert found.mean == pytest.approx(low.mean() + share * gain)
    assert (found.high - found.mean, found.mean - found.low) == pytest.approx(
        (half, half), rel=0.02
    )
    assert reward_at_interval([(k, low), (far, high)], 9.0) is None
