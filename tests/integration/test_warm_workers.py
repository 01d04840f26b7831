"""Workers that are forks of a warm process: what they have, and how they end."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import wait_while_it_goes_on
from warm_workers import OF_SESSIONS, SOCKET, python_path, started_as_always, warm_up

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get(SOCKET), reason="OMP_NUM_THREADS is not set"),
]
# In the place of Ray's script: what a process has, then it waits.
SCRIPT = """
import array, json, os, random, resource, signal, sys, time
import numpy, torch
status = dict(line.split(":\\t") for line in open("/proc/self/status"))
masked = os.umask(0)
said = {
    "argv": sys.argv, "path": sys.path, "main": __name__, "file": __file__,
    "environment": dict(os.environ), "folder": os.getcwd(), "umask": masked,
    "signals": [status[n] for n in ("SigBlk", "SigIgn", "SigCgt")],
    "limits": [resource.getrlimit(n) for n in range(16)], "nice": os.nice(0),
    "cpus": sorted(os.sched_getaffinity(0)), "oom": open("/proc/self/oom_score_adj").read(),
    "files": [os.readlink(f"/proc/self/fd/{n}") for n in range(3)], "group": os.getpgid(0),
    "spaces": [os.readlink(f"/proc/self/ns/{n}") for n in ("net", "pid", "mnt", "uts", "ipc")],
    "threads": torch.get_num_threads(), "gradients": torch.is_grad_enabled(),
    "pid": os.getpid(), "session": os.getsid(0), "ray": "ray" in sys.modules,
    "modules": len(sys.modules), "open": len(os.listdir("/proc/self/fd")),
    "drawn": [random.random(), numpy.random.rand(), torch.rand(1).item(), torch.initial_seed()],
}
with open(sys.argv[1] + ".new", "w") as file:
    json.dump(said, file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
while os.path.exists(sys.argv[1]):
    time.sleep(0.01)
sys.exit(3)
"""
OWN = ("argv", "pid", "group", "session", "modules", "drawn", "open")


STARTED: list["Worker"] = []


class Worker:
    """A process that is started like a worker of Ray, and what it says of itself.

    It ends with its file.
    """

    def __init__(self, folder: Path, name: str, environment: dict[str, str], *before: str) -> None:
        script = folder / "ray" / "_private" / "workers" / "default_worker.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(SCRIPT)
        self.file = folder / name
        if SOCKET in environment:
            wait_while_it_goes_on(lambda: warm_up(environment), time.monotonic, 0.3)
        self.process = subprocess.Popen(
            [*before, sys.executable, str(script), str(self.file)],
            env=environment, cwd=folder, process_group=0,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=(folder / "errors").open("ab"), umask=0o027,
        )  # fmt: skip
        STARTED.append(self)
        wait_while_it_goes_on(self.file.exists, self.process.poll)
        self.said = json.loads(self.file.read_text())

    def ended(self) -> int:
        return self.process.wait(timeout=60)


@pytest.fixture(autouse=True)
def _end_workers() -> Iterator[None]:
    yield
    for worker in STARTED:
        worker.file.unlink(missing_ok=True)
        worker.ended()
    STARTED.clear()


def environment(**more: str) -> dict[str, str]:
    return {**OF_SESSIONS, **os.environ, "RAY_RAYLET_PID": str(os.getpid()), **more}


def spaces_of(pid: int) -> list[str]:
    names = ("net", "pid", "mnt", "uts", "ipc")
    return [str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in names]


def gone(pid: int) -> None:
    wait_while_it_goes_on(lambda: not psutil.pid_exists(pid), lambda: None)


def test_a_fork_has_what_a_process_of_its_own_has(tmp_path: Path) -> None:
    cold = Worker(tmp_path, "cold", started_as_always(environment(AWS_PROFILE="of the test")))
    warm = Worker(tmp_path, "warm", environment(AWS_PROFILE="of the test"))
    other = Worker(tmp_path, "other", environment(AWS_PROFILE="of the test"))
    assert cold.said["pid"] == cold.process.pid != cold.said["session"]
    assert warm.process.pid != warm.said["pid"] == warm.said["session"]
    assert warm.said["group"] == warm.said["pid"] and cold.said["group"] == cold.said["pid"]
    assert warm.said["modules"] > cold.said["modules"] + 1000
    assert warm.said["open"] <= cold.said["open"]
    cold.said["environment"][SOCKET] = os.environ[SOCKET]
    for name in cold.said.keys() - set(OWN):
        assert warm.said[name] == cold.said[name], name
    assert warm.said["argv"] == [cold.said["argv"][0], str(warm.file)]
    drawn = [cold.said["drawn"], warm.said["drawn"], other.said["drawn"]]
    assert all(len(set(column)) == 3 for column in zip(*drawn, strict=True))
    for worker in (cold, warm, other):
        worker.file.unlink()
        assert worker.ended() == 3


def test_the_one_ends_with_the_other(tmp_path: Path) -> None:
    killed = Worker(tmp_path, "killed", environment())
    os.kill(killed.said["pid"], signal.SIGKILL)
    assert killed.ended() == 128 + signal.SIGKILL
    forsaken = Worker(tmp_path, "forsaken", environment())
    os.killpg(forsaken.process.pid, signal.SIGKILL)
    gone(forsaken.said["pid"])
    asked = Worker(tmp_path, "asked", environment())
    asked.process.terminate()
    assert asked.ended() == 7, "it ends in its own way"


def test_a_worker_with_modules_of_its_own_is_no_fork(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "pyarrow.py").write_text("")
    own = Worker(tmp_path, "own.json", environment(PYTHONPATH=python_path(tmp_path / "own")))
    assert own.said["pid"] == own.process.pid
    own.file.unlink()
    assert own.ended() == 3


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")
def test_a_fork_is_in_the_namespaces_of_who_asks(tmp_path: Path) -> None:
    spaces = ["unshare", "--net", "--uts", "--ipc", "--mount", "--mount-proc"]
    inside = Worker(tmp_path, "inside", environment(), *spaces, "--pid", "--fork", "--kill-child")
    (host,) = psutil.Process(inside.process.pid).children()
    assert inside.said["spaces"] == spaces_of(host.pid)
    assert not set(spaces_of(host.pid)) & set(spaces_of(os.getpid()))
    assert inside.said["pid"] == inside.said["session"] < 100, "a number of the namespace's own"
    its = spaces_of(host.pid)[1]
    host.kill()
    inside.ended()
    wait_while_it_goes_on(lambda: its not in set(spaces_of_processes()), lambda: None)


def spaces_of_processes() -> Iterator[str]:
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            yield str(Path(f"/proc/{pid}/ns/pid").readlink())
