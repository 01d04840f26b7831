"""Ray's workers forked from a process that has imported what they import, in milliseconds.

A worker that starts as Ray starts it spends four to eight seconds of CPU on imports. The processes:

    server            forks one of the next kind for each environment that imports read
    with libraries    has imported torch, transformers and others; forks one for each Ray job
    with Ray          has imported Ray too, in the raylet's namespaces; forks the job's workers

None of them has a thread, a connection to Ray or a module of the project. A worker gets the
environment, arguments, directory, path and files of the process that Ray started for it
(warm/sitecustomize.py), which passes signals on and ends as the worker does. The worker is a
process of its own: it is killed by its pid, and its raylet sees it die.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = (
    "numpy", "pandas", "pyarrow.parquet", "pyarrow.dataset", "pyarrow.fs", "torch",
    "torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo", "torch._inductor",
    "transformers", "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama", "transformers.generation", "safetensors.torch",
    "peft", "pydantic", "yaml",
)  # fmt: skip
RAYS = ("ray.data", "ray.train.torch", "ray.tune", "ray._private.workers.setup_worker")
# What libraries read as they are imported; what the system reads as a process starts.
_READ_BY_IMPORTS = (
    "ACCELERATE", "ARROW", "CUDA", "GOMP", "HF_", "HOME", "HUGGING", "KMP", "LC_", "LANG", "MKL",
    "NUMEXPR", "OMP", "OPENBLAS", "PYTORCH", "TOKENIZERS", "TORCH", "TRANSFORMERS", "TRITON",
    "TMPDIR", "XDG",
)  # fmt: skip
_READ_AT_START = ("LD_", "MALLOC", "GLIBC", "PYTHON")
_NOT_READ = ("PYTHONPATH", "PYTHONUNBUFFERED")
_JOB = "RAY_JOB_ID"  # Ray reads it as it is imported
_IDLE_SECONDS = 20
_NAMESPACES = ("net", "uts", "ipc", "pid", "mnt")  # files are found by the old ones until the last
_MOST = 1 << 18  # bytes of a request


Warm = Callable[[Mapping[str, str]], dict[str, str]]


class Request(NamedTuple):
    """One worker: what it takes over, and the connection of the process that stands for it."""

    told: dict[str, Any]
    files: list[int]
    connection: socket.socket


@contextlib.contextmanager
def warm_workers() -> Iterator[Warm]:
    """Makes an environment one in which Rays get their workers from a server.

    It imports nothing before the first worker is asked for, and ends with the block. With
    WARM_WORKERS=0 there is none: each worker imports for itself.
    """
    if os.environ.get("WARM_WORKERS") == "0":
        yield dict
        return
    with tempfile.TemporaryDirectory(prefix="warm") as folder:
        place = f"{folder}/workers"
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(place)
        listening.listen(64)
        alive, held = os.pipe()
        server = subprocess.Popen(
            [sys.executable, __file__, str(listening.fileno()), str(alive)],
            pass_fds=(listening.fileno(), alive),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        listening.close()
        os.close(alive)
        try:
            yield partial(_warmed, place)
        finally:
            os.close(held)
            server.wait()


def _warmed(place: str, environment: Mapping[str, str]) -> dict[str, str]:
    path = f"{Path(__file__).parent}/warm", environment.get("PYTHONPATH")
    joined = os.pathsep.join(part for part in path if part)
    return {**environment, "WARM_WORKERS": place, "PYTHONPATH": joined}


def serve(listening: socket.socket, alive: int) -> Request | None:
    """Hand requests on until the other end of `alive` closes; returns a request in a new worker."""
    own = read(dict(os.environ), _READ_AT_START)
    below: dict[Any, socket.socket] = {}
    with selectors.DefaultSelector() as waiting:
        waiting.register(listening, selectors.EVENT_READ)
        waiting.register(alive, selectors.EVENT_READ)
        while True:
            if any(key.fd == alive for key, _ in waiting.select()):
                return None
            connection, _ = listening.accept()
            request = received(connection)
            environment = request.told["environment"]
            same = request.told["executable"] == sys.executable
            if not same or read(environment, _READ_AT_START) != own:
                answer(connection, 0)
                drop(request)
                continue
            kind = read(environment, _READ_BY_IMPORTS)
            if kind not in below:
                below[kind], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                if forked() == 0:
                    waiting.close()
                    listening.close()
                    os.close(alive)
                    drop(request)
                    for one in below.values():
                        one.close()
                    return with_libraries(theirs, environment)
                theirs.close()
            hand_on(below[kind], request)


def with_libraries(channel: socket.socket, environment: dict[str, str]) -> Request | None:
    """Import libraries in this environment, then hand each job's requests to a process of it."""
    put_on(environment)
    imported(LIBRARIES)
    below: dict[tuple[int, str | None], socket.socket] = {}
    while (request := handed(channel)) is not None:
        launcher = peer(request.connection)
        raylet = parent(launcher)
        job = raylet, request.told["environment"].get(_JOB)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if job in below:
            try:
                hand_on(below[job], request)
                continue
            except ConnectionError:  # it has had nothing to do, or another raylet had that number
                below.pop(job).close()
        below[job], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if forked() == 0:
            channel.close()
            for one in below.values():
                one.close()
            alive = os.pidfd_open(raylet)
            enter(launcher)
            drop(request)
            return with_ray(theirs, alive, request.told["environment"])
        theirs.close()
        hand_on(below[job], request)
    return None


