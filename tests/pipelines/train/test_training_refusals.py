"""Trainings that do not begin, that stop and say why, or that go on with a warning."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import accept_files
from feature_world import World, prepared, trained
from ranks import Ranks
from runs import CPU, MakeRecipe, silent, trainer_of

from pipelines.commands.quickstart_world import write_untrained_model
from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, TRAIN
from pipelines.errors import Failure, StageFailed, UserError
from pipelines.models.device import Placement
from pipelines.recipe.run_paths import RunPaths, failure_files
from pipelines.recipe.stage import Run
from pipelines.storage.records import read_record
from pipelines.train.metrics import read_metrics
from pipelines.train.stage import training_facts
from pipelines.train.worker import train_rank
from sparsepo import FallingChosenWatch, RunawayWatch

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_rows_with_weights_that_do_not_fit_are_dropped_with_the_reason(
    make_recipe: MakeRecipe, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "weights.jsonl"
    bad: list[Any] = [[1.0], [-1.0] * 3, "x", [float("nan")]]
    path.write_text(
        "".join(
            json.dumps({**row, "c": bad[i % 4], "r": bad[i % 4]}) + "\n"
            for i, row in enumerate(rows)
        )
    )
    columns = (
        "data.sources[0].columns.chosen_weights=c",
        "data.sources[0].columns.rejected_weights=r",
    )
    recipe = make_recipe(
        "objective.name=mapo", "mask.kind=external", f"data.sources[0].path={path}", *columns
    )
    with pytest.raises(UserError, match="no usable training pair") as caught:
        run_stages(recipe, (PREPARE,), silent)
    for reason in (
        "1 token weights for a response of",
        "negative or not finite",
        "c is not a list of numbers",
    ):
        assert reason in str(caught.value)


def test_scorers_of_another_vocabulary_are_refused(
    make_recipe: MakeRecipe, model_dir: Path, tmp_path: Path
) -> None:
    write_untrained_model(tmp_path / "other", ["quite different words"], seed=1)
    recipe = make_recipe(
        "objective.name=tis_dpo",
        f"model.positive_scorer={model_dir}",
        f"model.negative_scorer={tmp_path / 'other'}",
    )
    with pytest.raises(
        UserError, match="model.negative_scorer = .*other: its tokenizer has another vocabulary"
    ):
        run_stages(recipe, (PREPARE,), silent)
    assert not Path(recipe.run_dir).exists()


def test_weights_that_stop_being_finite_stop_with_step_and_pairs(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    options = (
        "objective.name=sparsepo",
        "mask.kind=learned",
        "mask.architecture=simple_last",
        "mask.learning_rate=3e37",
        "mask.adam_eps=1e-12",
    )
    recipe = recipe_in(
        tmp_path,
        *options,
        "mask.weight_decay=0",
        "train.max_steps=6",
        "train.warmup_fraction=0",
        *world.options,
        paths=world.paths,
    )
    with pytest.raises(
        StageFailed,
        match=r"step \d: reward_mask\[\d+\]=(nan|inf): weights must be finite and >= 0; pairs "
        r"[0-9a-f]{24}-0.*checkpoint",
    ):
        trained(recipe)


@pytest.mark.slow
def test_one_rank_that_fails_stops_both(
    recipe_in: MakeRecipe, world: World, ranks: Ranks, tmp_path: Path
) -> None:
    """One pair whose scores were turned around behind the pipeline's back: the rank that has it
    says so, and the other does not wait but says the same. Ray Train ends both with that line.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = {name: str(tmp_path / name) for name in ("pairs", "reference")}
    replicated, sharded, under_ray = (
        prepared(
            recipe_in(
                tmp_path / name, "objective.name=odpo", f"train.strategy={strategy}",
                "train.num_workers=2", "train.cpus_per_worker=1", "train.max_steps=3",
                "train.global_batch_size=200",
                *world.options, paths=paths,
            )
        )
        for name, strategy in (("ddp", "ddp"), ("fsdp", "fsdp"), ("ray", "ddp"))
    )  # fmt: skip
    shard = tmp_path / "pairs" / "train-00000.parquet"
    table = pq.read_table(shard)
    scores = table["chosen_score"].to_pylist()
    table = table.set_column(
        table.schema.get_field_index("chosen_score"),
        "chosen_score",
        pa.array([-5.0, *scores[1:]], pa.float64()),
    )
    pq.write_table(table, shard)
    accept_files(RunPaths.of(replicated).pairs)
    line = (
        r"step 1: preference_scores of pair \d+: chosen -5.0, .*; pairs "
        rf".*{table['pair_id'][0]}"
    )
    for recipe in (replicated, sharded):
        said = [end.failure for end in ranks.ends(recipe)]
        assert said[0] is not None and said[0].kind == "stage" and re.search(line, said[0].message)
        assert said[1] == said[0]
        left = RunPaths.of(recipe).train
        assert [Failure(**read_record(left, name)) for name in failure_files(left)] == said
    with pytest.raises(StageFailed, match=line):
        TRAIN.run(Run(under_ray), print, True)


