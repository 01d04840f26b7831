"""Losses of trainings against their values by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from feature_world import World, log, trained
from matrices import members
from runs import MakeRecipe

from pipelines.pairs.table import open_pairs
from pipelines.recipe.files import packaged
from pipelines.recipe.stage import Run

pytestmark = pytest.mark.usefixtures("ray_cluster")


def packaged_objective(recipe: str) -> dict[str, Any]:
    """The section `objective` of a packaged recipe; empty if there is none of that name."""
    file = packaged("recipe").get(recipe)
    found: dict[str, Any] = yaml.safe_load(file.read_text())["objective"] if file else {}
    return found


# Options of a loss -> its value while the policy is the reference.
LOSSES = {
    "loss=sigmoid_norm": math.log(2),
    "loss=hinge": 1,
    "loss=robust label_smoothing=0.1": math.log(2),
    "loss=exo label_smoothing=0.1": -math.log(2) - math.log(0.9 * 0.1) / 2,
    "loss=apo_zero": 1,
    "loss=apo_down": 1,
    "loss=bco_pair": 2 * math.log(2),
    "loss=nca": 2 * math.log(2),
    "loss=sppo": 50,
    "loss=discopop": math.log(2) / 2 + 0.5,
    "divergence=forward": math.log(2),
    "divergence=js": math.log(2),
    "divergence=alpha divergence_alpha=0.3": math.log(2),
}
QUICK = ("loss=exo label_smoothing=0.1", "loss=apo_down", "loss=sppo", "divergence=js")


@pytest.mark.parametrize("options", members(LOSSES, QUICK))
def test_every_loss_of_dpo_trains(
    options: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """In the packaged recipe's place of them, on the same pairs in every step: from its value at
    the reference to a smaller one.
    """
    section = packaged_objective("hh-dpo-losses") | {"loss": "sigmoid"}
    given = [f"objective.{option}" for option in options.split()]
    recipe = recipe_in(
        tmp_path,
        "train.epochs=3",
        "train.warmup_fraction=0",
        "train.learning_rate=1e-4",
        "train.global_batch_size=200",
        *given,
        *world.options,
        objective=section,
        paths=world.paths,
    )
    trained(recipe)
    losses = [record["loss"] for record in log(recipe)]
    assert losses[0] == pytest.approx(LOSSES[options], rel=1e-5)
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    "name", members(("dpo", "tdpo1", "tdpo2", "mapo", "sparsepo"), ("tdpo1", "sparsepo"))
)
def test_bfloat16_starts_at_ln2(
    name: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """Policy and reference in bfloat16 on the same micro-batches, to 1e-3. (DPOP multiplies what
    is left of rounding by 50.)
    """
    masks = {
        "mapo": ["mask.kind=activation"],
        "sparsepo": ["mask.kind=learned", "mask.architecture=simple_all"],
    }.get(name, [])
    precision = (
        "train.precision=bfloat16",
        "reference.dtype=bfloat16",
        "reference.mode=online",
        "train.max_steps=1",
    )
    recipe = recipe_in(
        tmp_path,
        f"objective.name={name}",
        *masks,
        *precision,
        *world.options,
        paths={"pairs": world.paths["pairs"]},
    )
    trained(recipe)
    assert log(recipe)[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_scores_and_weights_reach_training(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """Values of the source file, truncated and completed with 1 for a missing end token; ODPO's
    first loss by hand.
    """
    recipe = recipe_in(
        tmp_path, "objective.name=odpo", "train.max_steps=1", *world.options, paths=world.paths
    )
    sampler = trained(recipe).sampler
    pairs = open_pairs(Run(recipe))
    source = {row["chosen"]: row for row in map(json.loads, world.source.read_text().splitlines())}
    gaps, columns = [], ("chosen", "chosen_score", "rejected_score", "chosen_weights", "chosen_ids")
    for chosen, good, bad, weights, ids in pairs.values(
        "train", range(pairs.num_rows("train")), columns
    ):
        original = source[chosen]
        assert (good, bad) == (original["good"], original["bad"])
        assert weights == pytest.approx([*original["chosen_w"], 1.0][: len(ids)])
        gaps.append(good - bad)
    batch = sampler.pair_indices(0)
    by_hand = sum(math.log(1 + math.exp(math.log(gaps[i]))) for i in batch) / len(batch)
    assert log(recipe)[0]["loss"] == pytest.approx(by_hand, abs=1e-5)
