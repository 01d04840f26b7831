"""Workers that are forks of a warm process: what they have, how they end, when there are none."""

import contextlib
import ctypes
import importlib
import json
import os
import platform
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch
from processes import wait_while_it_goes_on

from pipelines.cluster import warm
from pipelines.cluster.warm import told_by, warm_process, with_warm_workers
from pipelines.cluster.warm_process import MARK, has_opened_gpus, relevant

WORKER = Path(warm.__file__).with_name("warm_worker.py")
# In the place of Ray's script: what a process has, then it waits.
SCRIPT = """
import json, os, random, resource, signal, sys, time
import numpy, torch
if "RAY_IMPORT" in os.environ:
    import ray
status = dict(line.split(":\\t") for line in open("/proc/self/status"))
masked = os.umask(0)
said = {
    "argv": sys.argv, "path": sys.path, "main": __name__, "file": __file__,
    "environment": dict(os.environ), "folder": os.getcwd(), "umask": masked,
    "signals": [int(status[n], 16) & ~(1 << 31) for n in ("SigBlk", "SigIgn", "SigCgt")],
    "limits": [resource.getrlimit(n) for n in range(16)], "nice": os.nice(0),
    "cpus": sorted(os.sched_getaffinity(0)), "oom": open("/proc/self/oom_score_adj").read(),
    "files": [os.readlink(f"/proc/self/fd/{n}") for n in range(3)], "group": os.getpgid(0),
    "threads": torch.get_num_threads(), "gradients": torch.is_grad_enabled(),
    "pid": os.getpid(), "session": os.getsid(0), "ray": "ray" in sys.modules,
    "modules": len(sys.modules), "open": len(os.listdir("/proc/self/fd")),
    "drawn": [random.random(), numpy.random.rand(), torch.rand(1).item(), torch.initial_seed()],
}
if said["ray"]:
    said["drawn"] += [kind.from_random().hex() for kind in (ray.WorkerID, ray.ObjectID)]
with open(sys.argv[1] + ".new", "w") as file:
    json.dump(said, file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
while os.path.exists(sys.argv[1]):
    time.sleep(0.01)
sys.exit(3)
"""
OWN = {"argv", "pid", "group", "session", "modules", "drawn", "open"}
NAME = "imported_first"
VARIABLE = "PYTEST_CURRENT_TEST"
STARTED: list["Worker"] = []
_MOST_IDLE = 20  # workers of a shared cluster that are there before they are needed


class Worker:
    """A process that is started like a worker of Ray, and what it says of itself.

    It ends with its file.
    """

    def __init__(self, folder: Path, name: str, warm_name: str | None, **more: str) -> None:
        script, self.file = folder / "default_worker.py", folder / name
        script.write_text(SCRIPT)
        before = [] if warm_name is None else [str(WORKER), warm_name]
        self.process = subprocess.Popen(
            [sys.executable, *before, str(script), str(self.file)],
            env={**environment(), "RAY_JOB": name, **more}, cwd=folder, process_group=0,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=(folder / "errors").open("ab"), umask=0o027, preexec_fn=ignore_some,
        )  # fmt: skip
        STARTED.append(self)
        wait_while_it_goes_on(self.file.exists, self.process.poll)
        self.said = json.loads(self.file.read_text())

    def ended(self) -> int:
        self.file.unlink(missing_ok=True)
        return self.process.wait(timeout=60)


