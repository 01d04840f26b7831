"""Trials of a Ray of our own take the processes that all its actors take.

Ray Tune gives its trials environment variables of the driver's, with what Ray has for that: a
process for each, which an agent prepares and a second Python starts. All that a trial starts has
them too. Processes of a Ray of our own have this process's environment. Ray Tune has no option for
it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def in_own_processes() -> Iterator[None]:
    """Trials that start in this block."""
    import ray
    from ray.tune.execution import tune_controller

    class Classes(tune_controller._ActorClassCache):  # type: ignore[misc]
        def get(self, trainable_cls: type) -> Any:
            if trainable_cls not in self._cache:
                self._cache[trainable_cls] = ray.remote(trainable_cls)
            return self._cache[trainable_cls]

    every = tune_controller._ActorClassCache
    tune_controller._ActorClassCache = Classes
    try:
        yield
    finally:
        tune_controller._ActorClassCache = every
