"""What `status` says of a discriminator's run, of its editor, and in the run beside it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.commands.discriminator import discriminator_recipe, editing_recipe
from pipelines.commands.status import run_status, status_lines
from pipelines.commands.watched import run_state
from pipelines.recipe.files import validate_recipe, write_yaml
from pipelines.recipe.record import StageRecord
from pipelines.recipe.schema import Recipe
from pipelines.storage.presence import present
from pipelines.storage.store import RunStore


def states(run_dir: str) -> list[tuple[str, str]]:
    return [(row["stage"], row["state"]) for row in run_status(run_dir)]


@pytest.fixture
def copied_run(judged: Recipe, tmp_path: Path) -> Path:
    shutil.copytree(judged.run_dir, tmp_path / "run")
    return tmp_path / "run"


def begun(folder: Path, recipe: Recipe) -> Path:
    """A run's folder with its configuration alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(write_yaml(recipe))
    return folder


def of_run(rows: list[dict[str, Any]]) -> dict[str, Any]:
    (row,) = [row for row in rows if row["stage"] == "discriminator"]
    return row


def test_a_finished_one_is_finished_and_stands_in_the_run_beside_it(copied_run: Path) -> None:
    own = f"{copied_run}/discriminator"
    assert states(own) == [("prepare", "done"), ("reference", "done"), ("discriminator", "done")]
    assert status_lines(run_status(own))[0] == "finished" == run_state(own)["headline"]
    row = of_run(run_status(str(copied_run)))
    assert row["state"] == "done" and ", AUC 0.9" in row["detail"] and row["path"] == f"{own}/head"
    assert "not started: reference, train" in status_lines(run_status(str(copied_run)))[0]


def test_an_interrupted_one_is_stopped_and_one_at_work_runs(copied_run: Path) -> None:
    own = copied_run / "discriminator"
    (own / "head/manifest.json").unlink()
    assert states(str(own))[-1] == ("discriminator", "stopped")
    row = of_run(run_status(str(copied_run)))
    assert row["state"] == "stopped"
    assert row["detail"] == "discriminator: the same command goes on with it"
    with present(RunStore(f"{own}/head"), stage="discriminator"):
        assert of_run(run_status(str(copied_run)))["state"] == "running"
        assert status_lines(run_status(str(own)))[0].startswith("discriminator: running (on ")
    shutil.rmtree(own / "head")
    assert states(str(own))[-1] == ("discriminator", "not started")
    row = of_run(run_status(str(copied_run)))
    assert (row["state"], row["detail"]) == ("stopped", "discriminator")


def test_an_editor_comes_before_what_learns_from_its_edits(judged: Recipe, tmp_path: Path) -> None:
    editor = {"kind": "model", "name_or_path": judged.model.name_or_path}
    recipe = validate_recipe(judged.model_dump(mode="json"), [
        f"run_dir={tmp_path / 'run'}", f"discriminator.editor={editor}",
        f"paths.pairs={judged.run_dir}/pairs",
    ])  # fmt: skip
    place = begun(tmp_path / "run/discriminator/editor", editing_recipe(recipe))
    record = StageRecord("edit", RunStore(f"{place}/edits"), {}, {})
    record.begin()
    assert states(str(place)) == [("prepare", "done"), ("edit", "stopped")]
    assert states(str(tmp_path / "run")) == [("discriminator", "stopped")], "the only thing there"
    assert run_state(str(tmp_path / "run"))["is_there"]
    record.finish({"responses": 2, "failed": 0, "edited_train": 1, "edited_test": 1})
    begun(tmp_path / "run/discriminator", discriminator_recipe(recipe))
    assert states(str(tmp_path / "run/discriminator")) == [
        ("edit", "done"), ("prepare", "done"), ("reference", "not started"),
        ("discriminator", "not started"),
    ]  # fmt: skip
