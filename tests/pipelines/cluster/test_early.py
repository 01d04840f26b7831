"""What processes that wait for work import, and which of them."""

import sys
from pathlib import Path

import pytest

from pipelines.cluster.early import import_early


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
