"""A warm process: what Ray's workers import is imported once, and each worker is a fork of it.

    python warm_process.py NAME LIFELINE MODULE,MODULE,... MODULE,MODULE,...

It listens at the abstract socket NAME, which goes with it. `warm_worker.py` asks there, and gets a
fork that has its environment, files, directory, limits and signals. All end when the other end of
LIFELINE is closed, a descriptor. SIGTERM ends it as long as it imports.

The second modules are Ray's, which looks at its variables as it is imported: the job and the raylet
are among them. So a first fork imports them, with what the workers of the first job will have, and
those workers are forks of it; others import Ray themselves. No fork may draw the identifiers that
another one draws, so importing Ray must draw none.

A process that forks must have one thread, and must not have opened the GPUs, since Ray tells a
worker later which is its own.
"""

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import resource
import selectors
import signal
import socket
import struct
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Of a worker's environment: what no import looks at, or what Ray says to a process that runs.
_FREE_PREFIX = "RAY_"
_FREE = {"PWD", "OLDPWD", "SHLVL", "_", "SPT_NOENV", "CUDA_VISIBLE_DEVICES", "PL_DISABLE_FORK"}
# Of what Ray says, the job of a worker that is started for one, which the first driver has begun.
_FIRST_JOB = {"RAY_JOB_ID": "01000000"}
_SEEN_BY_RAY = {"CUDA_VISIBLE_DEVICES"}  # besides, as it is imported
_PATH = "PYTHONPATH"  # is looked at by itself
# No import may start a thread, which a fork would lack.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
# The first variable, right behind the arguments: Ray looks there for room for a process's title.
MARK = "SPARSEPO_WARM_PROCESS"
_COULD_NOT_BEGIN = 125  # a fork's exit code
_PROBES = 2  # forks that show what forks draw
_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED


class Refused(Exception):
    """Why a worker starts as always."""


