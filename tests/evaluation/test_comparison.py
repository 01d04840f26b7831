"""Runs beside each other: paired by prompt, and by seed."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from evaluation.comparison import compared_by_seed, numbers_by_seed, paired_difference


def test_two_runs_differ_by_prompts_not_by_temperatures() -> None:
    """The same difference of a prompt at three temperatures is one prompt's: the interval of one
    temperature.
    """
    rng = np.random.default_rng(2)
    gains = rng.normal(size=20)

    def records(temperatures: tuple[float, ...], gain: float) -> list[dict[str, Any]]:
        return [
            {"prompt": str(i), "temperature": t, "x": gain * g}
            for i, g in enumerate(gains)
            for t in temperatures
        ]

    one = paired_difference(records((1.0,), 0.0), records((1.0,), 1.0), "x")
    three = paired_difference(records((0.0, 0.5, 1.0), 0.0), records((0.0, 0.5, 1.0), 1.0), "x")
    assert one is not None and three is not None
    assert (three.low, three.high, three.n) == pytest.approx((one.low, one.high, 20))


def test_a_difference_is_the_second_less_the_first() -> None:
    """Two prompts that both have: 3 - 1, and the mean of 2 and 4 less 2. The others do not count,
    nor does one at another temperature.
    """
    first = [{"prompt": name, "x": x} for name, x in (("a", 1.0), ("b", 2.0), ("c", 9.0))]
    second: list[dict[str, Any]] = [
        {"prompt": name, "x": x} for name, x in (("a", 3.0), ("b", 2.0), ("b", 4.0), ("d", 7.0))
    ]
    second.append({"prompt": "c", "temperature": 0.5, "x": 9.0})
    found = paired_difference(first, second, "x")
    assert found is not None and (found.mean, found.n) == (1.5, 2)
    assert paired_difference(first, second[3:], "x") is None


def _run(rng: np.random.Generator, effect: float) -> list[dict[str, Any]]:
    """Rewards of 30 prompts by one training, of which each lies off by its own error."""
    off = effect + rng.normal(0, 0.2)
    return [{"prompt": str(i), "x": off + float(rng.normal(0, 0.1))} for i in range(30)]


def test_methods_differ_seed_by_seed() -> None:
    """By hand: the mean difference of each shared seed, and Student's interval over them; seeds of
    one method alone are named.
    """
    rng = np.random.default_rng(1)
    first = {seed: _run(rng, 0.0) for seed in (0, 1, 2, 3, 7)}
    second = {seed: _run(rng, 0.5) for seed in (3, 2, 1, 0, 8, 9)}
    found = compared_by_seed(first, second, "x")
    assert found is not None and found.varies_seeds and found.seeds == (0, 1, 2, 3)
    assert found.left_out == {"first": (7,), "second": (8, 9)}
    by_hand = [
        np.mean([r["x"] for r in second[s]]) - np.mean([r["x"] for r in first[s]]) for s in range(4)
    ]
    known = stats.t.interval(0.95, 3, np.mean(by_hand), stats.sem(by_hand))
    assert (found.difference.low, found.difference.high) == pytest.approx(known)
    assert (found.difference.n, found.difference.mean) == (4, pytest.approx(np.mean(by_hand)))


def test_one_seed_tells_of_prompts_alone() -> None:
    """Its interval is over prompts, far too short for another training: it must not pass for one
    over seeds.
    """
    rng = np.random.default_rng(2)
    first, second = {0: _run(rng, 0.0), 1: _run(rng, 0.0)}, {1: _run(rng, 0.0)}
    found = compared_by_seed(first, second, "x")
    assert found is not None and not found.varies_seeds
    assert found.difference == paired_difference(first[1], second[1], "x")
    assert found.seeds == (1,) and found.left_out == {"first": (0,)} and found.difference.n == 30
    assert compared_by_seed({0: first[0]}, second, "x") is None


def test_numbers_differ_seed_by_seed() -> None:
    """3 - 1 and 6 - 2: mean 3, standard error 1, t with one degree of freedom 12.706."""
    found = numbers_by_seed({0: 1.0, 1: 2.0, 5: 0.0}, {0: 3.0, 1: 6.0, 4: 0.0})
    assert found is not None and found.left_out == {"first": (5,), "second": (4,)}
    assert found.difference.mean == 3.0
    assert found.difference.high - 3.0 == pytest.approx(12.7062, rel=1e-5)
    assert numbers_by_seed({0: 1.0, 1: 2.0}, {0: 3.0}) is None