def ignore_some() -> None:
    """A signal of the C library's own too, which only the kernel can be told of; make does so."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    call = {"x86_64": 13, "aarch64": 134}[platform.machine()]
    ctypes.CDLL(None).syscall(call, 32, struct.pack("4Q", 1, 0, 0, 0), None, 8)


def environment() -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if key != VARIABLE}
    return {**own, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _end_workers() -> Iterator[None]:
    yield
    _end_all()


def _end_all() -> None:
    for worker in STARTED:
        worker.ended()
    STARTED.clear()


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    with started(("numpy", "torch")) as found:
        yield found


@contextlib.contextmanager
def started(modules: Sequence[str], of_ray: Sequence[str] = ()) -> Iterator[str]:
    """A warm process that has imported them, without the variable that pytest changes."""
    with contextlib.ExitStack() as session:
        with pytest.MonkeyPatch.context() as patched:
            patched.delenv(VARIABLE, raising=False)
            found = session.enter_context(warm_process(modules, of_ray))
        assert found is not None
        wait_while_it_goes_on(lambda: is_there(found), time.monotonic, 0.1)
        yield found


def told_of(name: str) -> dict[str, object]:
    """What the one with Ray has done is left out, if that ends while it is asked."""
    with contextlib.suppress(ConnectionError, json.JSONDecodeError):
        return told_by(name)
    return {"with_ray": 0}


def is_there(name: str) -> bool:
    try:
        told_by(name)
    except ConnectionRefusedError:
        return False
    return True


def gone(pid: int) -> None:
    wait_while_it_goes_on(lambda: not psutil.pid_exists(pid), lambda: None)


@pytest.mark.slow
def test_a_fork_has_what_a_process_of_its_own_has(tmp_path: Path, name: str) -> None:
    before = told_by(name)["forks"]
    cold = Worker(tmp_path, "cold", None)
    warm, other = Worker(tmp_path, "warm", name), Worker(tmp_path, "other", name)
    assert cold.said["pid"] == cold.process.pid
    assert warm.process.pid != warm.said["pid"] == warm.said["session"]
    assert warm.said["group"] == warm.said["pid"] and cold.said["group"] == cold.said["pid"]
    assert warm.said["open"] <= cold.said["open"]
    of_cold, of_warm = (worker.said["environment"] for worker in (cold, warm))
    assert of_cold.pop("RAY_JOB") == "cold" and of_warm.pop("RAY_JOB") == "warm"
    assert of_warm.pop(MARK) == name
    of_cold.pop(MARK, None)
    for key in cold.said.keys() - OWN:
        assert warm.said[key] == cold.said[key], key
    assert warm.said["signals"][1] >> (signal.SIGUSR2 - 1) & 1
    assert warm.said["argv"] == [cold.said["argv"][0], str(warm.file)]
    drawn = [cold.said["drawn"], warm.said["drawn"], other.said["drawn"]]
    assert all(len(set(column)) == 3 for column in zip(*drawn, strict=True))
    assert [worker.ended() for worker in (cold, warm, other)] == [3, 3, 3]
    assert told_by(name)["forks"] == before + 2


@pytest.mark.slow
def test_workers_of_the_first_job_have_ray(tmp_path: Path) -> None:
    """As if they had imported it, and none draws what another one draws.

    Those with other variables of Ray's import it themselves; so do all when the one with Ray ends.
    """
    ray = {"RAY_IMPORT": "1", "RAY_JOB": "1", "RAY_JOB_ID": "01000000"}
    nobody = {**ray, "RAY_JOB_ID": "ffffffff"}
    with started(("numpy", "torch"), ("ray", "ray.data")) as found:
        idle = Worker(tmp_path, "idle", found, **nobody)
        cold = Worker(tmp_path, "cold", None, **ray)
        own, second = (Worker(tmp_path, name, found, **ray) for name in ("own", "second"))
        other = Worker(tmp_path, "other", found, **{**ray, "RAY_JOB": "2"})
        assert told_by(found) == {"forks": 4, "with_ray": 2, "refused": {}}
        assert max(w.said["open"] for w in (idle, other, own)) <= cold.said["open"]
        parents = [psutil.Process(w.said["pid"]).parent() for w in (idle, other, own, second)]
        assert parents[0] == parents[1] != parents[2] == parents[3] is not None
        assert cold.said["environment"].pop(MARK, None) != own.said["environment"].pop(MARK)
        for key in cold.said.keys() - OWN:
            assert own.said[key] == cold.said[key], key
        drawn = [worker.said["drawn"] for worker in (cold, own, second, other)]
        assert all(len(set(column)) == 4 for column in zip(*drawn, strict=True))
        with_ray = parents[2]
        assert with_ray is not None
        with_ray.kill()
        wait_while_it_goes_on(lambda: "with_ray" not in told_of(found), lambda: None)
        late = Worker(tmp_path, "late", found, **ray)
        assert psutil.Process(late.said["pid"]).parent() == parents[0]
        _end_all()


@pytest.mark.slow
def test_the_one_ends_with_the_other(tmp_path: Path, name: str) -> None:
    killed = Worker(tmp_path, "killed", name)
    os.kill(killed.said["pid"], signal.SIGKILL)
    assert killed.process.wait(60) == 128 + signal.SIGKILL
    forsaken = Worker(tmp_path, "forsaken", name)
    os.killpg(forsaken.process.pid, signal.SIGKILL)
    gone(forsaken.said["pid"])
    asked = Worker(tmp_path, "asked", name)
    asked.process.terminate()
    assert asked.process.wait(60) == 7, "it ends in its own way"
    both = Worker(tmp_path, "both", name)
    fork = psutil.Process(both.said["pid"])
    parent = fork.parent()
    assert parent is not None
    parent.suspend()
    fork.kill()
    wait_while_it_goes_on(lambda: fork.status() == psutil.STATUS_ZOMBIE, lambda: None)
    both.process.kill()
    both.process.wait(60)
    parent.resume()
    assert told_by(name)["forks"], "the ends of both, seen at once, end nothing else"


@pytest.mark.slow
def test_a_worker_that_an_import_could_see_is_no_fork(tmp_path: Path, name: str) -> None:
    """A variable of its own, or a warm process that is not there: it starts as always."""
    others = [
        Worker(tmp_path, "variable", name, PYTHONWARNINGS="ignore"),
        Worker(tmp_path, "nobody", "sparsepo-nobody"),
    ]
    for other in others:
        assert other.said["pid"] == other.process.pid
        assert other.ended() == 3
    assert told_by(name)["refused"] == {"another value of PYTHONWARNINGS": 1}


@pytest.mark.slow
def test_a_worker_with_modules_of_its_own_is_no_fork(tmp_path: Path) -> None:
    """By PYTHONPATH: one more module is none of its business, another of that name or none is.

    A variable that an import sets may be set to that.
    """
    for folder, module in (("more", "its_own"), ("other", NAME), ("kept", NAME)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{module}.py").write_text("import os\nos.environ['IMPORTED'] = 'so'")
    kept = str(tmp_path / "kept")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", kept)
        with started(("numpy", "torch", "imported_first")) as found:
            path = f"{tmp_path}/more{os.pathsep}{kept}"
            more = Worker(tmp_path, "more.json", found, PYTHONPATH=path, IMPORTED="so")
            cold = Worker(tmp_path, "cold.json", None, PYTHONPATH=path)
            other = Worker(tmp_path, "o.json", found, PYTHONPATH=f"{tmp_path}/other:{kept}")
            without = Worker(tmp_path, "w.json", found, PYTHONPATH="")
            refused = told_by(found)["refused"]
            assert more.said["pid"] != more.process.pid and more.said["path"] == cold.said["path"]
            assert [w.said["pid"] for w in (other, without)] == [
                w.process.pid for w in (other, without)
            ]
            _end_all()
    assert refused == {
        f"{tmp_path}/other has modules of its own: imported_first": 1,
        f"modules of {kept}, which is not on its path": 1,
    }


@pytest.mark.slow
def test_workers_end_with_the_warm_process(tmp_path: Path) -> None:
    """It imports nothing here: forks import what they need."""
    with started(("json",)) as found:
        worker = Worker(tmp_path, "worker", found)
        parent = psutil.Process(worker.said["pid"]).parent()
        assert parent is not None and parent.pid != worker.process.pid
    gone(worker.said["pid"])
    assert worker.process.wait(60) != 0
    with pytest.raises(ConnectionRefusedError):
        told_by(found)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True)"
         ".start()\n", "2 threads"),
        ("import sys\nsys.modules['ray'] = sys\n", "Ray has been imported"),
    ],
)  # fmt: skip
def test_a_process_that_may_not_fork_says_why(
    text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a module that cannot be imported keeps no other from it."""
    (tmp_path / "imported_first.py").write_text(text)
    (tmp_path / "default_worker.py").write_text("print('as always')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with started(("no_such_module", "imported_first")) as found:
        command = [sys.executable, WORKER, found, tmp_path / "default_worker.py"]
        said = subprocess.check_output(command, text=True, env=environment())
        assert said == "as always\n"
        refused = told_by(found)["refused"]
    assert refused == {"cannot import no_such_module: No module named 'no_such_module'": 1, why: 1}


def test_forks_that_would_draw_the_same_identifiers_have_no_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first job's worker, which would be one of them, imports it itself."""
    (tmp_path / f"{NAME}.py").write_text(
        "import sys, types\nsys.modules['ray'] = types.SimpleNamespace(WorkerID=types.Simple"
        "Namespace(from_random=lambda: types.SimpleNamespace(binary=lambda: b'same')))"
    )
    (tmp_path / "default_worker.py").write_text("print('as always')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with started(("json",), (NAME,)) as found:
        command = [sys.executable, WORKER, found, tmp_path / "default_worker.py"]
        own = {**environment(), "RAY_JOB_ID": "01000000"}
        assert subprocess.check_output(command, env=own) == b"as always\n"
        told = told_by(found)
    refused = {"forks draw the same identifiers": 1}
    assert told == {"forks": 1, "with_ray": 0, "refused": refused}


@pytest.mark.slow
def test_a_process_that_has_started_the_gpus_driver_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a library of that name that answers as the driver does, compiled here."""
    source = "int started; int cuInit(unsigned f) { started = 1; return 0; }\n" + (
        "int cuDeviceGetCount(int *n) { *n = 2; return started ? 0 : 3; }\n"
    )
    (tmp_path / "driver.c").write_text(source)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    real = ctypes.CDLL

    def loaded(name: str) -> ctypes.CDLL:
        return real(str(library) if name == library.name else name)

    monkeypatch.setattr(ctypes, "CDLL", loaded)
    assert has_opened_gpus() is False
    loaded(library.name).cuInit(0)
    assert has_opened_gpus() is True


def test_an_import_may_look_at_all_but_what_ray_says_later() -> None:
    kept = {"PATH": "/bin", "HF_HOME": "/models", "OPENBLAS_NUM_THREADS": "2"}
    free = {"RAY_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "4", "PWD": "/"}
    assert relevant({**kept, **free}) == kept


@pytest.mark.slow
def test_workers_of_a_ray_of_our_own_are_forks(ray_cluster: None) -> None:
    """The raylet's command says so; all but that argument is Ray's own."""
    import ray
    from ray._private import ray_constants
    from ray._private.worker import _global_node

    (raylet,) = _global_node.all_processes[ray_constants.PROCESS_TYPE_RAYLET]
    command = Path(f"/proc/{raylet.process.pid}/cmdline").read_text().split("\0")
    (workers,) = [part for part in command if part.startswith("--python_worker_command=")]
    name = workers.partition(f"{WORKER} ")[2].split()[0]
    original = workers.replace(f"{WORKER} {name} ", "")
    assert with_warm_workers(original, name) == workers
    assert with_warm_workers(original, None) == original
    assert all(with_warm_workers(part, name) == part for part in command if part != workers)

    def parent() -> str:
        return " ".join(psutil.Process(psutil.Process().ppid()).cmdline())

    before = told_by(name)
    assert "warm_process.py" in ray.get(ray.remote(parent).remote())
    assert told_by(name)["forks"] >= max(1, before["forks"])

    @ray.remote(num_cpus=0)
    class Asked:
        def parent(self) -> str:
            return parent()

    for _ in range(_MOST_IDLE):  # these may have begun without a job
        asked = Asked.remote()
        assert "warm_process.py" in ray.get(asked.parent.remote())
        if told_by(name)["with_ray"] > before.get("with_ray", 0):
            break
    else:
        raise AssertionError("no worker of this job has Ray of the warm process")
    unfit = ("import", "threads", "identifiers", "opened")
    assert not [why for why in told_by(name)["refused"] if any(word in why for word in unfit)]


@pytest.mark.slow
def test_the_compiler_is_imported_without_a_question_for_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch 2.11 asks as it is imported; whether later ones do, this shows."""

    def opens() -> bool:
        raise AssertionError("asked for GPUs, which opens their driver")

    monkeypatch.setattr(torch.cuda, "is_available", opens)
    for name in ("torch._inductor.runtime.benchmarking", *warm.COMPILER):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in warm.COMPILER:
        importlib.import_module(name)
    assert torch.cuda.is_available is opens, "it is put back"
    assert "torch._inductor.compile_fx" in sys.modules


def test_a_warm_process_ends_in_the_middle_of_its_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that is refused does not wait for them."""
    begun, done = tmp_path / "begun", tmp_path / "done"
    (tmp_path / f"{NAME}.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(begun)!r}).touch()\ntime.sleep(3)\npathlib.Path({str(done)!r}).touch()"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with warm_process((NAME,)):
        wait_while_it_goes_on(begun.exists, time.monotonic, 0.01)
    assert not done.exists()


def test_the_one_that_imports_ray_ends_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of its imports too, which the first worker does not wait for."""
    begun = tmp_path / "begun"
    (tmp_path / f"{NAME}.py").write_text(
        f"import os, pathlib, time\nnew = pathlib.Path({str(begun)!r} + '.new')\n"
        f"new.write_text(str(os.getpid()))\nnew.rename({str(begun)!r})\ntime.sleep(600)"
    )
    (tmp_path / "default_worker.py").write_text("print('as always')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with started(("json",), (NAME,)) as found:
        command = [sys.executable, WORKER, found, tmp_path / "default_worker.py"]
        assert subprocess.check_output(command, env=environment()) == b"as always\n"
        wait_while_it_goes_on(begun.exists, time.monotonic, 0.01)
    gone(int(begun.read_text()))