class WarmProcess:
    """Has imported what workers import, and forks."""

    def __init__(self, name: str, lifeline: int, modules: list[str], of_ray: list[str]) -> None:
        self._name, self._lifeline, self._of_ray = name, lifeline, of_ray
        self._is_fork = False
        self._told: dict[str, str] = {}  # what the one with Ray was told
        self._before: list[str] = []  # what Ray's import set before all else on the path
        self._begin(listening_at(name))
        self._environment = relevant(dict(os.environ))
        self._places = places(dict(os.environ))
        gc.disable()
        self._import(modules)
        del sys.path[0]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from here on its forks end before it
        self._note_imports(may_have_ray=False)

    def _begin(self, at: socket.socket) -> None:
        self._socket = at
        self._forks: dict[int, socket.socket] = {}  # by a descriptor of the process
        self._refused = Counter[str]()
        self._count = 0
        self._other, self._others_process = "", -1  # the one with Ray: its name, a descriptor of it
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ, self._take)
        self._selector.register(self._lifeline, selectors.EVENT_READ, self._end)

    def serve(self) -> Callable[[], None]:
        """Returns in a fork: what it is to do."""
        while True:
            # One event at a time: it may end what another of the same moment is about.
            key, _ = self._selector.select()[0]
            if (task := key.data()) is not None:
                return task  # type: ignore[no-any-return]

    def _import(self, modules: list[str]) -> None:
        for name in modules:
            try:
                importlib.import_module(name)
            except Exception as error:  # the worker that needs it says so
                self._refused[f"cannot import {name}: {error}"] += 1

    def _note_imports(self, may_have_ray: bool) -> None:
        self._unfit = unfit(may_have_ray)
        self._left = relevant(dict(os.environ))
        self._names = {name.partition(".")[0] for name in sys.modules}
        files = (getattr(module, "__file__", None) for module in sys.modules.values())
        self._files = [file for file in files if file]
        gc.unfreeze()
        self._drawing = [o for o in gc.get_objects() if issubclass(type(o), random.Random)]
        gc.freeze()

    def _end(self) -> None:
        for process in self._forks:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        if self._other:  # it ends its forks itself, if it does not import
            signal.pidfd_send_signal(self._others_process, signal.SIGTERM)
        os._exit(0)

    def _take(self) -> Callable[[], None] | None:
        connection, _ = self._socket.accept()
        files: list[int] = []
        try:
            asking = _peer(connection)
            request, files = _heard(connection)
            if "argv" in request:
                self._check(asking, request)
                of_ray = told_ray(request["environment"])
                if self._of_ray and (task := self._fork_with_ray(of_ray | _FIRST_JOB)):
                    connection.close()
                    return task
                if self._other and of_ray == self._told and request["may_have_ray"]:
                    connection.sendall(f"ask {self._other}\n".encode())
                else:
                    return self._fork(connection, request, files)
            else:
                said = {"forks": self._count, "refused": self._refused, "other": self._other}
                connection.sendall(json.dumps(said).encode())
        except (Refused, OSError, ValueError) as error:
            if self._is_fork:
                raise
            self._refused[str(error)] += 1
        finally:
            if not self._is_fork:
                for file in files:
                    os.close(file)
        connection.close()
        return None

    def _fork(
        self, connection: socket.socket, request: dict[str, Any], files: list[int]
    ) -> Callable[[], None] | None:
        pid = os.fork()
        if pid:
            self._count += 1
            process = os.pidfd_open(pid)
            self._forks[process] = connection
            self._selector.register(
                process, selectors.EVENT_READ, lambda: self._has_ended(process, pid)
            )
            self._selector.register(
                connection, selectors.EVENT_READ, lambda: self._is_forsaken(process)
            )
            return None
        self._is_fork = True
        self._leave()
        os.close(self._lifeline)
        try:
            _become(request, files)
        except (OSError, ValueError):
            os._exit(_COULD_NOT_BEGIN)
        rest = [place for place in sys.path if place not in self._places]
        sys.path[:] = [*places(request["environment"]), *rest]
        self._draw_anew()
        connection.sendall(f"pid {os.getpid()}\n".encode())
        connection.close()
        return lambda: _main(request["argv"], self._before)

    def _fork_with_ray(self, told: dict[str, str]) -> Callable[[], None] | None:
        """The one that has Ray, and has told it this; with the first question.

        Returns: in that fork: what it is to do.
        """
        of_ray, self._of_ray, name = self._of_ray, [], f"{self._name}-ray"
        at = listening_at(name)  # already: who is sent there waits while it imports
        if pid := os.fork():
            at.close()
            self._told, self._other, self._others_process = told, name, os.pidfd_open(pid)
            self._selector.register(
                self._others_process, selectors.EVENT_READ, lambda: self._is_without_ray(pid)
            )
            return None
        self._leave()
        return lambda: self._serve_with_ray(told, of_ray, at)

    def _serve_with_ray(self, told: dict[str, str], modules: list[str], at: socket.socket) -> None:
        """Import it, and serve those who are sent to it."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._begin(at)
        for name in told_ray(dict(os.environ)).keys() - told.keys():
            del os.environ[name]
        os.environ.update(told)
        path = list(sys.path)
        with drawing_no_identifier():
            self._import(modules)
        self._before = [place for place in sys.path if place not in path]
        sys.path[:] = path
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._note_imports(may_have_ray=True)
        self.serve()()

    def _is_without_ray(self, pid: int) -> None:
        """The one with Ray has ended: workers import Ray themselves."""
        os.waitpid(pid, 0)
        self._selector.unregister(self._others_process)
        os.close(self._others_process)
        self._other = ""

    def _leave(self) -> None:
        """In a fork: what is the other's alone."""
        for process, connection in self._forks.items():
            os.close(process)
            connection.close()
        if self._other:
            os.close(self._others_process)
        self._socket.close()
        self._selector.close()

    def _check(self, asking: int, request: dict[str, Any]) -> None:
        if self._unfit:
            raise Refused(self._unfit)
        if request["executable"] != sys.executable:
            raise Refused(f"another Python, {request['executable']}")
        if Path("/proc/self/cgroup").read_text() != Path(f"/proc/{asking}/cgroup").read_text():
            raise Refused("another cgroup")
        its, own, left = relevant(request["environment"]), self._environment, self._left
        # What an import sets if it is not set may be set already.
        names = its.keys() | own.keys()
        if other := sorted(n for n in names if its.get(n) not in (own.get(n), left.get(n))):
            raise Refused(f"another value of {', '.join(other)}")
        its_places = places(request["environment"])
        for place in its_places:
            if place not in self._places and (hidden := self._names & names_in(place)):
                raise Refused(f"{place} has modules of its own: {', '.join(sorted(hidden))}")
        for place in self._places:
            if place not in its_places and any(f.startswith(f"{place}/") for f in self._files):
                raise Refused(f"modules of {place}, which is not on its path")

    def _is_forsaken(self, process: int) -> None:
        """Who asked has ended: so does the fork."""
        self._selector.unregister(self._forks[process])
        signal.pidfd_send_signal(process, signal.SIGKILL)

    def _has_ended(self, process: int, pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) == _COULD_NOT_BEGIN:
            self._refused["a fork could not take what it was to have"] += 1
        connection = self._forks.pop(process)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        self._selector.unregister(process)
        os.close(process)
        with contextlib.suppress(OSError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        connection.close()

    def _draw_anew(self) -> None:
        """Random numbers of this fork's own, in all that has begun to draw some."""
        for drawing in self._drawing:
            drawing.seed()
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed()
        if torch := sys.modules.get("torch"):
            torch.default_generator.seed()
            if threads := os.environ.get("OMP_NUM_THREADS"):
                torch.set_num_threads(int(threads))


def unfit(may_have_ray: bool) -> str:
    """Why no worker may be a fork of this process; empty where it may."""
    has_ray = "ray" in sys.modules
    if has_ray and not may_have_ray:  # and has told it nothing of a worker
        return "Ray has been imported"
    if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        return f"{threads} threads"
    if has_ray and len(set(drawn_by_forks())) < _PROBES:
        return "forks draw the same identifiers"
    return "the GPUs have been opened" if has_opened_gpus() else ""


@contextlib.contextmanager
def drawing_no_identifier() -> Iterator[None]:
    """Ray's classes of actors that are imported meanwhile have identifiers of the system's.

    Ray's own generator, once it has begun, goes on in all forks in the same way.
    """
    try:
        import ray.actor
    except ImportError:  # whoever imports it next is told
        yield
        return
    identifiers: Any = ray.actor.ActorClassID

    class OfTheSystem:
        @staticmethod
        def from_random() -> Any:
            return identifiers(os.urandom(identifiers.size()))

    ray.actor.ActorClassID = OfTheSystem
    try:
        yield
    finally:
        ray.actor.ActorClassID = identifiers


def drawn_by_forks() -> list[bytes]:
    """An identifier of Ray's by each of a few forks of this process, which has one thread."""
    found = []
    for _ in range(_PROBES):
        ours, its = os.pipe()
        if not (pid := os.fork()):
            try:
                os.write(its, sys.modules["ray"].WorkerID.from_random().binary())
            finally:
                os._exit(0)
        os.close(its)
        found.append(os.read(ours, 1024))
        os.close(ours)
        os.waitpid(pid, 0)
    return found


def has_opened_gpus() -> bool:
    """Whether something in this process has started the GPUs' driver.

    The driver reads once which GPUs a process may use, and no fork can use what another opened. The
    question itself starts nothing.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _NOT_INITIALIZED)


def relevant(environment: dict[str, str]) -> dict[str, str]:
    """What of it an import may look at."""
    return {
        name: value
        for name, value in environment.items()
        if name not in {MARK, _PATH, *_FREE, *ONE_THREAD} and not name.startswith(_FREE_PREFIX)
    }


def told_ray(environment: dict[str, str]) -> dict[str, str]:
    """What of it Ray looks at as it is imported."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_FREE_PREFIX) or name in _SEEN_BY_RAY
    }


