"""What `plan` says: sentences, a table, numbers for machines; of used places and of sweeps."""

import json
from pathlib import Path

import pytest
import yaml
from runs import MakeRecipe, tiny_recipe

from pipelines.commands.cli import main
from pipelines.commands.plan import _warnings, plan_sweep, planned, run_plan
from pipelines.commands.plan_text import plan_lines, shown_bytes, sweep_plan_lines, table
from pipelines.models.durations import (
    EVALUATION_START,
    RAY_START,
    SCORING_START,
    TRAINING_START,
    TRIAL_START,
)
from pipelines.recipe.schema import Recipe
from pipelines.sweep.files import load_sweep

LINES = 9  # of a plan: place, a gap, head, five rows, a gap


def test_a_plan_in_sentences(make_recipe: MakeRecipe) -> None:
    """The starts of all stages are in the sum; work on the tiny model takes a second or so."""
    recipe = make_recipe("objective.name=tdpo1")
    found = run_plan(recipe, name="mine.yaml")
    lines = plan_lines(found, planned(found))
    assert lines[0] == f"mine.yaml -> {recipe.run_dir}"
    head, *rows = lines[2:8]
    assert head.split() == ["stage", "what", "it", "makes", "time", "disk", "memory"]
    assert [row.split()[0] for row in rows] == ["prepare", "reference", "train", "evaluate", "all"]
    assert "about 96 train, 24 test pairs" in rows[0]
    assert "stored: reference_hidden, reference_logps" in rows[1]
    assert "6 steps of 16 pairs, 1 worker" in rows[2]
    assert "preference, sentiment, masks on 24 pairs, 16 prompts" in rows[3]
    starts = RAY_START + SCORING_START + TRAINING_START + EVALUATION_START
    assert starts < found["total"]["seconds"] < starts + 10
    parts = [found[title] for title in ("data", "reference", "train", "evaluate")]
    assert found["total"]["seconds"] == pytest.approx(sum(part["seconds"] for part in parts))
    assert found["total"]["disk_bytes"] == sum(part["disk_bytes"] for part in parts)
    assert found["total"]["warnings"] == []
    text = "\n".join(lines[LINES:])
    assert (
        "estimated from a part of the rows" in text and "what it would refuse, this refuses" in text
    )
    assert "text (prompt, chosen, rejected: text)" in text


