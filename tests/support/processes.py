"""Commands as processes of a test: waited for by what they get done, and gone when it ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PATIENCE_SECONDS = 180.0  # without any progress


@contextlib.contextmanager
def started(
    arguments: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`sparsepo ARGUMENTS` in a session of its own; what it prints goes into `log`."""
    with started_as([sys.executable, "-m", "pipelines", *arguments], log, environment) as process:
        yield process


@contextlib.contextmanager
def started_as(
    command: list[str],
    log: Path,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Any command in the same way, in that folder."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            env=environment,
            cwd=folder,
            start_new_session=True,
            # A shell's background jobs inherit an ignored SIGINT, which would make Ctrl-C mean
            # nothing here.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of the process alone, whatever it has started."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(
    done: Callable[[], int], wanted: int, process: subprocess.Popen[bytes], log: Path
) -> None:
    """Until `done()` has counted up to `wanted`, for as long as it goes on counting.

    Raises: AssertionError with the end of the log if the process ends before, or gets nothing done.
    """
    counted, limit = -1, 0.0
    while (now := done()) < wanted:
        if now != counted:
            counted, limit = now, time.monotonic() + _PATIENCE_SECONDS
        ended = process.poll() is not None
        if ended or time.monotonic() > limit:
            how = f"exit {process.returncode}" if ended else "no progress"
            raise AssertionError(f"{how} at {now} of {wanted}:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)


def wait_for_end(process: subprocess.Popen[bytes], done: Callable[[], object]) -> int:
    """The exit code, for as long as what `done()` returns goes on changing."""
    wait_while_it_goes_on(lambda: process.poll() is not None, done)
    return int(process.returncode)


def wait_while_it_goes_on(
    is_so: Callable[[], bool], done: Callable[[], object], pause_seconds: float = 0.05
) -> None:
    """Until `is_so()`, for as long as what `done()` returns goes on changing."""
    seen, limit = object(), 0.0
    while not is_so():
        if (now := done()) != seen:
            seen, limit = now, time.monotonic() + _PATIENCE_SECONDS
        assert time.monotonic() < limit, f"no progress after {seen}"
        time.sleep(pause_seconds)
