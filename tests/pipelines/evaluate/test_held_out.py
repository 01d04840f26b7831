"""A run that could not be evaluated or validated ends before its training: at load, or when
prepare has counted.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import typer
import yaml
from by_hand import unsealed
from runs import MakeRecipe

from pipelines.commands.cli import app
from pipelines.commands.plan import plan_sweep, run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, TRAIN
from pipelines.commands.submit import packaged_command
from pipelines.errors import UserError
from pipelines.evaluate.schedule import check_run
from pipelines.recipe.files import write_yaml
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.sweep.files import load_sweep
from pipelines.sweep.shared_stores import SharedStores
from pipelines.sweep.stage import _check_kept, run_tune

ALL = (PREPARE, REFERENCE, TRAIN, EVALUATE)
NONE_KEPT = "needs held-out pairs, and data.test_fraction = 0 keeps none back"


def quiet(line: str) -> None:
    pass


def refused(recipe: Recipe, message: str) -> None:
    """By run and plan, in one line, before anything is written."""
    for act in (lambda: run_plan(recipe), lambda: run_stages(recipe, ALL, quiet)):
        with pytest.raises(UserError, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)
    assert not Path(recipe.run_dir).exists()


def test_without_held_out_pairs_nothing_that_evaluates_begins(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """run, plan, tune, schedule and submit say so; the default recipe holds nothing out, so this
    is what a first try meets.
    """
    recipe = make_recipe("data.test_fraction=0")
    refused(recipe, NONE_KEPT)
    refused(
        make_recipe("evaluate.split=validation"), "data.validation_fraction = 0 keeps none back"
    )
    refused(make_recipe("data.test_fraction=0", "data.validation_fraction=0.2"), NONE_KEPT)
    with pytest.raises(UserError, match=NONE_KEPT):
        check_run(Run(recipe))
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    program = typer.main.get_command(app)
    with (
        pytest.raises(UserError, match=NONE_KEPT),
        packaged_command(["run", str(tmp_path / "recipe.yaml")], program),
    ):
        pass
    with packaged_command(["train", str(tmp_path / "recipe.yaml")], program):
        pass
    sweep = {
        "run_dir": str(tmp_path / "sweep"),
        "recipe": str(tmp_path / "recipe.yaml"),
        "space": {"objective.beta": {"grid": [0.1, 0.2]}},
        "objectives": [{"metric": "evaluation/preference/rewards/margins"}],
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with pytest.raises(UserError, match=NONE_KEPT):
        load_sweep(str(tmp_path / "sweep.yaml"))
    trains_only = load_sweep(
        str(tmp_path / "sweep.yaml"), ["objectives=[{metric: train/rewards/margins}]"]
    )
    assert plan_sweep(trains_only)["evaluates"] is False


def test_what_needs_no_held_out_pairs_is_planned(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(
        '{"task_id": 1, "text": "Return two.", "test_list": ["assert two() == 2"]}\n'
    )
    tasks = f"tasks: {tmp_path / 'tasks.jsonl'}"
    for overrides in (
        ("evaluate.benchmarks=[]",),
        (
            "evaluate.benchmarks=[code]",
            f"evaluate.code={{{tasks}, generation: {{max_new_tokens: 9}}}}",
        ),
        ("evaluate.split=validation", "data.validation_fraction=0.2"),
        ("objective.name=sft",),
    ):
        assert run_plan(make_recipe("data.test_fraction=0", *overrides))["train"]["steps"] > 0


def test_validation_without_validation_pairs_is_refused_at_load(make_recipe: MakeRecipe) -> None:
    with pytest.raises(
        UserError,
        match="train.validate_every = 3: there are no validation pairs; set "
        "data.validation_fraction",
    ):
        make_recipe("train.validate_every=3")
    assert make_recipe("train.validate_every=3", "data.validation_fraction=0.1")


@pytest.mark.slow
def test_what_benchmarks_need_besides_is_asked_first(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET_KEY", raising=False)
    (tmp_path / "broken.jsonl").write_text("nonsense\n")
    (tmp_path / "tasks.jsonl").write_text(
        '{"task_id": 1, "text": "Return two.", "test_list": ["assert two() == 2"]}\n'
    )
    judge = (
        "evaluate.judge={kind: openai, base_url: 'http://x', model: y, api_key_env: NOT_SET_KEY}"
    )
    for overrides, message in (
        (
            ["evaluate.benchmarks=[dialogue]", judge],
            "evaluate.judge.api_key_env = 'NOT_SET_KEY': this environment variable is not set",
        ),
        (
            [
                "evaluate.benchmarks=[dialogue]",
                "evaluate.judge={kind: reward_model, model: /nowhere/x}",
            ],
            "evaluate.judge.model: .*no such",
        ),
        (
            ["evaluate.benchmarks=[code]", f"evaluate.code={{tasks: {tmp_path}/broken.jsonl}}"],
            "row 1: not JSON",
        ),
        (
            [
                "evaluate.benchmarks=[code]",
                f"evaluate.code={{tasks: {tmp_path}/tasks.jsonl, apply_chat_template: true}}",
            ],
            "evaluate.code.apply_chat_template: the tokenizer of .* has no chat template",
        ),
        (
            ["evaluate.benchmarks=[leaderboard]", "evaluate.leaderboard={tasks: [no_such_task]}"],
            "no task 'no_such_task'",
        ),
        (
            ["evaluate.benchmarks=[sentiment]", "evaluate.generation.engine=vllm"],
            "vLLM is not installed",
        ),
        (
            ["evaluate.reward={kind: classifier, model: /nowhere/y}"],
            "evaluate.reward.model: .*no such directory",
        ),
    ):
        refused(make_recipe(*overrides), message)


def test_a_split_that_prepare_leaves_empty_ends_the_run_there(
    make_recipe: MakeRecipe, tmp_path: Path, ray_cluster: None
) -> None:
    """A fraction of a millionth of 120 rows: plan says so by its estimate, run after prepare,
    plan then by its count.
    """
    recipe = make_recipe("data.test_fraction=1e-6")
    with pytest.raises(
        UserError,
        match="prepare will keep no such pair, by its estimate, which preference, sentiment, "
        "masks need",
    ):
        run_plan(recipe)
    with pytest.raises(
        UserError,
        match="evaluate.split = 'test': prepare kept no such pair, which preference, sentiment, "
        "masks need",
    ):
        run_stages(recipe, ALL, quiet)
    assert (Path(recipe.run_dir) / "pairs" / "manifest.json").is_file()
    assert (
        not (Path(recipe.run_dir) / "reference").exists()
        and not (Path(recipe.run_dir) / "train").exists()
    )
    with pytest.raises(UserError, match="prepare kept no such pair"):
        run_plan(recipe)
    # The same pairs have no validation rows either, which validation in training and a sweep's
    # metrics need.
    shutil.copytree(f"{recipe.run_dir}/pairs", tmp_path / "pairs")
    place = {"pairs": str(tmp_path / "pairs")}
    manifest = unsealed(tmp_path / "pairs" / "manifest.json")
    manifest["settings"]["data.validation_fraction"] = 1e-6
    started = unsealed(tmp_path / "pairs" / "started.json") | {"settings": manifest["settings"]}
    (tmp_path / "pairs" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "pairs" / "started.json").write_text(json.dumps(started))
    both = ("data.test_fraction=1e-6", "data.validation_fraction=1e-6")
    with pytest.raises(
        UserError,
        match="train.validate_every = 2: prepare kept no such pair in the split validation",
    ):
        run_stages(
            make_recipe(*both, "train.validate_every=2", run_dir=tmp_path / "other", paths=place),
            (REFERENCE, TRAIN),
            quiet,
        )
    (tmp_path / "recipe.yaml").write_text(write_yaml(make_recipe(*both, paths=place)))
    body = {
        "run_dir": str(tmp_path / "s"),
        "recipe": str(tmp_path / "recipe.yaml"),
        "space": {"train.seed": {"grid": [0, 1]}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(body))
    sweep = load_sweep(str(tmp_path / "sweep.yaml"))
    with pytest.raises(
        UserError, match="validation metrics: prepare kept no such pair in the split validation"
    ):
        SharedStores.of(sweep).make(quiet, True, partial(_check_kept, sweep))
    assert not (tmp_path / "s").exists() and not (tmp_path / "other" / "train").exists()


def test_a_sweep_asks_first_too(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        write_yaml(
            make_recipe("evaluate.benchmarks=[sentiment]", "evaluate.generation.engine=vllm")
        )
    )
    body = {
        "run_dir": str(tmp_path / "s"),
        "recipe": str(tmp_path / "recipe.yaml"),
        "space": {"train.seed": {"grid": [0, 1]}},
    }
    body["objectives"] = [{"metric": "evaluation/sentiment/reward/after"}]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(body))
    sweep = load_sweep(str(tmp_path / "sweep.yaml"))
    for act in (lambda: run_tune(sweep, quiet), lambda: plan_sweep(sweep)):
        with pytest.raises(UserError, match="vLLM is not installed"):
            act()
    assert not (tmp_path / "s").exists()


def test_no_benchmark_is_an_evaluation_of_nothing(
    make_recipe: MakeRecipe, model_dir: Path, ray_cluster: None
) -> None:
    recipe = make_recipe("data.test_fraction=0", "evaluate.benchmarks=[]")
    run_stages(recipe, (PREPARE,), quiet)
    shutil.copytree(model_dir, f"{recipe.run_dir}/train/model")
    assert EVALUATE.run(Run(recipe), print, True)["counts"]["results"] == {}
