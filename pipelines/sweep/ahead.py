"""What trials need of processes, started while the trials before them train.

A trial has four or more: Ray Tune's, Ray Train's controller, its workers and what they agree in.
Each imports Ray, one after the other where they are started when they are needed.
"""

from collections.abc import Callable
from typing import Any

from pipelines.cluster import start_waiting

# A trial's process of Ray Tune, its controller, and Ray Train's for what its workers agree on.
_BESIDE_WORKERS = 3


class Ahead:
    """The processes of a sweep's next trials.

    Args:
        trials: of the sweep. at_once: how many train at the same time. workers: of each.
        start: has so many processes started.
    """

    def __init__(
        self,
        trials: int,
        at_once: int,
        workers: int,
        start: Callable[[int], None] = start_waiting,
    ) -> None:
        self._left, self._at_once, self._each = trials, at_once, workers + _BESIDE_WORKERS
        self._start_waiting = start

    def first(self) -> None:
        """Start those of the first trials."""
        self._start(self._at_once)

    def next(self) -> None:
        """Start those of one more trial, as one begins."""
        self._start(1)

    def _start(self, trials: int) -> None:
        trials = min(trials, self._left)
        self._left -= trials
        if trials:
            self._start_waiting(trials * self._each)

    def callback(self) -> Any:
        """Tells Ray Tune's trials."""
        from ray import tune

        ahead = self

        class Starting(tune.Callback):  # type: ignore[misc]
            def on_trial_start(
                self, iteration: int, trials: list[Any], trial: Any, **info: Any
            ) -> None:
                ahead.next()

        return Starting()
