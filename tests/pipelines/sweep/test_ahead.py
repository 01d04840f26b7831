"""How many processes a sweep has started before its trials need them."""

import pytest

from pipelines.sweep.ahead import Ahead


@pytest.mark.parametrize(
    ("trials", "at_once", "workers", "expected"),
    [(5, 2, 1, [8, 4, 4, 4]), (2, 4, 1, [8]), (3, 1, 4, [7, 7, 7]), (1, 1, 2, [5])],
)
def test_every_trial_has_its_processes_once(
    trials: int, at_once: int, workers: int, expected: list[int]
) -> None:
    """Its own, its controller's and its workers': the first trials' before any begins, one trial's
    more as one begins, and none beyond the last.
    """
    started: list[int] = []
    ahead = Ahead(trials, at_once, workers, started.append)
    ahead.first()
    callback = ahead.callback()
    for number in range(trials):
        callback.on_trial_start(number, [], None)
    assert started == expected
    assert sum(started) == trials * (workers + 3)
