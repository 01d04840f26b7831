"""What processes that wait for work import, and which of them."""

import sys
from pathlib import Path

import psutil
import pytest
from processes import wait_while_it_goes_on

from pipelines.cluster.early import EARLY, ask_for, claims_of, import_early
from pipelines.cluster.waiting import start_waiting


def test_the_first_processes_import_what_a_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three; one module that cannot be imported keeps no other from it."""
    monkeypatch.syspath_prepend(tmp_path)
    claims = tmp_path / "early"
    outcomes = []
    for number in range(3):
        names = [f"{kind}_{number}_of_a_run" for kind in ("broken", "light", "heavy")]
        for name in names:
            text = "raise RuntimeError" if name.startswith("broken") else ""
            (tmp_path / f"{name}.py").write_text(text)
        is_first = import_early(f"2:no_such_module,{','.join(names)}", claims)
        outcomes.append((is_first, [name in sys.modules for name in names]))
        for name in names:
            sys.modules.pop(name, None)
    assert outcomes == [(True, [False, True, True])] * 2 + [(False, [False] * 3)]


def test_processes_that_are_asked_for_import_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, after the first ones."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_a_trial.py").write_text("")
    claims = tmp_path / "early"
    found = [import_early("1:of_a_trial", claims) for _ in range(2)]
    ask_for(2, claims)
    found += [import_early("1:of_a_trial", claims) for _ in range(3)]
    assert found == [True, False, True, True, False]


@pytest.mark.slow
def test_ray_starts_a_process_before_there_is_work_for_it(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.worker import global_worker

    def processes() -> set[int]:
        raylet = psutil.Process(global_worker.node.all_processes["raylet"][0].process.pid)
        return {process.pid for process in raylet.children()}

    before = processes()
    start_waiting(1)
    monkeypatch.setenv(EARLY, "0:torch")
    start_waiting(1)
    wait_while_it_goes_on(lambda: len(processes() - before) == 1, processes)
    (asked,) = claims_of(global_worker.node).iterdir()
    asked.unlink()


def test_a_driver_that_imports_the_module_imports_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only a process of Ray's has been started to wait."""
    from pipelines.cluster import early

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "asked_of_workers_alone.py").write_text("")
    monkeypatch.setenv(early.EARLY, "7:asked_of_workers_alone")
    early._in_this_process()
    assert "asked_of_workers_alone" not in sys.modules
