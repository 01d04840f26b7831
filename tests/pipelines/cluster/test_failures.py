"""What Ray hands to the driver becomes one failure of the kind that was raised."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import ray.train
from ray.exceptions import NodeDiedError, RayTaskError

import pipelines
from pipelines.cluster.failures import failure_of
from pipelines.errors import Diverged, Failure, StageFailed, Superseded, UserError

TRACEBACK = "Traceback (most recent call last):\n  File x\npipelines.errors.UserError: a key"


def task_error(cause: Exception) -> Exception:
    """As ray.get raises it: of both types, and its text is a traceback."""
    raised = RayTaskError("f", TRACEBACK, cause, "worker", 1, "127.0.0.1").as_instanceof_cause()
    assert isinstance(raised, type(cause)) and "File x" in str(raised)
    return raised


CASES: dict[str, tuple[BaseException, Failure]] = {
    "raised here": (UserError("a key: bad"), Failure("user", "a key: bad")),
    "one rank": (
        ray.train.WorkerGroupError(TRACEBACK, {0: Diverged("step 3: the loss is nan")}),
        Failure("diverged", "step 3: the loss is nan"),
    ),
    "a rank that failed because another did": (
        ray.train.WorkerGroupError(
            TRACEBACK, {0: RuntimeError("Connection closed by peer"), 1: UserError("a key: bad")}
        ),
        Failure("user", "a key: bad"),
    ),
    "a task": (task_error(UserError("a key: bad")), Failure("user", "a key: bad")),
    "a task of a task": (
        task_error(RayTaskError("g", TRACEBACK, Superseded(), "worker", 1, "127.0.0.1")),
        Failure("superseded", "another command has taken over this run"),
    ),
    "the controller": (
        ray.train.ControllerError(task_error(UserError("a key: bad"))),
        Failure("user", "a key: bad"),
    ),
    "none of ours": (
        task_error(ValueError("first\nsecond")),
        Failure("stage", "training failed: ValueError('first\\nsecond')"),
    ),
    "without a word": (KeyError(), Failure("stage", "training failed: KeyError()")),
    "a machine that went away": (
        ray.train.WorkerGroupError("text", {0: NodeDiedError("The actor died.\n\tIts node too.")}),
        Failure("stage", "training failed: Its node too."),
    ),
    "no rank said anything": (
        ray.train.WorkerGroupError("the group hangs", {}),
        Failure("stage", "training failed: the group hangs"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_raised_elsewhere_is_the_failure(case: str) -> None:
    error, expected = CASES[case]
    assert failure_of(error, "training") == expected


def types_below(type_: type[Exception]) -> Iterator[type[Exception]]:
    yield type_
    for sub in type_.__subclasses__():
        yield from types_below(sub)


def test_no_type_of_ours_is_lost_on_its_way() -> None:
    """Whoever handles one of these handles it as well if it was raised on another machine, or is
    read from a file.
    """
    types = [*types_below(UserError), *types_below(StageFailed)]
    ours = {type_ for type_ in types if type_.__module__ == "pipelines.errors"}
    assert {type_.__name__ for type_ in ours} >= {"DamagedCheckpoint", "Diverged", "Superseded"}
    for type_ in ours:
        written = json.dumps(asdict(Failure.of(type_("step 3: this and that"))))
        arrived = Failure(**json.loads(written)).error()
        assert (type(arrived), str(arrived)) == (type_, "step 3: this and that")
    derived = re.compile(rf"^class \w+\((.*\b)?({'|'.join(t.__name__ for t in ours)})\b", re.M)
    folder = Path(pipelines.__path__[0])
    assert [p.name for p in folder.rglob("*.py") if derived.search(p.read_text())] == ["errors.py"]