@pytest.mark.slow
def test_layers_that_cannot_be_compiled_end_a_training_in_one_line(
    recipe_in: MakeRecipe,
    world: World,
    tmp_path: Path,
    another_machine: Callable[[], AbstractContextManager[None]],
) -> None:
    """Here there is no C++ compiler."""
    options = ("objective.name=dpo", "train.compile=true", "train.max_steps=2", *world.options)
    run = Run(prepared(recipe_in(tmp_path, *options, paths=world.paths)))
    with another_machine(), torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",)}):
        train_rank(
            training_facts(run), Placement.choose("auto", CPU, 0, 1), 1, lambda metrics: None
        )
    (name,) = failure_files(run.paths.train)
    failure = Failure(**read_record(run.paths.train, name))
    assert failure.kind == "stage" and "cannot compile the decoder layers here" in failure.message
    assert failure.message.endswith("; set train.compile=false")


def test_a_kl_that_runs_away_is_a_warning_of_the_run_and_is_told_once(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """The nineteen steps before this run's first are given: with it the KL grew by more than 1
    nat at a loss that rose.
    """
    recipe = recipe_in(
        tmp_path,
        "objective.name=tdpo1",
        "train.max_steps=2",
        "train.checkpoint_every=1",
        *world.options,
        paths=world.paths,
    )
    trainer = trainer_of(recipe)
    trainer.runaway = RunawayWatch({"window": [[0.1, -5.0]] * 10 + [[0.7, 0.0]] * 9})
    trainer.run(lambda metrics: None)
    (warning,) = [
        record
        for record in read_metrics(RunPaths.of(recipe).train)
        if record.get("kind") == "warning"
    ]
    assert (
        warning["step"] == 1
        and "KL(reference || policy) runs away: from -5.0 to" in warning["messages"][0]
    )
    assert trainer_of(recipe).runaway.state() == {
        "window": [],
        "has_told": True,
    }


def test_chosen_responses_that_get_unlikely_are_a_warning_of_the_run_and_are_told_once(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """The forty-nine steps before this run's first are given: they fall by 2 nats a step."""
    recipe = recipe_in(
        tmp_path,
        "objective.name=dpo",
        "train.max_steps=2",
        "train.checkpoint_every=1",
        *world.options,
        paths=world.paths,
    )
    trainer = trainer_of(recipe)
    before = [[100.0 - 2 * i, i / 100 - 0.5] for i in range(49)]
    trainer.falling = FallingChosenWatch({"window": before})
    trainer.run(lambda metrics: None)
    (warning,) = [
        record
        for record in read_metrics(RunPaths.of(recipe).train)
        if record.get("kind") == "warning"
    ]
    assert warning["step"] == 1
    (line,) = warning["messages"]
    assert "logps/chosen falls while rewards/margins grow" in line and "nll_coef" in line
    assert trainer_of(recipe).falling.state() == {"window": [], "has_told": True}
