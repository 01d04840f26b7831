"""What ended work on other machines, from the error that Ray hands to the driver."""

from collections.abc import Iterator

from pipelines.errors import Failure, StageFailed, UserError


def failure_of(error: BaseException, work: str) -> Failure:
    """The failure of a worker group, a task or a trial.

    Ray wraps what was raised elsewhere. One of ours is the failure, whatever else was raised
    beside it: workers that wait for each other fail one after the other.

    Args:
        work: what failed, for errors that are none of ours.
    """
    raised = list(_raised(error))
    for one in raised:
        if isinstance(one, UserError | StageFailed):
            return Failure.of(one)
    return Failure("stage", f"{work} failed: {_line(raised[0])}")


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
