"""Connect to Ray: a running cluster if one is named, else a private one on this machine."""

import contextlib
import ctypes
import inspect
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

from pipelines.cluster.resources import Resources
from pipelines.cluster.waiting import waiting_with_imports
from pipelines.cluster.warm import COMPILER, IMPORTED, OF_RAY, warm_process, warm_raylets
from pipelines.errors import StageFailed, UserError
from pipelines.models import TRUSTED_CODE, quick_imports
from pipelines.recipe import RaySection
from pipelines.storage import Beside, spent

Result = TypeVar("Result")
_NOISE = b"Set ray log level from environment variable"
# How many processes Ray leaves alone that are idle; by default none while an actor has all CPUs.
# A run takes about eight: helpers of Ray Data and of Ray Train, and those that work.
_KEPT = "RAY_num_workers_soft_limit", "8"
_WAITING = 7  # of them from the start; Ray alone would start one per CPU
_SPARE_CPUS = 8  # with fewer a start beside the command would keep that from its work
_START_SECONDS = 600.0  # of a node whose processes live
_ACTION_BYTES = 256  # no less than a struct sigaction has anywhere
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job

# What Ray puts below its directory, and how long a socket's path may be.
_LONGEST_SOCKET = "{}/session_2000-01-01_00-00-00_000000_{}/sockets/plasma_store"
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107

# The warm process of `imports_ahead`.
_ahead: str | None = None


def cluster_address(config: RaySection) -> str | None:
    """Address of the running cluster that a command uses; None for its own Ray on this machine."""
    return config.address or os.environ.get("RAY_ADDRESS")


@contextlib.contextmanager
def imports_ahead(config: RaySection) -> Iterator[None]:
    """What workers of a Ray of our own import is imported from here on; sessions of this block find
    it done. One session at a time.

    For a command that is to import torch for its own work. One that has it takes no time worth it
    before its session: there nothing is done.
    """
    global _ahead
    if cluster_address(config) or _ahead is not None or "torch" in sys.modules:
        yield
        return
    _set_variables()
    with _warm_process(config) as _ahead:
        try:
            yield
        finally:
            _ahead = None


@contextlib.contextmanager
def ray_session(config: RaySection) -> Iterator[None]:
    """Ray for the duration of a command; leaves a session that was already there alone.

    Raises: UserError for a ray.address that does not answer or refuses the token, or a ray.temp_dir
        that Ray cannot use.
    """
    _set_variables()
    with quick_imports():
        import ray

    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    if ray.is_initialized():
        yield
        return
    with contextlib.ExitStack() as session:
        address = cluster_address(config)
        if address:
            try:
                with spent("ray"), _without_noise(), _own_ending():
                    ray.init(
                        address=address,
                        runtime_env=_environment(),
                        logging_level=logging.WARNING,
                        log_to_driver=config.worker_logs,
                    )
            except (ConnectionError, ray.exceptions.AuthenticationError) as error:
                said = str(error).splitlines()[0]
                raise UserError(f"ray.address = {address!r}: {said}") from error
        else:
            # Nothing preempts a private cluster of one machine, and nobody scrapes it.
            for name, value in (
                ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"),
                ("RAY_TRAIN_METRICS_ENABLED", "0"),
                ("RAY_enable_metrics_collection", "0"),
                _KEPT,
            ):
                os.environ.setdefault(name, value)
            if starts_beside(Resources.of_this_machine(config)):
                session.enter_context(waiting_with_imports())
            warm = _ahead or session.enter_context(_warm_process(config))
            with told_of_start(config), spent("ray"), _without_noise(), _own_ending():
                _start_local(config, warm)
        try:
            yield
        finally:
            with spent("ray"):
                ray.shutdown()


