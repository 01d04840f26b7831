"""Pareto fronts against the definition, written out; knees against hand-made fronts."""

import pytest
from hypothesis import given, strategies as st

from evaluation.frontier import knee_point, pareto_front

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
