"""Methods at equal distances: interpolation by hand, intervals against a plain loop."""

import random
from statistics import fmean

import numpy as np
import pytest

from evaluation.equal_distance import Measured, compare_at, own_front, round_levels


def trials(*points: tuple[float, float]) -> list[Measured]:
    return [Measured(distance, gain) for distance, gain in points]


def test_between_two_trials_by_hand() -> None:
    """Of (1, 0.2) and (3, 0.6) the value at 2.5 is 0.2 + 0.75 * 0.4 = 0.5."""
    (level,) = compare_at({"one": trials((3.0, 0.6), (1.0, 0.2))}, [2.5])
    found = level.methods["one"]
    assert found.gain == pytest.approx(0.5) and found.low is None and level.differences == {}


def test_outside_of_what_was_measured_there_is_no_value() -> None:
    """The trial at 9 gains less than the one at 3: from there on the method is past its best."""
    methods = {"one": trials((1.0, 0.2), (3.0, 0.6), (9.0, 0.5)), "two": trials((4.0, 1.0))}
    levels = compare_at(methods, [0.5, 1.0, 3.0, 4.0, 9.0, 9.5])
    of_one = [level.methods["one"] for level in levels]
    assert [found.gain for found in of_one] == [None, 0.2, 0.6, None, None, None]
    assert [found.why for found in of_one] == [
        "not reached", "", "", "past its best", "past its best", "not reached"
    ]  # fmt: skip
    assert [level.methods["two"].gain for level in levels] == [None, None, None, 1.0, None, None]


def test_a_trial_that_another_dominates_bends_no_curve() -> None:
    """At 2 the method has gained 0.1 once; the way from 1 to 3 leaves that out."""
    known = trials((1.0, 0.2), (2.0, 0.1), (3.0, 0.6))
    assert [trial.distance for trial in own_front(known)] == [1.0, 3.0]
    assert compare_at({"one": known}, [2.0])[0].methods["one"].gain == pytest.approx(0.4)


def by_prompt(
    seed: int, gain: float, distance: float, prompts: int = 40
) -> dict[str, tuple[float, float]]:
    """Values that scatter, with exactly these means."""
    rng = random.Random(seed)
    noise = [rng.gauss(0, 1) for _ in range(prompts)]
    shift = fmean(noise)
    return {
        f"p{i}": (gain + 0.3 * (n - shift), distance * (1 + 0.2 * (n - shift)))
        for i, n in enumerate(noise)
    }


def measured(seed: int, *points: tuple[float, float]) -> list[Measured]:
    return [Measured(d, g, by_prompt(seed + i, g, d)) for i, (d, g) in enumerate(points)]


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    """Prompts are drawn one by one with another generator; means, interpolation and difference
    are taken with plain arithmetic.
    """
    methods = {
        "one": measured(1, (1.0, 0.2), (3.0, 0.6)),
        "two": measured(9, (1.5, 0.5), (4.0, 0.9)),
    }
    (level,) = compare_at(methods, [2.0], samples=4000)
    rng, values = random.Random(5), {"one": [], "two": []}  # type: ignore[var-annotated]
    for _ in range(4000):
        drawn = rng.choices(range(40), k=40)
        for name, known in methods.items():
            (d0, g0), (d1, g1) = (
                (
                    fmean(t.by_prompt[f"p{i}"][1] for i in drawn),
                    fmean(t.by_prompt[f"p{i}"][0] for i in drawn),
                )
                for t in known
            )
            share = min(1.0, max(0.0, (2.0 - d0) / (d1 - d0)))
            values[name].append(g0 + share * (g1 - g0))
    for name, found in level.methods.items():
        assert [found.low, found.high] == pytest.approx(
            list(np.percentile(values[name], [2.5, 97.5])), abs=0.01
        )
    difference = level.differences["two"]
    each = np.subtract(values["two"], values["one"])
    assert [difference.low, difference.high] == pytest.approx(
        list(np.percentile(each, [2.5, 97.5])), abs=0.015
    )
    assert difference.mean == pytest.approx(0.5 + 0.2 * 0.4 - (0.2 + 0.5 * 0.4))
    assert difference.n == 40 and level.differences.keys() == {"two"}


def test_both_sides_of_a_difference_see_the_same_prompts() -> None:
    """A method that gains 0.1 more on every prompt does so in every drawing."""
    known = measured(3, (1.0, 0.2), (3.0, 0.6))
    better = [
        Measured(t.distance, t.gain + 0.1, {p: (g + 0.1, d) for p, (g, d) in t.by_prompt.items()})
        for t in known
    ]
    (level,) = compare_at({"one": known, "two": better}, [2.0])
    found = level.differences["two"]
    assert [found.mean, found.low, found.high] == pytest.approx([0.1, 0.1, 0.1])
    one = level.methods["one"]
    assert one.low is not None and one.high is not None and one.high - one.low > 0.05


def test_prompts_that_one_trial_lacks_count_for_none() -> None:
    known = measured(3, (1.0, 0.2), (3.0, 0.6))
    kept = {f"p{i}" for i in range(20)}
    fewer = [
        Measured(t.distance, t.gain, {p: v for p, v in t.by_prompt.items() if p in kept})
        for t in measured(9, (1.0, 0.3), (3.0, 0.7))
    ]
    assert compare_at({"one": known, "two": fewer}, [2.0])[0].differences["two"].n == 20
    none = [Measured(2.0, 0.5, {"other": (0.5, 2.0)})]
    (level,) = compare_at({"one": known, "two": none}, [2.0])
    assert level.differences == {} and level.methods["one"].low is None


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"),
    [
        (0.7, 12.0, [1, 2, 5, 10]),
        (0.0, 0.3, [0.01, 0.02, 0.05, 0.1, 0.2]),
        (1.1, 1.9, []),
        (3.0, 3.0, []),
        (2.0, 200.0, [5, 10, 20, 100, 200]),
    ],
)
def test_levels_are_round_and_within(lowest: float, highest: float, expected: list[float]) -> None:
    found = round_levels(lowest, highest)
    assert all(lowest <= level <= highest for level in found) and len(found) <= 5
    assert found == expected
