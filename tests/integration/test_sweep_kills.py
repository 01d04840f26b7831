"""Sweeps under kill -9: of a trial, of the driver. Several hosts are in test_many_hosts.py."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.commands.run import run_stages
from pipelines.commands.stages import TRAIN
from pipelines.recipe.files import load_recipe, write_yaml
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run

MakeRecipe = Callable[..., Recipe]
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


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, f"the sweep ended too early: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_trial_and_a_killed_driver_go_on_where_they_were(
    recipe_in: MakeRecipe, tmp_path: Path, ray_cluster: None
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
    command = [sys.executable, "-m", "pipelines", "tune", str(file), "max_concurrent_trials=1"]
    start = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "start_new_session": True,
    }
    driver = subprocess.Popen(command, **start)  # type: ignore[call-overload]

    wait_until(lambda: steps_done("0000", sweep) >= 3, driver)
    actors = [
        p
        for p in psutil.Process(driver.pid).children(recursive=True)
        if "".join(p.cmdline()).startswith("ray::ImplicitFunc")
    ]
    assert len(actors) == 1
    actors[0].kill()
    killed_at = steps_done("0000", sweep)
    assert killed_at < 40

    wait_until(lambda: steps_done("0001", sweep) >= 3, driver)
    first = next(sweep.glob("trials/0000-*/trial.json"))
    before = first.read_bytes()
    assert json.loads(before)["status"] == "finished", "the killed trial was tried again"
    parts = sorted(first.parent.glob("train/metrics/*-train.jsonl"))
    assert json.loads(parts[0].read_text().splitlines()[0])["step"] == 1
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert steps_done("0001", sweep) < 40

    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert "was interrupted: add --resume to go on with it" in refused.stderr
    assert "Traceback" not in refused.stderr
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=400)
    assert resumed.returncode == 0, resumed.stderr
    assert "Traceback" not in resumed.stderr
    assert first.read_bytes() == before, "what had finished was not run again"
    trials = json.loads((sweep / "trials.json").read_text())
    assert [trial["status"] for trial in trials] == ["finished", "finished"]

    best = sweep / "best.yaml"
    whole = load_recipe(str(best), (f"run_dir={tmp_path}/whole",))
    run_stages(whole, (TRAIN,), lambda line: None, quiet=True)
    expected = Run(whole).record(TRAIN).manifest()["counts"]["validation"]
    assert Run(load_recipe(str(best))).record(TRAIN).manifest()["counts"]["validation"] == expected
