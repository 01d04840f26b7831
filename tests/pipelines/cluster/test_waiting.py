"""Processes that wait for work before there is any."""

import importlib.util
import os

import psutil
import pytest
from processes import wait_while_it_goes_on

from pipelines.cluster.waiting import PRELOADS, start_waiting, waiting_with_imports


@pytest.mark.slow
def test_ray_starts_a_process_before_there_is_work_for_it(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where processes import Ray's parts early; the tests' own Ray has too few CPUs for that."""
    from ray._private.worker import global_worker

    def processes() -> set[int]:
        raylet = psutil.Process(global_worker.node.all_processes["raylet"][0].process.pid)
        return {process.pid for process in raylet.children()}

    monkeypatch.delenv(PRELOADS, raising=False)
    before = processes()
    start_waiting(1)
    with waiting_with_imports():
        assert all(map(importlib.util.find_spec, os.environ[PRELOADS].split(",")))
        start_waiting(1)
    assert PRELOADS not in os.environ
    wait_while_it_goes_on(lambda: len(processes() - before) == 1, processes)
