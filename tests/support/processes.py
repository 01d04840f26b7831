"""Commands as processes of a test: waited for by what they get done, and gone when it ends."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

_PATIENCE_SECONDS = 180.0  # without any progress
_LOOKS_SECONDS = 1.0  # between looks for progress, which cost CPU: files, processes, requests


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
    done: Callable[[], int],
    wanted: int,
    process: subprocess.Popen[bytes],
    log: Path,
    pause_seconds: float = 0.02,
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
        time.sleep(pause_seconds)


def wait_for_end(process: subprocess.Popen[bytes], done: Callable[[], object]) -> int:
    """The exit code, for as long as what `done()` returns goes on changing."""
    wait_while_it_goes_on(lambda: process.poll() is not None, done)
    return int(process.returncode)


def wait_while_it_goes_on(
    is_so: Callable[[], bool], done: Callable[[], object], pause_seconds: float = 0.05
) -> None:
    """Until `is_so()`, for as long as what `done()` returns goes on changing; that is asked for
    once a second.
    """
    seen, limit, next_look = object(), 0.0, 0.0
    while not is_so():
        if time.monotonic() >= next_look:
            now, next_look = done(), time.monotonic() + _LOOKS_SECONDS
            if now != seen:
                seen, limit = now, time.monotonic() + _PATIENCE_SECONDS
        assert time.monotonic() < limit, f"no progress after {seen}"
        time.sleep(pause_seconds)


def said_by(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What a command prints that runs in a folder, for as long as it writes there or prints."""
    log = folder / "printed.log"

    def written() -> tuple[int, int]:
        """Files and their bytes; files and folders come and go meanwhile."""
        sizes = []
        for place, _, names in os.walk(folder):  # unlike rglob it passes over a folder that went
            for name in names:
                with contextlib.suppress(OSError):
                    sizes.append((Path(place) / name).stat().st_size)
        return len(sizes), sum(sizes)

    with started_as(command, log, environment, folder) as process:
        code = wait_for_end(process, written)
    text = log.read_text()
    assert code == 0, text[-3000:]
    return text


def ended(
    command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command with its exit code, output and errors, for as long as it is given CPU to work."""
    with tempfile.TemporaryDirectory() as place:
        out, error = Path(place, "out"), Path(place, "error")
        with out.open("wb") as said, error.open("wb") as complained:
            process = subprocess.Popen(
                command, stdout=said, stderr=complained, env=environment, cwd=folder
            )
            try:
                code = wait_for_end(process, lambda: round(cpu_seconds(process.pid)))
            finally:
                if process.poll() is None:
                    kill(process)
        return subprocess.CompletedProcess(command, code, out.read_text(), error.read_text())


def cpu_seconds(pid: int) -> float:
    """Of a process, what it has started, and what of that has ended."""
    spent = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                spent += sum(process.cpu_times()[:4])
    return spent
