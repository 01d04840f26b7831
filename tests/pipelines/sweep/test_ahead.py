"""How many processes a sweep has started before its trials need them."""

import importlib.util

import pytest

from pipelines.sweep.ahead import IMPORTED_BY_SWEEPS, Ahead
from pipelines.train import IMPORTED_EARLY_FOR_GPUS


@pytest.mark.parametrize(
    ("trials", "at_once", "workers", "expected"),
    [(5, 2, 1, [6, 3, 3, 3]), (2, 4, 1, [6]), (3, 1, 4, [6, 6, 6]), (1, 1, 2, [4])],
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
    assert sum(started) == trials * (workers + 2)


def test_what_is_imported_early_is_there() -> None:
    names = (*IMPORTED_BY_SWEEPS, *IMPORTED_EARLY_FOR_GPUS)
    assert all(importlib.util.find_spec(name) is not None for name in names)
