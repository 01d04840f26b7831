"""Chosen log-probabilities that fall as margins grow are told of once; noise is not."""

import json
from collections.abc import Sequence

import numpy as np

from sparsepo import FallingChosenWatch


def told(
    chosen: Sequence[float], margins: Sequence[float], watch: FallingChosenWatch | None = None
) -> list[int]:
    """Steps, from 0, that give rise to a warning."""
    watch = watch or FallingChosenWatch()
    found = [
        watch.observe({"logps/chosen": a, "rewards/margins": b})
        for a, b in zip(chosen, margins, strict=True)
    ]
    return [i for i, warnings in enumerate(found) if warnings]


def line(start: float, slope: float, steps: int) -> list[float]:
    return [start + slope * step for step in range(steps)]


def test_a_fall_with_growing_margins_is_told_once_after_fifty_steps() -> None:
    """-0.3 nats a step: 49 steps lie between the ends of the line, so it falls by 14.7."""
    assert told(line(-200, -0.3, 150), line(0, 0.01, 150)) == [49]
    watch = FallingChosenWatch({"window": [[-200 - 0.3 * i, 0.01 * i] for i in range(49)]})
    (text,) = watch.observe({"logps/chosen": -214.7, "rewards/margins": 0.49})
    assert "by 14.7 nats per response within 50 steps" in text
    assert all(cure in text for cure in ("nll_coef", "DPOP", "apo_zero"))


def test_the_fit_is_numpy_s() -> None:
    """Against numpy's polynomial fit and its covariance, with noise in both."""
    random = np.random.default_rng(0)
    steps = np.arange(50)
    for slope, expected in ((-0.5, True), (-0.1, False)):
        chosen = -200 + slope * steps + random.normal(0, 5, 50)
        (fitted, _), covariance = np.polyfit(steps, chosen, 1, cov="unscaled")
        left = chosen - np.polyval(np.polyfit(steps, chosen, 1), steps)
        error = np.sqrt(covariance[0, 0] * (left @ left) / 48)
        assert (fitted / error < -4) == expected
        assert bool(told(chosen.tolist(), line(0, 0.01, 50))) == expected


def test_what_is_no_such_fall_is_not_told_of() -> None:
    """Rising or still values, a fall under 1 nat, margins that do not grow, supervised training."""
    steps = 200
    assert told(line(-200, 0.3, steps), line(0, 0.01, steps)) == []
    assert told([-200.0] * steps, line(0, 0.01, steps)) == []
    assert told(line(-200, -0.02, steps), line(0, 0.01, steps)) == [], "0.98 nats"
    assert told(line(-200, -0.3, steps), [0.0] * steps) == []
    assert told(line(-200, -0.3, steps), line(0, -0.01, steps)) == []
    assert told(line(-200, -0.3, 49), line(0, 0.01, 49)) == [], "49 steps"
    watch = FallingChosenWatch()
    assert [watch.observe({"loss": 1.0, "logps/chosen": -i}) for i in range(99)] == [[]] * 99


def test_the_noise_of_batches_is_no_fall() -> None:
    """Level values of 50 runs, 500 steps each: lengths alone move a batch's mean by 12 nats."""
    random = np.random.default_rng(1)
    for _ in range(50):
        noise = random.normal(-200, 12, 500).tolist()
        assert told(noise, line(0, 0.01, 500)) == []


def test_a_watch_goes_on_after_a_restart() -> None:
    chosen, margins = line(-200, -0.3, 80), line(0, 0.01, 80)
    watch = FallingChosenWatch()
    assert told(chosen[:30], margins[:30], watch) == []
    again = FallingChosenWatch(json.loads(json.dumps(watch.state())))
    assert told(chosen[30:], margins[30:], again) == [19]
    later = FallingChosenWatch(json.loads(json.dumps(again.state())))
    assert told(chosen, margins, later) == [], "told before"
