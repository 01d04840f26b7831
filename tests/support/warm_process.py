"""Warm processes: what workers of Ray import is imported once, and each worker is a fork.

None ever imports Ray: forks of a process that has would draw the same identifiers. A fork is asked
for by `warm_site/asks_for_fork.py`, and gets environment, files, directory, limits, signals and
namespaces of the process that asks. Variables that an import may look at are those of the warm
process: other ones have a warm process of their own, up to a number of these.

    python warm_process.py SOCKET LIFELINE

The first process imports nothing. It listens at SOCKET, and starts a warm one when one is asked
for. Who asks before that has imported everything starts as always, since Ray waits for its workers.
All end when the other end of LIFELINE is closed, a descriptor.
"""

import array
import contextlib
import ctypes
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import selectors
import shutil
import signal
import socket
import struct
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MODULES = (
    "numpy",
    "torch",
    "torch._dynamo",
    "pandas",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "pyarrow.fs",
    "pydantic.main",
    "pydantic.functional_validators",
    "omegaconf",
    "safetensors.torch",
    "scipy.stats",
    "datasets",
    "evaluate",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)
# What no import above looks at.
_FREE_PREFIXES = ("RAY_", "AWS_", "PYTEST_", "SPARSEPO_", "SPOT_", "MACHINES_", "AUTOSCALER_")
_FREE = {"PYTHONPATH", "PWD", "OLDPWD", "SHLVL", "_", "PATH", "SPT_NOENV", "TESTS_WARM"}
_FREE |= {"TORCHINDUCTOR_CACHE_DIR", "PL_DISABLE_FORK"}
_FREE |= {"KEPT", "HOSTS_FILE", "HOST_NAME", "HOST_DIRECTORY"}
_MOST = 4  # warm processes, each with half a gigabyte
_ENTERED = {"net": 0x40000000, "uts": 0x04000000, "ipc": 0x08000000, "mnt": 0x00020000}
_OF_PROCESSES = 0x20000000
_QUIET = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # a fork would lose the thread
_LIBRARY = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """Why a worker starts as always."""


class Listener:
    """A socket whose questions are answered until the lifeline is cut."""

    def __init__(self, address: str, lifeline: int) -> None:
        self.address, self.lifeline, self.is_fork = address, lifeline, False
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(address)
        self._socket.listen(64)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self._socket, selectors.EVENT_READ, self._take)
        self.selector.register(lifeline, selectors.EVENT_READ, self.end)

    def serve(self) -> Callable[[], None]:
        """Returns in a fork: what it is to do."""
        while True:
            for key, _ in self.selector.select():
                if (task := key.data()) is not None:
                    return task  # type: ignore[no-any-return]

    def end(self) -> None:
        os._exit(0)

    def close(self) -> None:
        """In a fork, which has no part in it."""
        self._socket.close()
        self.selector.close()

    def answer(
        self, connection: socket.socket, request: dict[str, Any], files: list[int]
    ) -> Callable[[], None] | None:
        raise NotImplementedError

    def _take(self) -> Callable[[], None] | None:
        connection, _ = self._socket.accept()
        files: list[int] = []
        try:
            request, files = _heard(connection)
            return self.answer(connection, request, files)
        except (Refused, OSError, ValueError) as error:
            if self.is_fork:
                raise
            self.note(f"refused: {error}")
            connection.close()
            return None
        finally:
            if not self.is_fork:
                for file in files:
                    os.close(file)

    def note(self, line: str) -> None:
        with Path(self.address).with_name("notes").open("a") as notes:
            notes.write(f"{line}\n")


