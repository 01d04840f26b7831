"""What ended work on other machines, from the error that Ray hands to the driver."""

import contextlib
import re
from collections.abc import Iterator

from pipelines.errors import Failure, StageFailed, UserError

# What Ray's memory monitor says of a process that it ended, and of the machine.
_MEMORY = re.compile(r"killed due to the node running low on memory")
_MACHINE = re.compile(r"\bIP: ([0-9A-Fa-f.:]+)")
_USED = re.compile(r"([\d.]+ ?[KMGT]?i?B)(?: used)? / ([\d.]+ ?[KMGT]?i?B)")
_LIMIT = re.compile(r"exceeded threshold of \d+B \(([\d.]+)%")
AGAIN = "run the same command again to resume"


def failure_of(error: BaseException, work: str, lighter: str = "", again: str = AGAIN) -> Failure:
    """The failure of a worker group, a task or a trial.

    Ray wraps what was raised elsewhere. One of ours is the failure, whatever else was raised
    beside it: workers that wait for each other fail one after the other.

    Args:
        work: what failed, for errors that are none of ours. lighter: what to change where the
            memory of a machine ran out. again: how to go on then.
    """
    raised = list(_raised(error))
    for one in raised:
        if isinstance(one, UserError | StageFailed):
            return Failure.of(one)
    for one in raised:
        if _is_memory(one):
            change = f"{lighter}, or" if lighter else "give it fewer processes, or"
            return Failure(
                "stage",
                f"{work} failed: {_memory_line(one)}; {change} take a machine with more memory, "
                f"and {again}",
            )
    return Failure("stage", f"{work} failed: {_line(raised[0])}")


def sendable(error: Exception) -> Exception:
    """The error itself, or one of its text where pickle cannot carry it.

    Ray Train would tell of pickle's error in its place.
    """
    from ray import cloudpickle

    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # whatever its parts raise
        told = RuntimeError(f"{type(error).__name__}: {error}")
        return told.with_traceback(error.__traceback__)
    return error


@contextlib.contextmanager
def told_in_a_line(work: str, lighter: str = "") -> Iterator[None]:
    """Raise what Ray raises inside as one of ours.

    An error of a program keeps its traceback: it is one to report.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayError as error:
        failure = failure_of(error, work, lighter)
        raised = list(_raised(error))
        if isinstance(error, RayTaskError) and not any(
            isinstance(one, UserError | StageFailed | RayError) for one in raised
        ):
            raise
        raise failure.error() from error


def _is_memory(error: BaseException) -> bool:
    """Whether Ray ended the process since its machine ran out of memory.

    A task ends in an error of its own, an actor in that of a dead actor, which says why.
    """
    from ray.exceptions import OutOfMemoryError, RayError

    return isinstance(error, OutOfMemoryError) or (
        isinstance(error, RayError) and _MEMORY.search(str(error)) is not None
    )


def _memory_line(error: BaseException) -> str:
    """Which machine, how full it was, and the limit, as far as Ray says."""
    text = str(error)
    machine, used, limit = (one.search(text) for one in (_MACHINE, _USED, _LIMIT))
    where = f"the machine {machine[1]}" if machine else "a machine"
    full = f": {used[1]} of {used[2]} in use" if used else ""
    most = f", the limit is {float(limit[1]):.0f}%" if full and limit else ""
    return f"{where} ran out of memory{full}{most}, so Ray ended one of its processes"


def _raised(error: BaseException) -> Iterator[BaseException]:
    """What was raised, without Ray's wrappers around it."""
    from ray.exceptions import RayTaskError
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, RayTaskError):
        inner = [error.cause]
    elif isinstance(error, WorkerGroupError):
        inner = list(error.worker_failures.values())
    elif isinstance(error, ControllerError):
        inner = [error.controller_failure]
    else:
        inner = []
    if not inner:
        yield error
    for one in inner:
        yield from _raised(one)


def _line(error: BaseException) -> str:
    """An error in one line; Ray's own errors end with what happened."""
    if not type(error).__module__.startswith("ray."):
        return Failure.of(error).message
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
