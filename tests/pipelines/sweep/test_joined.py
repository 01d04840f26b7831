"""Several directories of a sweep as one, and what a sweep keeps of its trials; by plain files."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import MakeRecipe

from pipelines.commands.report import run_report
from pipelines.commands.status import run_status, status_lines
from pipelines.errors import UserError
from pipelines.recipe.files import load_recipe, write_yaml
from pipelines.recipe.run_paths import CONFIG
from pipelines.storage.store import RunStore
from pipelines.sweep.definition import write_definition
from pipelines.sweep.files import load_sweep
from pipelines.sweep.joined import joined_trials
from pipelines.sweep.space import Sweep
from pipelines.sweep.stage import sweep_record
from pipelines.sweep.trial import keep_of_trial
from pipelines.sweep.trial_record import Trial, write_trial

MARGIN = "validation/rewards/margins"
BETAS = [0.1, 0.2, 0.4, 0.8, 1.6]
SPACE = {"objective.beta": {"grid": BETAS}}
Begun = Callable[..., Sweep]


@pytest.fixture
def begun(tmp_path: Path, make_recipe: MakeRecipe, pairs_file: Path) -> Begun:
    """begun(shard, ended trials, ...) -> a sweep's directory as tune leaves it when it is killed;
    a trial's margin is its beta.
    """

    def make(
        shard: str | None,
        ended: Sequence[int] | None = None,
        *overrides: str,
        folder: str = "",
        margins: float = 1.0,
        **top: Any,
    ) -> Sweep:
        recipe = make_recipe("data.validation_fraction=0.2")
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "dpo.yaml").write_text(write_yaml(recipe))
        body = {
            "run_dir": str(tmp_path / folder / "sweep"),
            "recipe": str(tmp_path / folder / "dpo.yaml"),
            "space": SPACE,
            **top,
        }
        (tmp_path / folder / "sweep.yaml").write_text(yaml.safe_dump(body))
        sweep = load_sweep(str(tmp_path / folder / "sweep.yaml"), overrides, shard)
        sweep_record(sweep).begin()
        write_definition(sweep, RunStore(sweep.run_dir))
        for number, point in sweep.own_points or ():
            if ended is None or number in ended:
                store = RunStore(sweep.trial_dir(number, point))
                config = write_yaml(sweep.recipe_at(point, store.root))
                store.write_bytes(CONFIG, config.encode())
                metrics = {MARGIN: margins * point["objective.beta"]}
                write_trial(
                    store,
                    Trial(
                        number=number, point=point, run_dir=store.root, status="finished",
                        metrics=metrics, runs={"0": metrics},
                    ),
                )  # fmt: skip
        return sweep

    return make


def told(run_dirs: Sequence[str], output: str | None = None) -> tuple[Path, list[str]]:
    said: list[str] = []
    page = run_report(run_dirs, output, said.append)
    return Path(page).parent.parent, said


@pytest.mark.slow
def test_shards_are_reported_as_one_sweep(begun: Begun, tmp_path: Path) -> None:
    """Two of three shards, one of them killed after its first trial, by the sweep's directory."""
    begun("1/3", [0])
    begun("3/3")
    folder, said = told([str(tmp_path / "sweep")])
    assert folder == tmp_path / "sweep"
    assert said[:2] == [
        "report: joined from 2: 1/3, 3/3", "report: 3 of 5 trials are missing (1, 3, 4)"
    ]  # fmt: skip
    trials = json.loads((folder / "trials.json").read_text())
    assert [(t["number"], t["point"]["objective.beta"]) for t in trials] == [(0, 0.1), (2, 0.4)]
    best = load_recipe(str(folder / "best.yaml"))
    assert best.objective.model_dump()["beta"] == 0.4
    assert best.run_dir.startswith(f"{folder}/shards/3-of-3/trials/0002-")
    page = (folder / "report" / "index.html").read_text()
    assert "joined from 2: 1/3, 3/3; 3 of 5 trials are missing (1, 3, 4)." in page
    begun("1/3", [3])
    begun("2/3")
    whole, said = told([str(tmp_path / "sweep")])
    assert not any("missing" in line for line in said)
    assert len(json.loads((whole / "trials.json").read_text())) == 5


