"""What Ray hands to the driver becomes one failure of the kind that was raised."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import ray.train
from ray import cloudpickle
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError

import pipelines
from pipelines.cluster.failures import failure_of, sendable, told_in_a_line
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


# As Ray's memory monitor writes it.
KILLED = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "10.0.0.7, ID: d11b) was 15.31GB used / 15.62GB limit (0.980154)\n"
    "OOM kill reason: Memory usage 16438985523B exceeded threshold of 15934000000B (95.0% of "
    "16772000000B limit)\n"
    "Object store memory usage: [- objects spillable: 0\n- bytes spillable: 0]\n"
    "Ray killed 1 worker(s) based on the killing policy\n"
    "Considered workers: [\nSelected to kill: (Actor(dc85): job ID=01, task "
    "name=TrainController.__init__, pid=8823, actual memory used=0.05GB, worker ID=4e)\n]\n"
    "Top 10 memory users: PID\tMEM(GB)\tCOMMAND\n8644\t9.00\tpython other.py\n"
) + "13\t0.1\tx\n" * 90
RAN_OUT = (
    "the machine 10.0.0.7 ran out of memory: 15.31GB of 15.62GB in use, the limit is 95%, so Ray "
    "ended one of its processes; lower train.num_workers, or take a machine with more memory, and "
    "run the same command again to resume"
)


def dead_actor() -> ActorDiedError:
    found = ActorDiedError()
    found.error_msg = f"The actor died unexpectedly before finishing this task.\n{KILLED}"
    return found


MEMORY: dict[str, BaseException] = {
    "the controller": OutOfMemoryError(KILLED),
    "a worker": ray.train.WorkerGroupError(KILLED, {1: OutOfMemoryError(KILLED)}),
    "a worker beside others": ray.train.WorkerGroupError(
        KILLED, {0: RuntimeError("Connection closed by peer"), 1: dead_actor()}
    ),
    "the controller's own error": ray.train.ControllerError(dead_actor()),
    "an actor": dead_actor(),
    "a task of a task": task_error(OutOfMemoryError(KILLED)),
}


@pytest.mark.parametrize("case", MEMORY)
def test_a_process_that_the_memory_monitor_ended_is_one_line(case: str) -> None:
    found = failure_of(MEMORY[case], "training", "lower train.num_workers")
    assert found == Failure("stage", f"training failed: {RAN_OUT}")


def test_the_line_holds_what_ray_says() -> None:
    """Other wordings give fewer numbers, never a longer line; what is ours goes first."""
    short = failure_of(
        OutOfMemoryError("killed due to the node running low on memory"), "a trial", "", "wait"
    )
    assert short.message == (
        "a trial failed: a machine ran out of memory, so Ray ended one of its processes; give it "
        "fewer processes, or take a machine with more memory, and wait"
    )
    both = ray.train.WorkerGroupError(KILLED, {0: Diverged("nan"), 1: OutOfMemoryError(KILLED)})
    assert failure_of(both, "training") == Failure("diverged", "nan")


def test_pools_and_tasks_tell_it_as_training_does() -> None:
    """A program's own error keeps its traceback."""
    for error in (OutOfMemoryError(KILLED), dead_actor(), task_error(dead_actor())):
        with pytest.raises(StageFailed) as caught, told_in_a_line("reference", "lower this"):
            raise error
        line = str(caught.value)
        assert line.startswith("reference failed: the machine 10.0.0.7 ran out of memory: 15.31GB")
        assert "; lower this, or take" in line and "\n" not in line
    with (
        pytest.raises(StageFailed, match="^reference failed: Its node too.$"),
        told_in_a_line("reference"),
    ):
        raise NodeDiedError("The actor died.\n\tIts node too.")
    with pytest.raises(UserError, match="^a key: bad$"), told_in_a_line("reference"):
        raise task_error(UserError("a key: bad"))
    with pytest.raises(ValueError, match="File x"), told_in_a_line("reference"):
        raise task_error(ValueError("a fault"))


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


class OfTwoParts(Exception):
    """Pickle makes it again from one."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def test_an_error_that_pickle_cannot_carry_goes_as_its_text() -> None:
    lock = threading.Lock()
    for error, text in (
        (ValueError("a layer", lock), f"ValueError: ('a layer', {lock!r})"),
        (OfTwoParts("a", "layer"), "OfTwoParts: a layer"),
    ):
        try:
            raise error
        except Exception as raised:
            sent = cloudpickle.loads(cloudpickle.dumps(sendable(raised)))
        assert type(sent) is RuntimeError and str(sent) == text
    known = UserError("as it is")
    assert sendable(known) is known
