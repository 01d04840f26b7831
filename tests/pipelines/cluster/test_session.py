"""What of a session is known before Ray starts, and what the tests' own one has."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from processes import wait_while_it_goes_on

from pipelines.cluster.resources import Resources
from pipelines.cluster.session import (
    EarlySession,
    _few_processes,
    _own_ending,
    check_session,
    imports_ahead,
    starts_beside,
    told_of_start,
    with_light_agent,
    with_waiting,
)
from pipelines.errors import StageFailed, UserError
from pipelines.recipe.schema import RaySection


def test_a_scratch_folder_is_as_long_as_sockets_below_it_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """107 bytes of a path, less what Ray appends; bytes, not letters. A running cluster has a
    folder of its own.
    """
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    below = f"/session_2026-11-26_04-49-46_008654_{os.getpid()}/sockets/plasma_store"
    longest = "/" + "x" * (106 - len(below))
    check_session(RaySection())
    check_session(RaySection(temp_dir=longest))
    for wrong in (f"{longest}x", f"{longest[:-1]}é"):
        with pytest.raises(UserError, match=f"a path of {len(longest)} bytes at most"):
            check_session(RaySection(temp_dir=wrong))
        check_session(RaySection(temp_dir=wrong, address="auto"))


def test_a_ray_of_our_own_starts_few_processes_and_a_light_agent(ray_cluster: None) -> None:
    """No monitors of a cloud and of logs, no dashboard, an agent that serves nothing, and threads
    that sleep while they wait.
    """
    from ray._private import node, parameter, ray_constants, services
    from ray._private.worker import _global_node

    assert ray_constants.PROCESS_TYPE_RAYLET in _global_node.all_processes
    for idle in (ray_constants.PROCESS_TYPE_MONITOR, ray_constants.PROCESS_TYPE_DASHBOARD):
        assert idle not in _global_node.all_processes
    assert ray_constants.PROCESS_TYPE_LOG_MONITOR not in _global_node.all_processes
    (raylet,) = _global_node.all_processes[ray_constants.PROCESS_TYPE_RAYLET]
    children = psutil.Process(raylet.process.pid).children()
    (agent,) = (child for child in children if "DashboardAgent" in " ".join(child.cmdline()))
    assert not [one for one in agent.net_connections() if one.status == psutil.CONN_LISTEN]
    assert parameter.RayParams.__name__ == "RayParams", "Ray is as it was"
    assert node.Node.start_api_server.__name__ == "start_api_server"
    assert services.start_ray_process.__name__ == "start_ray_process"
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["GOMP_SPINCOUNT"] == "10000"


def test_a_node_is_waited_for_while_its_processes_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray asks once more after half a minute, and then no more."""
    from ray._private import services

    asked: list[str] = []

    def find(address: str, node: str) -> str:
        asked.append(node)
        if len(asked) < 3:
            raise RuntimeError("not yet")
        return address

    def begin(command: list[str]) -> Any:
        return SimpleNamespace(process=subprocess.Popen(command))

    monkeypatch.setattr(services, "get_node", find)
    monkeypatch.setattr(services, "start_ray_process", begin)
    with _few_processes(shows_logs=False):
        alive = services.start_ray_process(["sleep", "60"]).process
        assert services.get_node("here", "node") == "here" and len(asked) == 3
        services.start_ray_process(["true"]).process.wait()
        asked.clear()
        with pytest.raises(RuntimeError, match="not yet"):
            services.get_node("here", "node")
        assert len(asked) == 1, "it will not come"
    alive.kill()
    alive.wait()
    assert services.get_node is find and services.start_ray_process is begin


def test_ray_starts_as_many_processes_as_it_is_told(ray_cluster: None) -> None:
    """Of two CPUs, so two; the argument that says so is Ray's own, whose name no document holds."""
    from ray._private import ray_constants
    from ray._private.worker import _global_node

    (raylet,) = _global_node.all_processes[ray_constants.PROCESS_TYPE_RAYLET]
    command = Path(f"/proc/{raylet.process.pid}/cmdline").read_text().split("\0")
    changed = [with_waiting(part, 1) for part in command]
    assert [with_light_agent(part) for part in command] == command, "done already"
    assert any("node_agent.py" in part for part in command)
    assert set(changed) - set(command) == {"--num_prestart_python_workers=1"}
    assert set(command) - set(changed) == {"--num_prestart_python_workers=2"}
    for more in (2, 7):
        assert [with_waiting(part, more) for part in command] == command