def test_directories_of_several_machines_are_one(begun: Begun, tmp_path: Path) -> None:
    """With recipes in other folders, a trial that two have, and another number of shards."""
    first = begun("1/2", folder="a").run_dir
    second = begun("2/3", folder="b").run_dir
    with pytest.raises(UserError, match="say where with --output DIR"):
        told([first, second])
    with pytest.raises(UserError, match="it is one of the sweeps"):
        told([first, second], second)
    folder, said = told([first, second], str(tmp_path / "both"))
    assert said[0].startswith("report: joined from 2: 1/2, 2/3")
    assert said[1] == "report: 1 trials stand in more than one of them and count once"
    assert said[2] == "report: 1 of 5 trials are missing (3)"
    trials = json.loads((folder / "trials.json").read_text())
    assert [t["number"] for t in trials] == [0, 1, 2, 4]
    assert trials[3]["run_dir"].startswith(first), "of two the first directory's"
    moved = shutil.move(tmp_path / "b", tmp_path / "c")
    folder, _ = told([first, f"{moved}/sweep/shards/2-of-3"], str(tmp_path / "again"))
    (one,) = (t for t in json.loads((folder / "trials.json").read_text()) if t["number"] == 1)
    assert one["run_dir"].startswith(f"{moved}/sweep/shards/2-of-3/trials/0001-")


@pytest.mark.parametrize(
    ("overrides", "top", "line"),
    [
        ((), {"space": {"objective.beta": {"grid": [0.1, 0.3]}}}, "setting space is"),
        (("train.learning_rate=0.5",), {}, r"setting dpo.yaml: train.learning_rate is 0.5, there"),
        (("data.sources=[{path: OTHER}]",), {}, "input data of dpo.yaml is"),
        (("model.name_or_path=OTHER_MODEL",), {}, "input model of dpo.yaml is"),
        ((), {"objectives": [{"metric": "validation/loss"}]}, "setting objectives is"),
        ((), {"seeds": [0, 1]}, r"setting seeds is \[0, 1\], there it is \[\]"),
    ],
)
def test_what_is_another_sweep_is_refused_by_name(
    begun: Begun,
    tmp_path: Path,
    model_dir: Path,
    pairs_file: Path,
    overrides: tuple[str, ...],
    top: dict[str, Any],
    line: str,
) -> None:
    other, model = tmp_path / "other.jsonl", tmp_path / "model"
    other.write_text("".join(pairs_file.read_text().splitlines(keepends=True)[1:]))
    shutil.copytree(model_dir, model)
    with (model / "generation_config.json").open("a") as file:
        file.write(" ")
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: torch.nextafter(weights[name], weights[name] + 1)},
              model / "model.safetensors", {"format": "pt"})  # fmt: skip
    named = [o.replace("OTHER_MODEL", str(model)).replace("OTHER", str(other)) for o in overrides]
    one, two = begun("1/2", [0]), begun("2/2", None, *named, folder="b", **top)
    with pytest.raises(UserError, match=f"is no part of the sweep of {one.run_dir}: {line}"):
        told([one.run_dir, two.run_dir], str(tmp_path / "both"))
    assert not (tmp_path / "both").exists()


def test_sweeps_and_runs_are_reported_apart(begun: Begun, tmp_path: Path) -> None:
    sweep = begun(None, [0])
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"run holds no sweep, and .*sweep does"):
        told([sweep.run_dir, str(tmp_path / "run")])
    Path(sweep.run_dir, "sweep.json").unlink()
    with pytest.raises(UserError, match=r"sweep.json is missing: give the sweep's command again"):
        told([sweep.run_dir])


def a_trial(number: int, beta: float, status: str = "finished", place: str = "a") -> Trial:
    return Trial.model_validate(
        {"number": number, "point": {"objective.beta": beta}, "run_dir": place, "status": status}
    )


