"""Whether a sweep goes on with what Ray Tune has kept of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import StageFailed
from pipelines.storage.store import RunStore
from pipelines.sweep.space import Sweep
from pipelines.sweep.trial_record import Trial, write_trial
from pipelines.sweep.tune_state import go_on

GRID = {"objective.beta": {"grid": [0.1, 0.2]}, "train.lora": {"grid": [None, {"rank": 4}]}}
SEARCHED = {"objective.beta": {"uniform": [0.1, 0.2]}}


def sweep_in(folder: Path, space: dict[str, Any], **more: Any) -> Sweep:
    body = {"run_dir": str(folder), "recipe": "hh-dpo", "space": space, **more}
    return Sweep.model_validate(body)


def tell(sweep: Sweep, *configs: dict[str, Any]) -> None:
    """As Tune writes it: every trial a JSON text in JSON."""
    trials = [[json.dumps({"config": config}), "{}"] for config in configs]
    path = ".ray/sweep/experiment_state-2026.json"
    RunStore(sweep.run_dir).write_json(path, {"trial_data": trials})


def gone_on(sweep: Sweep) -> tuple[bool, list[str]]:
    """Whether Tune goes on, and what was said; its state is removed if not."""
    said: list[str] = []
    found = go_on(sweep, lambda path: f"restored {path}", said.append)
    store = RunStore(sweep.run_dir)
    assert store.exists(".ray") is (found is not None) is not bool(said)
    assert found in (None, f"restored {store.root}/.ray/sweep")
    return found is not None, said


def test_points_of_a_grid_are_the_sweeps(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path, GRID)
    points = sweep.points or []
    tell(sweep, *({"listed": {"number": n, "point": point}} for n, point in enumerate(points)))
    assert len(points) == 4 and gone_on(sweep) == (True, [])
    for number, point in ((0, points[1]), (4, points[0]), (-1, points[3]), (0.5, points[0])):
        tell(sweep, {"listed": {"number": number, "point": point}})
        is_on, said = gone_on(sweep)
        assert not is_on and f"/.ray is damaged: trial {number} of " in said[0]


def test_points_of_a_searcher_have_the_sweeps_keys(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path, SEARCHED, searcher={"name": "tpe"}, num_samples=3)
    tell(sweep, {"number": 0, "point": {"objective.beta": 0.15}, "objective.beta": 0.15})
    assert gone_on(sweep) == (True, [])
    tell(sweep, {"number": 0, "point": {"objective.bet": 0.15}})
    assert not gone_on(sweep)[0]


@pytest.mark.parametrize(
    "state", [b"", b"[", b"[]", b"{}", b'{"trial_data": 3}', b'{"trial_data": [["{", ""]]}',
              b'{"trial_data": [["{}", ""]]}', b"[" * 100_000, b"\xff"],
)  # fmt: skip
def test_a_damaged_state_is_forgotten(tmp_path: Path, state: bytes) -> None:
    sweep = sweep_in(tmp_path, GRID)
    RunStore(str(tmp_path)).write_bytes(".ray/sweep/experiment_state-2026.json", state)
    assert not gone_on(sweep)[0]


def test_what_tune_cannot_restore_is_forgotten(tmp_path: Path) -> None:
    sweep, said = sweep_in(tmp_path, GRID), list[str]()
    tell(sweep)

    def restore(path: str) -> None:
        raise EOFError("Ran out of input\nmore")

    assert go_on(sweep, restore, said.append) is None
    assert said == [
        f"tune: {tmp_path}/.ray is damaged: Ran out of input; Ray Tune begins anew, trials that "
        "have ended are kept"
    ]


def test_a_store_that_is_away_is_no_damage(tmp_path: Path) -> None:
    sweep, said = sweep_in(tmp_path, GRID), list[str]()
    tell(sweep)

    def restore(path: str) -> None:
        raise StageFailed("still failing")

    with pytest.raises(StageFailed, match="still failing"):
        go_on(sweep, restore, said.append)
    assert said == [] and RunStore(str(tmp_path)).exists(".ray/sweep")


def test_a_trial_whose_file_is_damaged_is_gone_on_with(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path, GRID)
    store = RunStore(sweep.trial_dir(0, (sweep.points or [])[0]))
    write_trial(store, Trial(number=0, point={}, run_dir=store.root, status="finished"))
    tell(sweep)
    assert gone_on(sweep) == (True, [])
    store.write_bytes("trial.json", store.read_bytes("trial.json")[:40])
    is_on, said = gone_on(sweep)
    assert not is_on and "trial.json is damaged: it is not JSON" in said[0]
    assert not store.exists("trial.json")