def with_ray(channel: socket.socket, raylet: int, environment: dict[str, str]) -> Request | None:
    """Import Ray in a job's environment, then fork its workers for as long as the raylet lives."""
    put_on(environment)
    imported(RAYS)
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    started = [name for name in names[1:] if not name.startswith("jemalloc")]
    assert not started, f"imports have started threads, which a fork would lose: {started}"
    gc.collect()
    gc.freeze()
    workers: dict[int, Worker] = {}  # by the file that tells of their end
    is_there = True
    with selectors.DefaultSelector() as waiting:
        for one in (channel, raylet):
            waiting.register(one, selectors.EVENT_READ)
        while is_there or workers:
            found = waiting.select(None if workers else _IDLE_SECONDS)
            if not found:
                return None
            for key, _ in found:
                if key.fd == raylet:
                    is_there = False
                    waiting.unregister(raylet)
                elif key.fileobj is channel:
                    request = handed(channel) if is_there else None
                    if request is None:
                        return None
                    if (process := forked()) == 0:
                        waiting.close()
                        channel.close()
                        os.close(raylet)
                        for worker in workers.values():
                            worker.forget()
                        return request
                    worker = Worker(process, os.pidfd_open(process), request.connection)
                    workers[worker.end] = worker
                    for one in (worker.end, worker.connection):
                        waiting.register(one, selectors.EVENT_READ, worker)
                    answer(worker.connection, process)
                    for file in request.files:
                        os.close(file)
                elif workers.get(key.data.end) is not key.data:
                    pass  # ended in this round
                elif key.fd != key.data.end:
                    if not key.data.pass_on():
                        waiting.unregister(key.data.connection)
                else:
                    worker = workers.pop(key.fd)
                    for one in (worker.end, worker.connection):
                        if one in waiting.get_map():
                            waiting.unregister(one)
                    worker.bury()
    return None


class Worker(NamedTuple):
    """A process, the file that is readable once it has ended, and who stands for it."""

    process: int
    end: int
    connection: socket.socket

    def pass_on(self) -> bool:
        """A signal of who stands for it, whose death is its own; whether that one lives."""
        sent = number_from(self.connection)
        os.kill(self.process, sent or signal.SIGKILL)
        return bool(sent)

    def bury(self) -> None:
        _, status = os.waitpid(self.process, 0)
        answer(self.connection, os.waitstatus_to_exitcode(status))
        self.forget()

    def forget(self) -> None:
        os.close(self.end)
        self.connection.close()