def test_of_two_trials_of_a_point_the_one_that_came_further_counts() -> None:
    """And trials of searchers, which number theirs alike, keep apart."""
    found, twice = joined_trials(
        [
            [a_trial(0, 0.1, "failed"), a_trial(1, 0.2), a_trial(2, 0.3)],
            [a_trial(0, 0.1, place="b"), a_trial(1, 0.2, place="b"), a_trial(2, 0.9, place="b")],
        ]
    )
    assert twice == 2
    assert [(t.number, t.point["objective.beta"], t.run_dir) for t in found] == [
        (0, 0.1, "b"), (1, 0.2, "a"), (2, 0.3, "a"), (3, 0.9, "b")
    ]  # fmt: skip


def test_status_says_which_shards_are_there_and_what_is_missing(
    begun: Begun, tmp_path: Path
) -> None:
    shard = begun("1/3", [0])
    (row,) = (row for row in run_status(shard.run_dir) if row["stage"] == "tune")
    assert row["detail"] == ("shard 1/3 (2 of 5 trials): add --resume to the same command to go on")
    begun("3/3")
    rows = run_status(str(tmp_path / "sweep"))
    assert [(r["stage"], r["state"], r["detail"]) for r in rows[:3]] == [
        ("shard 1/3", "stopped", "1 of 2 trials"),
        ("shard 2/3", "not started", "2 trials"),
        ("shard 3/3", "stopped", "1 of 1 trials"),
    ]
    assert rows[3]["detail"] == (
        "2 of 5 trials ended; missing: shard 1/3, shard 2/3, shard 3/3; "
        f"sparsepo report {tmp_path}/sweep joins them"
    )
    assert status_lines(rows)[0] == "shard 1/3, shard 3/3, tune: stopped: no process works on it"


def test_of_a_trial_that_keeps_its_metrics_no_weights_stay(begun: Begun, tmp_path: Path) -> None:
    """Of one that ended; of one that failed all stays, since --resume goes on from there. best.yaml
    trains its trial again elsewhere.
    """
    weights = ("checkpoints/step-1/x", "model/model.safetensors", "masks/masks.safetensors")
    kept = ("manifest.json", "metrics/part-1", "started.json")

    def files(sweep: Sweep) -> list[Trial]:
        trials = []
        for number, point in sweep.own_points or ():
            store = RunStore(sweep.trial_dir(number, point))
            for name in (*weights, *kept):
                store.write_bytes(f"seed-0/train/{name}", b"x")
                store.write_bytes(f"train/{name}", b"x")
            status = "failed" if number == 1 else "finished"
            trials.append(
                Trial(number=number, point=point, run_dir=store.root, status=status)  # type: ignore[arg-type]
            )
        return trials

    for keep in ("model", "metrics"):
        sweep = begun(None, [], folder=keep, keep=keep)
        for trial in files(sweep):
            keep_of_trial(sweep, trial)
            keep_of_trial(sweep, trial)
            gone = keep == "metrics" and trial.status != "failed"
            for run in ("train", "seed-0/train"):
                found = {
                    name for name in (*weights, *kept) if Path(trial.run_dir, run, name).exists()
                }
                assert found == set(kept if gone else (*weights, *kept))


def test_the_best_trial_without_a_model_is_a_run_of_its_own(begun: Begun, tmp_path: Path) -> None:
    sweep = begun(None)
    (number, point) = (sweep.own_points or [])[-1]
    store = RunStore(sweep.trial_dir(number, point))
    from pipelines.recipe.record import StageRecord

    settings = {"objective.beta": 1.6}
    StageRecord("train", store.at("train"), settings, {}).finish({})
    folder, _ = told([sweep.run_dir])
    text = (folder / "best.yaml").read_text()
    assert "Its metrics were kept alone: `sparsepo run` of this trains it again, in best/" in text
    assert load_recipe(str(folder / "best.yaml")).run_dir == f"{sweep.run_dir}/best"
    store.write_bytes("train/model/config.json", b"{}")
    told([sweep.run_dir])
    assert load_recipe(str(folder / "best.yaml")).run_dir == store.root
