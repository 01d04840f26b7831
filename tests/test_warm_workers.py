"""A forked worker is the process that Ray would have started (tests/support/warm_workers.py)."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import wait_while_it_goes_on
from warm_workers import Warm

pytestmark = pytest.mark.slow
# In place of Ray's: says what it is, then waits for its end.
WORKER = """
import json, os, random, signal, sys, time
modules = set(sys.modules)
import numpy
print("to a file", flush=True)
with open(sys.argv[1] + ".part", "w") as file:
    json.dump({
        "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "name": __name__, "file": __file__,
        "environment": dict(os.environ), "executable": sys.executable, "pid": os.getpid(),
        "session": os.getsid(0), "drawn": [random.random(), float(numpy.random.rand())],
        "files": sorted(os.listdir("/proc/self/fd"))[:3], "niceness": os.nice(0),
        "handlers": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)],
        "main": sys.modules["__main__"].__dict__["modules"] is modules,
        "torch": "torch" in modules,
        "project": sorted(m for m in modules if m.split(".")[0] in
                          ("pipelines", "sparsepo", "evaluation", "warm_workers")),
    }, file)
os.rename(sys.argv[1] + ".part", sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
if sys.argv[2] == "ends":
    sys.exit(7)
time.sleep(600)
"""


class Started:
    """A worker as Ray starts one, and what it says of itself."""

    def __init__(self, folder: Path, name: str, does: str, environment: Mapping[str, str]) -> None:
        script = folder / "ray" / "_private" / "workers" / "default_worker.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(WORKER)
        said = folder / name
        with (folder / f"{name}.out").open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(script), str(said), does],
                env={**environment, "OF_THE_WORKER": name},
                stdout=out,
                cwd=folder,
            )
        spent = psutil.Process().cpu_times
        wait_while_it_goes_on(said.exists, lambda: (spent(), self.process.poll()))
        self.said: dict[str, Any] = json.loads(said.read_text())
        assert (folder / f"{name}.out").read_text() == "to a file\n"


@contextmanager
def ended(worker: Started) -> Iterator[Started]:
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()


def test_a_forked_worker_is_what_a_started_one_is(tmp_path: Path, warm: Warm) -> None:
    """All that a process is given is the same; what chance decides is not. Libraries are there, and
    nothing of the project.
    """
    found = {}
    for name, given in {"cold": "0", "one": "", "two": ""}.items():
        environment = warm(os.environ)
        environment |= {"WARM_WORKERS": given} if given else {}
        with ended(Started(tmp_path, name, "ends", environment)) as worker:
            assert worker.process.wait() == 7
        found[name] = worker.said
    cold, one, two = found.values()
    assert (cold["torch"], one["torch"], two["torch"]) == (False, True, True)
    assert one["project"] == []
    assert len({tuple(said["drawn"]) for said in found.values()}) == 3
    assert one["drawn"][0] != two["drawn"][0] and one["drawn"][1] != two["drawn"][1]
    for said in found.values():
        own = ("argv", "drawn", "pid", "session", "torch", "project")
        assert said["argv"][2:] == ["ends"] and said["main"]
        for name in own:
            del said[name]
        for name in ("OF_THE_WORKER", "WARM_WORKERS"):
            del said["environment"][name]
    assert cold == one == two


def test_a_forked_worker_dies_as_a_started_one(tmp_path: Path, warm: Warm) -> None:
    """Killed by its pid, or through the process that Ray knows; both end together."""
    environment = warm(os.environ)

    def waiting(name: str) -> Started:
        return Started(tmp_path, name, "waits", environment)

    with ended(waiting("killed")) as worker:
        assert worker.said["pid"] != worker.process.pid
        os.kill(worker.said["pid"], signal.SIGKILL)
        assert worker.process.wait() == -signal.SIGKILL
    with ended(waiting("asked")) as worker:
        worker.process.terminate()
        assert worker.process.wait() == 3
    with ended(waiting("left")) as worker:
        worker.process.kill()
        wait_while_it_goes_on(
            lambda: not psutil.pid_exists(worker.said["pid"]), lambda: worker.process.poll()
        )