def listening_at(name: str) -> socket.socket:
    at = socket.socket(socket.AF_UNIX)
    at.bind(f"\0{name}")
    at.listen(128)
    return at


def places(environment: dict[str, str]) -> list[str]:
    """Of PYTHONPATH, as Python's `site` has them, each once."""
    given = environment.get(_PATH, "").split(os.pathsep)
    return list(dict.fromkeys(os.path.abspath(place) for place in given if place))  # noqa: PTH100


def names_in(place: str) -> set[str]:
    """What could be a module there."""
    try:
        return {found.name.partition(".")[0] for found in Path(place).iterdir()}
    except OSError:  # a file, or not there
        return set()


def _heard(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A question, and the files that came with it."""
    files = array.array("i")
    size, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_LEN(4 * files.itemsize))
    for _, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            files.frombytes(data)
    if len(size) < 4:
        raise ValueError("no question")
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


def _become(request: dict[str, Any], files: list[int]) -> None:
    """This process as the raylet would have started it, in a session of processes of its own."""
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
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    wanted = {MARK: os.environ.get(MARK, ""), **request["environment"]}
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    tempfile.tempdir = None


def _main(argv: list[str], before: list[str]) -> None:
    """The script as Python would run it."""
    importlib.invalidate_caches()
    gc.enable()
    sys.argv, sys.orig_argv = list(argv), [sys.executable, *argv]
    sys.path[:0] = [*before, str(Path(argv[0]).parent)]
    main = types.ModuleType("__main__")
    main.__file__ = argv[0]
    sys.modules["__main__"] = main
    exec(compile(Path(argv[0]).read_bytes(), argv[0], "exec"), main.__dict__)


def _serve(name: str, lifeline: str, *modules: str) -> None:
    sys.path[0] = str(Path(__file__).parents[2])  # of the packages; no worker has this folder
    names = [names.split(",") if names else [] for names in modules]
    WarmProcess(name, int(lifeline), *names).serve()()


if __name__ == "__main__":
    _serve(*sys.argv[1:5])