class First(Listener):
    """Says which warm process to ask, and starts it."""

    def __init__(self, address: str, lifeline: int) -> None:
        super().__init__(address, lifeline)
        self._warm: dict[str, str] = {}

    def end(self) -> None:
        shutil.rmtree(Path(self.address).parent, ignore_errors=True)
        os._exit(0)

    def answer(
        self, connection: socket.socket, request: dict[str, Any], files: list[int]
    ) -> Callable[[], None] | None:
        environment = relevant(request["environment"])
        key = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:12]
        if request["executable"] != sys.executable:
            raise Refused(f"another Python, {request['executable']}")
        if key not in self._warm:
            self.note(f"warm with: {_difference(environment)}")
            if len(self._warm) == _MOST:
                raise Refused("one environment more")
            address = self._warm[key] = f"{self.address}.{key}"
            if os.fork() == 0:
                self.is_fork = True
                connection.close()
                for file in files:
                    os.close(file)
                self.close()
                return lambda: warmed(address, self.lifeline, environment).serve()()
        if not Path(self._warm[key]).exists():
            connection.close()
            return None
        connection.sendall(f"at {self._warm[key]}\n".encode())
        connection.close()
        return None


class Warm(Listener):
    """Has imported what workers import, and forks."""

    def __init__(self, address: str, lifeline: int, path: list[str]) -> None:
        super().__init__(address, lifeline)
        self._path = path
        self._forks: dict[int, socket.socket] = {}  # by a descriptor of the process
        self._top_level = {name.partition(".")[0] for name in sys.modules}
        self._drawing = [o for o in gc.get_objects() if issubclass(type(o), random.Random)]
        gc.freeze()

    def end(self) -> None:
        for process in self._forks:
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os._exit(0)

    def answer(
        self, connection: socket.socket, request: dict[str, Any], files: list[int]
    ) -> Callable[[], None] | None:
        asking = _peer(connection)
        self._check(asking, request)
        entered = [name for name in _ENTERED if _namespace(name) != _namespace(name, asking)]
        pid = _fork_beside(asking)
        if pid:
            process = os.pidfd_open(pid)
            self._forks[process] = connection
            self.selector.register(process, selectors.EVENT_READ, lambda: self._ended(process, pid))
            self.selector.register(connection, selectors.EVENT_READ, lambda: self._left(process))
            return None
        self.is_fork = True
        for name in entered:
            _set_namespace(f"/proc/{asking}/ns/{name}", _ENTERED[name])
        for process, other in self._forks.items():
            os.close(process)
            other.close()
        self.close()
        os.close(self.lifeline)
        _become(request, files)
        for drawing in self._drawing:
            drawing.seed()
        sys.modules["numpy"].random.seed()
        sys.modules["torch"].default_generator.seed()
        sys.path[:] = _path_of(request, self._path)
        connection.sendall(f"pid {os.getpid()}\n".encode())
        connection.close()
        return lambda: _main(request["argv"])

    def _check(self, asking: int, request: dict[str, Any]) -> None:
        if "ray" in sys.modules:
            raise Refused("Ray has been imported")
        if len(threads := list(Path("/proc/self/task").iterdir())) > 1:
            raise Refused(f"{len(threads)} threads")
        for name in ("user", "cgroup"):
            if _namespace(name) != _namespace(name, asking):
                raise Refused(f"another namespace, {name}")
        if Path("/proc/self/cgroup").read_text() != Path(f"/proc/{asking}/cgroup").read_text():
            raise Refused("another cgroup")
        for place in _places(request["environment"]):
            with contextlib.suppress(OSError):
                names = {found.name.partition(".")[0] for found in Path(place).iterdir()}
                if hidden := names & self._top_level - {"sitecustomize"}:
                    raise Refused(f"{place} has modules of its own: {hidden}")

    def _left(self, process: int) -> None:
        """Who asked has ended: so does the fork."""
        self.selector.unregister(self._forks[process])
        signal.pidfd_send_signal(process, signal.SIGKILL)

    def _ended(self, process: int, pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        connection = self._forks.pop(process)
        with contextlib.suppress(KeyError):
            self.selector.unregister(connection)
        self.selector.unregister(process)
        os.close(process)
        with contextlib.suppress(OSError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        connection.close()


def warmed(address: str, lifeline: int, environment: dict[str, str]) -> Warm:
    """This process, once it is warm."""
    path = _path_without_pythonpath()
    _replace_environment(environment | _QUIET)
    sys.path[:] = path
    gc.disable()
    for name in MODULES:
        importlib.import_module(name)
    return Warm(address, lifeline, path)


def relevant(environment: dict[str, str]) -> dict[str, str]:
    """What of it an import may look at."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _FREE and not name.startswith(_FREE_PREFIXES)
    }


def _difference(environment: dict[str, str]) -> str:
    own = relevant(dict(os.environ))
    names = {n for n in own.keys() | environment.keys() if own.get(n) != environment.get(n)}
    return ", ".join(f"{name}={environment.get(name)}" for name in sorted(names)) or "its own"


def _heard(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A question, and the files that came with it."""
    files = array.array("i")
    size, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_LEN(4 * files.itemsize))
    for _, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            files.frombytes(data)
    left, text = struct.unpack("!I", size)[0], bytearray()
    while len(text) < left:
        if not (more := connection.recv(left - len(text))):
            raise ValueError("half a question")
        text += more
    return json.loads(text), list(files)


def _peer(connection: socket.socket) -> int:
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, user, _ = struct.unpack("3i", told)
    if not pid or user != os.geteuid():
        raise Refused(f"another user, {user}")
    return int(pid)


def _namespace(name: str, pid: int | str = "self") -> str:
    return str(Path(f"/proc/{pid}/ns/{name}").readlink())


def _fork_beside(asking: int) -> int:
    """In the asking process's namespace of process numbers."""
    if _namespace("pid") == _namespace("pid", asking):
        return os.fork()
    _set_namespace(f"/proc/{asking}/ns/pid", _OF_PROCESSES)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            _set_namespace("/proc/self/ns/pid", _OF_PROCESSES)
    return pid


def _set_namespace(path: str, kind: int) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if _LIBRARY.setns(descriptor, kind):
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")
    finally:
        os.close(descriptor)


def _replace_environment(wanted: dict[str, str]) -> None:
    """One by one: the first variable stays where it lies, right behind the arguments, where Ray
    looks for them to set a title.
    """
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _become(request: dict[str, Any], files: list[int]) -> None:
    """This process as the raylet would have started it."""
    os.setsid()
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    os.fchdir(files[3])
    for file in files:
        os.close(file)
    os.umask(request["umask"])
    for name, limits in request["limits"].items():
        resource.setrlimit(getattr(resource, name), limits)
    os.setpriority(os.PRIO_PROCESS, 0, request["nice"])
    os.sched_setaffinity(0, request["cpus"])
    Path("/proc/self/oom_score_adj").write_text(request["oom"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    _replace_environment(request["environment"])
    tempfile.tempdir = None


def _path_without_pythonpath() -> list[str]:
    own = _places(os.environ)
    return [place for place in sys.path[1:] if place not in own]


def _places(environment: Mapping[str, str]) -> list[str]:
    """Of PYTHONPATH, as Python's `site` has them."""
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    return [os.path.abspath(place) for place in given if place]  # noqa: PTH100


def _path_of(request: dict[str, Any], rest: list[str]) -> list[str]:
    """Where a script finds modules, its own folder first."""
    found = [str(Path(request["argv"][0]).parent), *_places(request["environment"]), *rest]
    return list(dict.fromkeys(found))


def _main(argv: list[str]) -> None:
    """The script as Python would run it."""
    importlib.invalidate_caches()
    gc.enable()
    sys.argv, sys.orig_argv = list(argv), [sys.executable, *argv]
    main = types.ModuleType("__main__")
    main.__file__ = argv[0]
    sys.modules["__main__"] = main
    exec(compile(Path(argv[0]).read_bytes(), argv[0], "exec"), main.__dict__)


def _serve(address: str, lifeline: int) -> None:
    First(address, lifeline).serve()()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
