"""How long work is expected to take: each formula beside hand arithmetic."""

import pytest

from pipelines.models.durations import (
    Duration,
    SideBySide,
    forward_seconds,
    pairs_seconds,
    sampling_seconds,
    training_seconds,
)


def test_work_is_arithmetic_and_launches() -> None:
    """A million parameters at 0.02 TFLOP/s, four layers on a CPU (a millisecond each).

    Forward: 2e6 FLOP a token: 20,000 tokens take 2 s; ten batches 40 ms. Training: 4e10 FLOP take
    2 s, 30 micro-batches 3 x 30 x 4 ms = 0.36 s, ten steps 0.2 s. Sampling: 100 prompts of 30
    tokens are 3,000 tokens, 0.3 s; two batches of 64, 30 forwards each, 0.24 s.
    """
    rate, layers = 0.02, 4
    assert forward_seconds(10**6, 20_000, 10, layers, rate, "cpu") == pytest.approx(2.04)
    assert training_seconds(4e10, 30, 10, layers, rate, "cpu") == pytest.approx(2.56)
    drawn = sampling_seconds(10**6, 100, 30, 64, layers, rate, "cpu")
    assert drawn == pytest.approx(0.54)
    assert pairs_seconds(3000, 2) == 1.0
    assert pairs_seconds(1500, 0.5) == 1.0, "a core at least works"


def test_a_duration_has_both_parts() -> None:
    keys = Duration(2.0, 3.0).as_keys()
    assert keys == {"start_seconds": 2.0, "work_seconds": 3.0, "seconds": 5.0}


@pytest.mark.parametrize(
    ("side", "seconds"),
    [
        # One after the other: all starts, all work.
        (SideBySide(6, 1, 2, True), 6 * (20 + 5)),
        # Two at a time on two cores: half of the starts, the work of all on the same cores.
        (SideBySide(6, 2, 2, True), 3 * 20 + 6 * 5),
        # Four at a time on two cores: the last wave has two; starts take twice as long.
        (SideBySide(6, 4, 2, True), 2 * 20 * 2 + 6 * 5),
        # A GPU each, enough cores: two waves of one run's time.
        (SideBySide(6, 4, 16, False), 2 * (20 + 5)),
        (SideBySide(0, 4, 16, False), 0),
    ],
)
def test_runs_side_by_side(side: SideBySide, seconds: float) -> None:
    """A run alone: 20 s to start, 5 s of work."""
    assert side.seconds([Duration(20, 5)]) == seconds
    assert side.seconds([Duration(30, 4), Duration(10, 6)]) == seconds, "by their mean"