@pytest.mark.parametrize(("cpus", "expected"), [(2, False), (7, False), (8, True), (96, True)])
def test_ray_starts_beside_a_command_where_processors_are_to_spare(
    cpus: int, expected: bool
) -> None:
    assert starts_beside(Resources(({"CPU": float(cpus)},))) is expected


@pytest.mark.parametrize(("spare", "is_certain"), [(1, False), (1000, False), (1000, True)])
def test_a_session_that_began_early_ends_with_its_command(
    spare: int, is_certain: bool, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its thread or without, when it was started and when the command was refused before."""
    import ray

    monkeypatch.setattr("pipelines.cluster.session._SPARE_CPUS", spare)
    before = threading.active_count()

    def run(is_refused: bool) -> None:
        with EarlySession(RaySection(num_cpus=2)) as session:
            session.begin(is_certain)
            assert threading.active_count() == before + (spare == 1 or is_certain)
            if is_refused:
                raise UserError("refused")
            for _ in range(2):
                session.start()
                assert ray.is_initialized()

    def ended() -> bool:
        limit = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < limit:
            time.sleep(0.01)
        return threading.active_count() == before and ray.is_initialized()

    run(is_refused=False)
    assert ended(), "and the tests' own Ray, which was there before, goes on"
    with pytest.raises(UserError):
        run(is_refused=True)
    assert ended()


@pytest.mark.parametrize(
    ("error", "type_", "line"),
    [
        (
            Exception("The current node timed out during startup. This\ncould happen"),
            StageFailed,
            "Ray did not start on this machine: The current node timed out during startup. This; "
            "its logs are in /scratch/session_latest/logs; if the machine is busy or short of "
            "memory, run the same command again later",
        ),
        (OSError(28, "No space left on device"), UserError,
         "ray.temp_dir = '/scratch': [Errno 28] No space left on device"),
    ],
)  # fmt: skip
def test_a_ray_that_does_not_start_is_one_line(
    error: Exception, type_: type[Exception], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.shutdown", lambda: None)  # the tests' own goes on
    with pytest.raises(type_) as found, told_of_start(RaySection(temp_dir="/scratch")):
        raise error
    assert str(found.value) == line


@pytest.mark.parametrize("thread", ["main", "another"])
def test_what_sigterm_does_outlives_the_start_of_ray(thread: str) -> None:
    """Ray's library sets the system's action, as `signal` of the C library does here."""
    ended: list[int] = []

    def start() -> None:
        with _own_ending():
            ctypes.CDLL(None).signal(signal.SIGTERM, 1)  # 1 = ignored

    before = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    try:
        if thread == "main":
            start()
        else:
            other = threading.Thread(target=start)
            other.start()
            other.join()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [signal.SIGTERM]


def test_workers_imports_begin_where_the_command_is_still_to_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, and not beside a cluster; they end with the block, at once."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = set(psutil.Process().children())

    def begun() -> list[psutil.Process]:
        """Processes that have come; those of before may end meanwhile."""
        return [child for child in psutil.Process().children() if child not in before]

    with imports_ahead(RaySection()):
        assert not begun(), "torch is here"
    monkeypatch.delitem(sys.modules, "torch")
    for config in (RaySection(address="auto"), RaySection(warm_workers=False)):
        with imports_ahead(config):
            assert not begun()
    with imports_ahead(RaySection()), imports_ahead(RaySection()):
        (process,) = begun()
        # It has none for a moment, as its program begins.
        wait_while_it_goes_on(lambda: bool(process.cmdline()), process.cpu_times)
        assert "warm_process.py" in " ".join(process.cmdline())
    assert not process.is_running()
