"""What processes the trials of a sweep have, as Ray is told."""

from typing import Any

import pytest
from ray.tune.execution import tune_controller

from pipelines.sweep.own_processes import in_own_processes


class Trainable:
    pass


def told() -> Any:
    """What Ray is told of a trial's environment, by the class that Ray Tune takes now."""
    classes = tune_controller._ActorClassCache()
    found = classes.get(Trainable)
    assert classes.get(Trainable) is found, "each class once"
    return found._default_options.get("runtime_env")


def test_trials_have_no_environment_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a block. Outside, they have what Ray Tune gives them."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of the test")
    with in_own_processes():
        assert told() is None
    assert told()["env_vars"]["AWS_SESSION_TOKEN"] == "of the test"
