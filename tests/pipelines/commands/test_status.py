"""What `status` says of a run that works, stopped, failed or is none."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from runs import MakeRecipe

from pipelines.commands.cli import main
from pipelines.commands.status import follow, run_status, status_lines
from pipelines.errors import UserError
from pipelines.recipe.files import write_yaml
from pipelines.recipe.record import StageRecord
from pipelines.recipe.schema import Recipe
from pipelines.storage.presence import present
from pipelines.storage.store import RunStore
from pipelines.sweep.display import trials_under_way


def begin(place: Path, stage: str) -> StageRecord:
    record = StageRecord(stage, RunStore(str(place)), {}, {})
    record.begin()
    return record


@pytest.fixture
def training(make_recipe: MakeRecipe) -> Recipe:
    """A run of 96 pairs in batches of 16 for 5 epochs, whose training has 12 of 30 steps."""
    recipe = make_recipe("train.epochs=5")
    run = Path(recipe.run_dir)
    begin(run / "pairs", "prepare").finish({"pairs": {"train": 96, "validation": 0, "test": 24}})
    (run / "config.yaml").write_text(write_yaml(recipe))
    begin(run / "train", "train")
    steps(run, 1, 12)
    checkpoint(run, 10)
    return recipe


def steps(run: Path, first: int, last: int) -> None:
    records = [{"step": step, "step_seconds": 0.5} for step in range(first, last + 1)]
    part = run / f"train/metrics/part-{first:08d}-{last:08d}-train.jsonl"
    part.parent.mkdir(exist_ok=True)
    part.write_text("".join(json.dumps(record) + "\n" for record in records))


def checkpoint(run: Path, step: int) -> None:
    folder = run / f"train/checkpoints/step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")


def train_row(recipe: Recipe) -> dict[str, Any]:
    (row,) = [row for row in run_status(recipe.run_dir) if row["stage"] == "train"]
    return row


def test_a_training_that_runs(training: Recipe) -> None:
    """18 steps are left, of half a second."""
    with present(RunStore(f"{training.run_dir}/train"), stage="train"):
        assert train_row(training)["state"] == "resuming", "nothing new since it began"
        time.sleep(0.01)
        steps(Path(training.run_dir), 13, 13)
        row = train_row(training)
        lines = status_lines(run_status(training.run_dir))
    assert (row["state"], row["pid"]) == ("running", os.getpid())
    assert row["detail"] == "step 13 of 30, 2 steps/s, 8.5 s left; last checkpoint: step 10"
    assert lines[0].startswith(f"train: running (on {os.uname().nodename}, process {os.getpid()}")
    assert not [line for line in lines if "same command" in line], "no second start"


def test_a_training_that_stopped(training: Recipe) -> None:
    row = train_row(training)
    assert row["state"] == "stopped" and "pid" not in row
    assert row["detail"] == (
        "step 12 of 30, 2 steps/s, 9 s left; last checkpoint: step 10; the same command goes on "
        "with it"
    )
    assert status_lines(run_status(training.run_dir))[0] == (
        "train: stopped: no process works on it"
    )


def test_a_training_that_failed(training: Recipe) -> None:
    store = RunStore(f"{training.run_dir}/train")
    store.write_json("failure-0.json", {"kind": "diverged", "message": "loss is nan at step 12"})
    row = train_row(training)
    assert row["state"] == "failed" and row["detail"].startswith("failed: loss is nan at step 12; ")
    with present(store, stage="train"):
        assert train_row(training)["state"] == "resuming", "another command tries again"


def test_what_a_stage_tells_of_itself(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    store = RunStore(f"{recipe.run_dir}/evaluation")
    Path(recipe.run_dir).mkdir()
    (Path(recipe.run_dir) / "config.yaml").write_text(write_yaml(recipe))
    with present(store, stage="evaluate", done=3, total=9, unit="task", rate=2.0):
        (row,) = [r for r in run_status(recipe.run_dir) if r["state"] == "running"]
    assert (row["stage"], row["detail"]) == ("evaluate", "task 3 of 9, 2 tasks/s, 3 s left")


def test_follow_ends_with_the_run(training: Recipe) -> None:
    shown: list[list[str]] = []
    with contextlib.ExitStack() as work:
        work.enter_context(present(RunStore(f"{training.run_dir}/train"), stage="train"))

        def show(lines: list[str]) -> None:
            shown.append(lines)
            if len(shown) == 1:
                work.close()

        follow(training.run_dir, show, poll_seconds=0.01)
    assert [lines[0].split(" (")[0] for lines in shown] == [
        "train: resuming",
        "train: stopped: no process works on it",
    ]


def test_ctrl_c_ends_following_without_a_word(
    training: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with present(RunStore(f"{training.run_dir}/train"), stage="train"):
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            with pytest.raises(SystemExit) as ended:
                main(["status", training.run_dir, "--follow"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    out, error = capsys.readouterr()
    assert (ended.value.code, error) == (0, "") and "resuming" in out


def test_a_place_without_a_run(tmp_path: Path, training: Recipe) -> None:
    (tmp_path / "empty").mkdir()
    for place, line in (
        ("empty", "no run here (no config.yaml)"),
        ("rnu", f"no such directory; did you mean '{tmp_path}/run'?"),
        (".", "no run here, but it holds run"),
    ):
        with pytest.raises(UserError) as caught:
            run_status(str(tmp_path / place) if place != "." else str(tmp_path))
        assert line in str(caught.value)


def test_the_rows_for_machines(training: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["status", training.run_dir, "--json"])
    assert json.loads(capsys.readouterr().out) == run_status(training.run_dir)


def test_trials_of_a_sweep_that_runs(training: Recipe, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    record = begin(sweep, "tune")
    (sweep / "trials").mkdir()
    trial = sweep / "trials" / "0001-abc"
    Path(training.run_dir).rename(trial)
    (trial / "config.yaml").write_text(
        write_yaml(training.model_copy(update={"run_dir": str(trial)}))
    )
    ended = RunStore(str(sweep / "trials" / "0000-abc"))
    result = {"number": 0, "point": {}, "run_dir": ended.root, "status": "finished"}
    ended.write_json("trial.json", {**result, "seconds": 3.0, "runs": {"0": {}}})
    with present(record.store, stage="tune", trials=4):
        lines = status_lines(run_status(str(sweep)))
        assert trials_under_way(record.store)[0] == 1
        assert trials_under_way(record.store)[1].startswith("1: step 12 of 30, 2 steps/s, 9 s left")
    assert lines[0].startswith("trial 1: running, tune: running (on ")
    assert "step 12 of 30, 2 steps/s" in lines[2] and "1 of 4 trials ended" in lines[3]
    assert "--resume" not in "".join(lines)
    stopped = status_lines(run_status(str(sweep)))
    assert stopped[0] == "trial 1, tune: stopped: no process works on it"
    assert "--resume" in stopped[3]