def become(request: Request) -> None:
    """Run Ray's worker in this process, as one that Ray has started would."""
    told = request.told
    request.connection.close()
    for own, given in enumerate(request.files):
        os.dup2(given, own)
        os.close(given)
    put_on(told["environment"])
    arguments = told["argv"]
    if told["sets_up"]:
        from ray._private.runtime_env.context import RuntimeEnvContext, update_envs
        from ray._private.workers.setup_worker import parser

        options, arguments = parser.parse_known_args(arguments)
        context = options.serialized_runtime_env_context or "{}"
        update_envs(RuntimeEnvContext.deserialize(context).env_vars)
    os.chdir(told["cwd"])
    os.nice(told["niceness"] - os.nice(0))
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import numpy

    numpy.random.seed()  # the one generator that a fork does not seed anew by itself
    sys.argv = arguments
    sys.orig_argv[:] = [sys.executable, *arguments]
    sys.path[:] = [str(Path(arguments[0]).parent), *told["path"]]
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=arguments[0], __builtins__=__builtins__)
    sys.modules["__main__"] = module
    exec(compile(Path(arguments[0]).read_bytes(), arguments[0], "exec"), module.__dict__)


def read(environment: dict[str, str], names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The part of an environment whose names begin like these."""
    found = (item for item in environment.items() if item[0].startswith(names))
    return tuple(sorted(item for item in found if item[0] not in _NOT_READ))


def put_on(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def imported(modules: tuple[str, ...]) -> None:
    """Import them, without the garbage collector looking through it all again and again."""
    gc.disable()
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.enable()


def forked() -> int:
    """os.fork, which warns of the thread of an allocator that knows about forks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def enter(process: int) -> None:
    """Go where it is: processes that are forked from now on share its network, names and disks."""
    system = ctypes.CDLL(None, use_errno=True)
    files = [os.open(f"/proc/{process}/ns/{name}", os.O_RDONLY) for name in _NAMESPACES]
    for name, file in zip(_NAMESPACES, files, strict=True):
        if Path(f"/proc/self/ns/{name}").stat() != os.fstat(file) and system.setns(file, 0):
            raise OSError(ctypes.get_errno(), f"setns {name}")
        os.close(file)


def peer(connection: socket.socket) -> int:
    """The process at the other end, in this process's count."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", told)[0])


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def received(connection: socket.socket) -> Request:
    head, files, *_ = socket.recv_fds(connection, 4, 3)
    (size,) = struct.unpack("i", head)
    told = b""
    while len(told) < size and (more := connection.recv(size - len(told))):
        told += more
    return Request(json.loads(told), files, connection)


def hand_on(channel: socket.socket, request: Request) -> None:
    descriptors = [request.connection.fileno(), *request.files]
    socket.send_fds(channel, [json.dumps(request.told).encode()], descriptors)
    drop(request)


def handed(channel: socket.socket) -> Request | None:
    """A request that another process has handed on; None when that has ended."""
    told, descriptors, *_ = socket.recv_fds(channel, _MOST, 4)
    if not told:
        return None
    return Request(json.loads(told), descriptors[1:], socket.socket(fileno=descriptors[0]))


def drop(request: Request) -> None:
    request.connection.close()
    for file in request.files:
        os.close(file)


def answer(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        connection.send(struct.pack("i", number))


def number_from(connection: socket.socket) -> int:
    """What the other end has sent; 0 when it has ended."""
    try:
        return int(struct.unpack("i", connection.recv(4) or bytes(4))[0])
    except OSError:
        return 0


def main() -> None:
    listening, alive = (int(number) for number in sys.argv[1:])
    del sys.path[0]  # this file's directory
    request = serve(socket.socket(fileno=listening), alive)
    if request is None:
        os._exit(0)
    become(request)


if __name__ == "__main__":
    main()
