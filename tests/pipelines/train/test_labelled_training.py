"""KTO through prepare, reference, training and evaluation: what its loss and estimate are of, and
that cuts of the batch, layouts, ranks and a restart do not show.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from report_views import own_part, words
from runs import MakeRecipe, run_here, trainer_of
from transformers import AutoModelForCausalLM

from pipelines.commands.report import run_report
from pipelines.commands.run import run_stages
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, TRAIN
from pipelines.pairs.table import open_pairs
from pipelines.recipe.run_paths import RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("ray_cluster")
STEPS = ("train.max_steps=4", "train.global_batch_size=7", "train.validate_every=2")


class World:
    """A source of labelled rows, and the finished pairs and reference of it."""

    def __init__(self, source: Path, paths: dict[str, str]) -> None:
        self.options = (
            "objective.name=kto",
            "objective.beta=0.5",
            "objective.undesirable_weight=0.5",
            f"data.sources[0].path={source}",
            "data.validation_fraction=0.1",
        )
        self.paths = paths


@pytest.fixture(scope="module")
def world(
    rows: list[dict[str, str]],
    recipe_in: MakeRecipe,
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    folder = tmp_path_factory.mktemp("labelled")
    source = folder / "rows.jsonl"
    with source.open("w") as file:
        for number, row in enumerate(rows):
            given = {"prompt": row["prompt"], "response": row["chosen"], "label": number % 4 > 0}
            file.write(json.dumps(given) + "\n")
    paths = {"pairs": str(folder / "pairs"), "reference": str(folder / "reference")}
    world = World(source, paths)
    run_here(recipe_in(folder / "run", *world.options, paths=paths), (PREPARE, REFERENCE))
    return world


def found(recipe: Recipe) -> torch.Tensor:
    """Losses, gradients and the estimate of every step, and the losses of validation."""
    records = list(read_metrics(RunPaths.of(recipe).train))
    steps = [[r["loss"], r["grad_norm"], r["kl/mismatched"]] for r in records if "kind" not in r]
    validated = [r["validation/loss"] for r in records if r.get("kind") == "validation"]
    return torch.tensor([*(value for step in steps for value in step), *validated])


def trained(recipe: Recipe) -> torch.Tensor:
    trainer = trainer_of(recipe)
    trainer.run(lambda metrics: None)
    trainer.close()
    return found(recipe)


@pytest.mark.slow
def test_cuts_layouts_and_an_online_reference_do_not_show(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    cases = {
        "one": ("train.micro_batch_tokens=100000", "train.layout=packed"),
        "seven": ("train.micro_batch_tokens=1", "train.layout=packed"),
        "padded": ("train.micro_batch_tokens=100000", "train.layout=padded"),
        "online": ("train.micro_batch_tokens=64", "reference.mode=online"),
    }
    numbers = {
        name: trained(
            recipe_in(tmp_path / name, *world.options, *STEPS, *options, paths=world.paths)
        )
        for name, options in cases.items()
    }
    assert float(numbers["one"][6:9].abs().min()) > 1e-3, "the estimate is over 0 at its third step"
    for name in cases:
        torch.testing.assert_close(numbers[name], numbers["one"], rtol=1e-4, atol=1e-5, msg=name)


def test_the_first_steps_against_plain_transformers(
    recipe_in: MakeRecipe, world: World, model_dir: Path, tmp_path: Path
) -> None:
    """At the reference every loss is half its label's weight. After three steps the loss of the
    next batch by unpadded forwards of the checkpoint.
    """
    options = (*world.options, *STEPS, "train.checkpoint_every=1", "train.keep_checkpoints=5")
    recipe = recipe_in(tmp_path / "run", *options, paths=world.paths)
    trainer = trainer_of(recipe)
    trainer.run(lambda metrics: None)
    records = [r for r in read_metrics(RunPaths.of(recipe).train) if "kind" not in r]
    pairs = open_pairs(Run(recipe))

    def labels_of(step: int) -> list[bool]:
        values = pairs.values("train", trainer.rows_of_step(step), ["desirable"])
        return [label for (label,) in values]

    weights = [0.5 if label else 0.25 for label in labels_of(0)]
    assert records[0]["loss"] == pytest.approx(sum(weights) / 7, abs=1e-5)

    # The published model is that of the fourth step: its validation by hand.
    policy = AutoModelForCausalLM.from_pretrained(Path(recipe.run_dir) / "train" / "model")
    reference = AutoModelForCausalLM.from_pretrained(model_dir)
    sums: list[list[float]] = []
    count = pairs.num_rows("validation")
    for pair in pairs.pairs("validation", range(count)):
        ratios = []
        for response in pair.responses():
            ids = torch.tensor([[*map(int, pair.prompt), *map(int, response)]])
            start = len(pair.prompt)
            with torch.no_grad():
                logps = [
                    model(ids)
                    .logits[0, start - 1 : -1]
                    .log_softmax(-1)
                    .gather(1, ids[0, start:, None])
                    .sum()
                    for model in (policy, reference)
                ]
            ratios.append(float(logps[0] - logps[1]))
        sums.append(ratios)
    labels = [v for (v,) in pairs.values("validation", range(count), ["desirable"])]
    total = 0.0
    for at in range(0, count, 7):  # validation has training's batches
        part, own = sums[at : at + 7], labels[at : at + 7]
        kl = max(0.0, sum(other for _, other in part) / len(part))
        for (ratio, _), label in zip(part, own, strict=True):
            distance = ratio - kl if label else kl - ratio
            weight = 1.0 if label else 0.5
            total += weight * (1 - 1 / (1 + torch.tensor(-0.5 * distance).exp().item()))
    validated = [
        r["validation/loss"]
        for r in read_metrics(RunPaths.of(recipe).train)
        if r.get("kind") == "validation"
    ]
    assert validated[-1] == pytest.approx(total / count, abs=1e-4)


@pytest.mark.slow
def test_a_restart_does_not_show(recipe_in: MakeRecipe, world: World, tmp_path: Path) -> None:
    options = (*world.options, *STEPS, "train.checkpoint_every=1")
    whole = recipe_in(tmp_path / "whole", *options, paths=world.paths)
    expected = trained(whole)
    stopped = recipe_in(tmp_path / "stopped", *options, paths=world.paths)
    first = trainer_of(stopped)

    class Stop(Exception):
        pass

    def stop(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 2:
            raise Stop

    with pytest.raises(Stop):
        first.run(stop)
    first.close()
    torch.testing.assert_close(trained(stopped), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_ranks_do_not_show(
    recipe_in: MakeRecipe, world: World, ranks: Ranks, tmp_path: Path
) -> None:
    options = (*world.options, *STEPS)
    one = trained(recipe_in(tmp_path / "one", *options, paths=world.paths))
    two = recipe_in(tmp_path / "two", *options, "train.num_workers=2", paths=world.paths)
    ranks.train(two)
    torch.testing.assert_close(found(two), one, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_finished_run_is_evaluated_by_its_labels(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """Accuracy and AUC by hand from the records; tokens are shown of the rows' own responses."""
    options = (*world.options, *STEPS, "evaluate.benchmarks=[preference, masks, sentiment]")
    recipe = recipe_in(tmp_path / "run", *options, paths=world.paths)
    run_here(recipe, (TRAIN,))
    said: list[str] = []
    run_stages(recipe, (EVALUATE,), said.append)
    results = Run(recipe).record(EVALUATE).manifest()["counts"]["results"]
    preference = results["preference"]
    pairs = open_pairs(Run(recipe))
    labels = [v for (v,) in pairs.values("test", range(pairs.num_rows("test")), ["desirable"])]
    assert preference["num_rows"] == len(labels)
    assert preference["num_desirable"] == sum(labels)
    assert {"accuracy/implicit_reward", "auc/implicit_reward", "auc/logps/before"} <= set(
        preference
    )
    assert "held-out labels" in " ".join(said) and "AUC" in " ".join(said)
    page = words(own_part(Path(run_report([recipe.run_dir])).read_text()))
    assert "The implicit reward agrees with held-out labels" in page
    assert "Held-out labels" in page and "Held-out preferences" not in page