def test_a_plan_of_fine_tuning_has_its_own_numbers(
    tmp_path: Path, model_dir: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plan --sft`: ceil(96 / 32) steps a epoch at the rate of section sft, and no other stage."""
    recipe = tiny_recipe(tmp_path / "run", model_dir, pairs_file)
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump(recipe | {"sft": {"learning_rate": 3e-4, "global_batch_size": 32}})
    )

    def said(*more: str) -> tuple[str, str]:
        with pytest.raises(SystemExit):
            main(["plan", str(file), *more])
        return capsys.readouterr()

    lines = said("--sft")[0].splitlines()
    assert lines[0] == f"{file} -> {tmp_path}/run/sft"
    assert [line.split()[0] for line in lines[3:6]] == ["prepare", "train", "all"]
    assert "3 steps of 32 pairs" in lines[4]
    assert "train: 1 epoch, learning rate 0.0003" in lines
    assert f"learning rate {recipe['train']['learning_rate']:g}" in said()[0]
    assert "train.epochs is the preference run's" in said("--sft", "train.epochs=2")[1]
    assert "sft.epochs = 0: input should be greater than 0" in said("--sft", "sft.epochs=0")[1]
    assert "no such file" in said("--sft", "data.sources=[{path: /nowhere.jsonl}]")[1]


def test_text_for_people_and_json_for_machines(
    tmp_path: Path, model_dir: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run", model_dir, pairs_file)))

    def said(*more: str) -> str:
        with pytest.raises(SystemExit):
            main(["plan", str(file), *more])
        return capsys.readouterr().out

    found = json.loads(said("--json"))
    assert said().splitlines() == plan_lines(found, planned(found))


def test_what_is_done_takes_no_time(copied: Recipe) -> None:
    found = run_plan(copied)
    assert found["data"]["done"] and found["reference"]["done"] and "done" not in found["train"]
    assert found["data"]["seconds"] == found["reference"]["seconds"] == 0
    rest = found["train"]["seconds"] + found["evaluate"]["seconds"]
    assert found["total"]["seconds"] == pytest.approx(RAY_START + rest)
    assert found["total"]["disk_bytes"] == (
        found["train"]["disk_bytes"] + found["evaluate"]["disk_bytes"]
    )
    rows = plan_lines(found, planned(found))[3:5]
    assert "done before: 24 test, 96 train pairs" in rows[0] and " - " in rows[0]


def test_pairs_of_another_recipe_say_nothing_of_this_one(copied: Recipe, tmp_path: Path) -> None:
    """A place that `plan` cannot compare, as on a cluster: half of the rows are in the source."""
    half = tmp_path / "half.jsonl"
    rows = Path(copied.data.sources[0].path).read_text().splitlines(keepends=True)
    half.write_text("".join(rows[:60]))
    source = copied.data.sources[0].model_copy(update={"path": str(half)})
    other = copied.model_copy(
        update={
            "data": copied.data.model_copy(update={"sources": (source,)}),
            "ray": copied.ray.model_copy(update={"address": "ray://nowhere:1"}),
        }
    )
    data = run_plan(other)["data"]
    assert (data["exact"], data["pairs"]) == (False, {"train": 48, "validation": 0, "test": 12})


def test_a_stage_without_work_is_not_called_done(make_recipe: MakeRecipe) -> None:
    found = run_plan(make_recipe("objective.name=simpo"))
    assert "done" not in found["reference"] and found["reference"]["seconds"] == 0
    assert planned(found)["reference"] == "not needed"


def test_what_does_not_fit_is_warned_of(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    parts = {"train": {"memory_gib": 1e6}, "reference": {"memory_gib": 1e6, "done": True}}
    (memory,) = _warnings(recipe.run_dir, parts, 1)
    assert "train takes about 1000000 GiB of memory" in memory
    (disk,) = _warnings(recipe.run_dir, {}, 2**60)
    assert "about 1073741824.00 GiB are to be written" in disk
    assert _warnings(recipe.run_dir, {"train": {"memory_gib": 0.1}}, 1) == []


@pytest.mark.slow
def test_a_sweep_counts_every_start(tmp_path: Path, model_dir: Path, pairs_file: Path) -> None:
    """Six trials, two at a time: three waves of Tune's, the training's and the evaluation's start,
    beside the work. Once it was the arithmetic alone: seconds of what takes minutes.
    """
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run", model_dir, pairs_file)))
    file = tmp_path / "sweep.yaml"
    rates = [1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4]
    space = {"train.learning_rate": {"grid": rates}}
    named = {"run_dir": str(tmp_path / "sweep"), "recipe": str(base), "space": space}
    options = {"overrides": ["ray.num_cpus=2"], "evaluate_all": True, "max_concurrent_trials": 2}
    goal = [{"metric": "train/loss", "mode": "min"}]
    file.write_text(yaml.safe_dump({**named, **options, "objectives": goal}))
    found = plan_sweep(load_sweep(str(file)), name="sweep.yaml")
    assert (found["trials"], found["at_once"]) == (6, 2)
    start = TRIAL_START + TRAINING_START + EVALUATION_START
    assert 3 * start < found["trials_seconds"] < 3 * start + 30
    assert found["total"]["seconds"] > found["trials_seconds"] + SCORING_START
    lines = sweep_plan_lines(found)
    assert lines[1] == "6 trials, 2 at a time; searched: train.learning_rate"
    assert [line.split("  ")[0] for line in lines[3:8]] == [
        "part", "pairs, reference", "a trial", "all trials", "all",
    ]  # fmt: skip


def test_the_table() -> None:
    assert table(("a", "b", "c"), [("long", "x", "1 s"), ("y", "", "100 s")]) == [
        "a     b      c",
        "long  x    1 s",
        "y        100 s",
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1024, "1.0 KiB"), (1.5 * 2**20, "1.5 MiB"),
     (300 * 2**30, "300 GiB"), (5 * 2**40, "5.0 TiB")],
)  # fmt: skip
def test_sizes(size: float, text: str) -> None:
    assert shown_bytes(size) == text