class EarlySession:
    """A session that can begin before the command needs it; it ends with the context.

    A command that never begins nor starts one has none.
    """

    def __init__(self, config: RaySection) -> None:
        self._config, self._is_started = config, False
        self._beside: Beside[None] | None = None
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> "EarlySession":
        return self

    def begin(self, is_certain: bool = False) -> None:
        """What of a Ray of this machine can begin does; the command goes on.

        It starts in a thread where there are CPUs to spare; a command that is refused then waits
        for the start, to end what it has begun. Elsewhere its workers' imports begin.

        Args:
            is_certain: the command will not be refused: Ray starts in a thread on any machine.
        """
        if cluster_address(self._config):
            return
        if not (is_certain or starts_beside(Resources.of_this_machine(self._config))):
            self._ends.enter_context(imports_ahead(self._config))
            return
        with quick_imports():  # here: modules that import each other are imported by one thread
            import ray  # noqa: F401
        self._beside = Beside(ray_session(self._config))
        self._ends.callback(self._beside.leave)

    def start(self) -> None:
        """Returns when Ray is there. Raises: as `ray_session` does."""
        if self._is_started:
            return
        if self._beside is None:
            self._ends.enter_context(ray_session(self._config))
        else:
            self._beside.entered()
        self._is_started = True

    def __exit__(self, *error: Any) -> None:
        self._ends.__exit__(*error)


def _set_variables() -> None:
    """Quieter and quicker local sessions; a user's own settings win."""
    for name, value in (
        ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2"),
        ("RAY_AIR_NEW_OUTPUT", "0"),
        ("RAY_WARN_BLOCKING_GET_INSIDE_ASYNC", "0"),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("RAY_BACKEND_LOG_LEVEL", "fatal"),
        ("RAY_worker_maximum_startup_concurrency", "16"),
        # Threads that wait sleep, or they would keep others of this machine from working. Up to the
        # next part of the same work they spin, since waking takes longer: about 0.2 ms.
        ("OMP_WAIT_POLICY", "PASSIVE"),
        ("GOMP_SPINCOUNT", "10000"),
        # Look for new log files twice a second instead of ten times.
        ("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0"),
    ):
        os.environ.setdefault(name, value)


def _warm_process(config: RaySection) -> contextlib.AbstractContextManager[str | None]:
    has_gpus = Resources.of_this_machine(config).total("GPU")
    modules = IMPORTED + COMPILER if has_gpus else IMPORTED
    return warm_process(modules if config.warm_workers else (), OF_RAY)


def starts_beside(machine: Resources) -> bool:
    """Whether a Ray of our own, and processes of it, start beside what needs them."""
    return machine.total("CPU") >= _SPARE_CPUS


def check_session(config: RaySection) -> None:
    """UserError for a directory that a local Ray's sockets cannot lie in."""
    if config.temp_dir is None or cluster_address(config):
        return
    longest = len(os.fsencode(_LONGEST_SOCKET.format(config.temp_dir, os.getpid())))
    if longest > _SOCKET_BYTES:
        most = _SOCKET_BYTES - longest + len(os.fsencode(config.temp_dir))
        raise UserError(
            f"ray.temp_dir = {config.temp_dir!r}: a path of {most} bytes at most, Ray's sockets "
            "lie deep below it"
        )


def _environment() -> dict[str, Any] | None:
    """What workers on other machines take over of this process's environment.

    A submitted job's workers have the job's own.
    """
    listed = os.environ.get(TRUSTED_CODE)
    return {"env_vars": {TRUSTED_CODE: listed}} if listed and _JOB not in os.environ else None


