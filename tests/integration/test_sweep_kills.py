"""Sweeps under kill -9: of a trial, of the driver. Several hosts are in test_many_hosts.py."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from processes import kill, started, wait_for
from ray_tables import living_actors
from runs import MakeRecipe, trainer_of

from pipelines.commands.cli import main
from pipelines.recipe.files import load_recipe, write_yaml
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.train.metrics import read_metrics
from pipelines.train.stage import TRAIN

pytestmark = pytest.mark.slow
LOSS, KL = "validation/loss", "validation/kl/reference_policy"


def write_sweep(recipe: Recipe, folder: Path, **top: object) -> Path:
    (folder / "base.yaml").write_text(write_yaml(recipe))
    body = {"run_dir": str(folder / "sweep"), "recipe": str(folder / "base.yaml"), **top}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(body))
    return folder / "sweep.yaml"


def steps_done(trial: str, sweep: Path) -> int:
    """Of the newest checkpoint of a trial."""
    states = sweep.glob(f"trials/{trial}-*/train/checkpoints/step-*/state.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in states), default=0)


def actor_of_a_trial() -> int | None:
    """The process in which the one trial that is at work runs."""
    found = [a for a in living_actors() if a.class_name.endswith("ImplicitFunc") and a.is_running]
    assert len(found) <= 1
    return found[0].pid if found else None


def test_a_killed_trial_and_a_killed_driver_go_on_where_they_were(
    recipe_in: MakeRecipe,
    tmp_path: Path,
    ray_environment: dict[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """kill -9 of the first trial's process, then of the driver during the second trial, then
    --resume; the best trial's metrics
    are those of an uninterrupted run of best.yaml, bit for bit.
    """
    options = (
        "objective.name=sparsepo",
        "mask.kind=learned",
        "mask.architecture=simple_last",
        "data.validation_fraction=0.2",
    )
    pace = (
        "data.test_fraction=0",
        "train.epochs=9",
        "train.max_steps=40",
        "train.checkpoint_every=1",
        "train.cpus_per_worker=1",
    )
    recipe = recipe_in(tmp_path / "unused", *options, *pace, "ray.num_cpus=2")
    file = write_sweep(
        recipe,
        tmp_path,
        space={"objective.beta": {"grid": [0.1, 0.5]}},
        objectives=[{"metric": LOSS, "mode": "min"}],
    )
    sweep = tmp_path / "sweep"
    command, log = ["tune", str(file), "max_concurrent_trials=1"], tmp_path / "log"
    with started(command, log, ray_environment) as driver:
        wait_for(lambda: steps_done("0000", sweep), 1, driver, log)
        actor = actor_of_a_trial()
        assert actor is not None
        os.kill(actor, signal.SIGKILL)
        assert steps_done("0000", sweep) < 40

        wait_for(lambda: steps_done("0001", sweep), 3, driver, log)
        first = next(sweep.glob("trials/0000-*/trial.json"))
        before = first.read_bytes()
        assert json.loads(before)["status"] == "finished", "the killed trial was tried again"
        parts = sorted(first.parent.glob("train/metrics/*-train.jsonl"))
        assert json.loads(parts[0].read_text().splitlines()[0])["step"] == 1
        kill(driver)
    assert steps_done("0001", sweep) < 40

    assert sparsepo(command, capfd) == (2, f"error: {sweep} holds a sweep that was interrupted: "
        "add --resume to go on with it, or choose another run_dir\n")  # fmt: skip
    code, said = sparsepo([*command, "--resume"], capfd)
    assert code == 0, said
    assert "Traceback" not in said
    assert first.read_bytes() == before, "what had finished was not run again"
    trials = json.loads((sweep / "trials.json").read_text())
    assert [trial["status"] for trial in trials] == ["finished", "finished"]

    best = str(sweep / "best.yaml")
    whole = load_recipe(best, (f"run_dir={tmp_path}/whole",))
    trainer_of(whole).run(lambda metrics: None)
    records = read_metrics(RunStore(f"{whole.run_dir}/train"))
    expected = [record for record in records if record.get("kind") == "validation"][-1]
    counts = Run(load_recipe(best)).record(TRAIN).manifest()["counts"]
    assert counts["validation"] == expected


def sparsepo(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit code, standard error) of a command in this process, on the session's Ray."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(str(ended.value.code)), capfd.readouterr().err