@contextlib.contextmanager
def told_of_start(config: RaySection) -> Iterator[None]:
    """What keeps a Ray of our own from starting, in a line."""
    try:
        yield
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if isinstance(error, OSError) and config.temp_dir is not None:
            raise UserError(f"ray.temp_dir = {config.temp_dir!r}: {said}") from error
        import ray

        ray.shutdown()  # what of it has started
        raise StageFailed(
            f"Ray did not start on this machine: {said}; its logs are in "
            f"{config.temp_dir or '/tmp/ray'}/session_latest/logs; if the machine is busy or short "
            "of memory, run the same command again later"
        ) from error


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Keep one line of Ray's start off the terminal: that it is as quiet as we have asked it to be.

    It comes from below Python, so that what the process writes is held back meanwhile.
    """
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, ValueError, AttributeError):  # there is no such output
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if _NOISE not in line:
                    os.write(2, line)


@contextlib.contextmanager
def _own_ending() -> Iterator[None]:
    """Keep what this process does on SIGTERM; Ray would print where it was instead, or that a
    thread cannot have it so.

    Ray's library sets the system's action too, from any thread; Python sets it from the first
    alone.
    """
    is_main = threading.current_thread() is threading.main_thread()
    kept = signal.getsignal(signal.SIGTERM)
    library, action = ctypes.CDLL(None), ctypes.create_string_buffer(_ACTION_BYTES)
    library.sigaction(signal.SIGTERM, None, action)
    logger = logging.getLogger("ray._private.worker")
    logger.addFilter(_says_nothing_of_endings)
    try:
        yield
    finally:
        logger.removeFilter(_says_nothing_of_endings)
        library.sigaction(signal.SIGTERM, action, None)
        if is_main and kept is not None:
            signal.signal(signal.SIGTERM, kept)


def _says_nothing_of_endings(record: logging.LogRecord) -> bool:
    return "SIGTERM" not in record.getMessage()


def _start_local(config: RaySection, warm: str | None) -> None:
    import ray

    with warm_raylets(warm), _few_processes(config.worker_logs):
        ray.init(
            address="local",
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=config.worker_logs,
            _temp_dir=config.temp_dir,
        )


@contextlib.contextmanager
def _few_processes(shows_logs: bool) -> Iterator[None]:
    """Start a Ray of our own at once, and without processes that nobody asks for anything.

    One asks a cloud for machines, one reads workers' logs, which are rarely shown, and one counts
    Ray's users in place of a dashboard. The agent of the node has nothing to serve. A node is
    waited for while its processes live: on a busy machine it takes longer than the half minute that
    Ray gives it. `ray.init` has no option for any of it.
    """
    from ray._private import node, parameter, services

    every, start = parameter.RayParams, node.Node.start_api_server
    start_process, find_node = services.start_ray_process, services.get_node
    begun: list[Any] = []
    settings = {
        "no_monitor": True,
        "include_log_monitor": shows_logs,
    }
    known = inspect.signature(every).parameters

    def chosen(**given: Any) -> Any:
        return every(**given, **{k: v for k, v in settings.items() if k in known})

    def without(self: Any, **given: Any) -> None:
        self._webui_url = ""

    def started(command: list[str], *given: Any, **named: Any) -> Any:
        parts = [with_light_agent(with_waiting(part, _WAITING)) for part in command]
        told = start_process(parts, *given, **named)
        begun.append(told.process)
        return told

    def found(*given: Any) -> Any:
        limit = time.monotonic() + _START_SECONDS
        while True:
            try:
                return find_node(*given)
            except RuntimeError:
                has_ended = any(process.poll() is not None for process in begun)
                if has_ended or time.monotonic() > limit:
                    raise
                time.sleep(0.1)

    parameter.RayParams = chosen
    services.start_ray_process, services.get_node = started, found
    node.Node.start_api_server = without
    try:
        yield
    finally:
        parameter.RayParams, node.Node.start_api_server = every, start
        services.start_ray_process, services.get_node = start_process, find_node


def with_waiting(argument: str, most: int) -> str:
    """An argument of the raylet's as it is, but for how many processes it starts at once."""
    name, _, value = argument.partition("=")
    if name != "--num_prestart_python_workers":
        return argument
    return f"{name}={min(int(value), most)}"


def with_light_agent(argument: str) -> str:
    """An argument of the raylet's as it is, but for the agent that it starts."""
    import ray

    name, separator, command = argument.partition("=")
    own = str(Path(__file__).with_name("node_agent.py"))
    if name != "--dashboard_agent_command" or " " in own:
        return argument
    agent = str(Path(ray.__file__).with_name("dashboard") / "agent.py")
    return f"{name}{separator}{command.replace(agent, own)}"


def interruptible(call: Callable[[], Result]) -> Result:
    """Run `call` in a thread of its own.

    In the main thread Ray Train and Ray Tune replace the SIGINT handler.
    """
    outcome: Future[Result] = Future()

    def body() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # handed to the caller
            outcome.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    while not outcome.done():
        wait([outcome], timeout=0.5)
    return outcome.result()
