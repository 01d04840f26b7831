"""Weights that read the policy: how a step is cut and run does not show in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from runs import MakeRecipe, trainer_of

from pipelines.recipe.run_paths import RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("ray_cluster")
# Producer -> its options; all read the scored store of log-probabilities and last states.
STEP_PRODUCERS: dict[str, tuple[str, ...]] = {"transport": ()}


def curve(recipe: Recipe) -> torch.Tensor:
    """Loss, gradient norm, margin and mean weight of every step."""
    names = ("loss", "grad_norm", "rewards/margins", "masks/reward_max")
    found = [r for r in read_metrics(RunPaths.of(recipe).train) if "kind" not in r]
    return torch.tensor([[record[name] for name in names] for record in found])


@pytest.fixture
def make(scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path) -> Callable[..., Recipe]:
    paths = {name: f"{scored.run_dir}/{name}" for name in ("pairs", "reference")}
    base = ("objective.name=weighted", "objective.beta=1", "train.max_steps=4")
    base += ("train.global_batch_size=12",)
    return lambda name, *options: recipe_in(tmp_path / name, *base, *options, paths=paths)


def alone(recipe: Recipe) -> torch.Tensor:
    trainer_of(recipe).run(lambda metrics: None)
    return curve(recipe)


@pytest.mark.parametrize("kind", STEP_PRODUCERS)
def test_cuts_layouts_ranks_and_resuming_change_nothing_but_rounding(
    kind: str, make: Callable[..., Recipe], ranks: Ranks
) -> None:
    """Against all pairs in one padded piece; the weights move with the policy."""
    options = (f"mask.kind={kind}", *STEP_PRODUCERS[kind])
    padded = (*options, "train.layout=padded", "train.micro_batch_tokens=100000")
    expected = alone(make("whole", *padded))
    assert float((expected[1:, 3] - expected[0, 3]).abs().min()) > 1e-3
    found = {
        "cut": alone(make("cut", *options, "train.micro_batch_tokens=1", "train.layout=padded")),
        "packed": alone(make("packed", *options, "train.layout=packed")),
        "resumed": _resumed(make("resumed", *padded, "train.checkpoint_every=2")),
    }
    two = make("two", *options, "train.num_workers=2")
    ranks.train(two)
    found["two"] = curve(two)
    for name, one in found.items():
        torch.testing.assert_close(
            one, expected, rtol=3e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def _resumed(recipe: Recipe) -> torch.Tensor:
    trainer = trainer_of(recipe)

    def stop(metrics: dict[str, Any]) -> None:
        assert trainer.checkpoints.failure(wait=True) is None
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer.run(stop)
    trainer = trainer_of(recipe)
    assert trainer.step == 2
    trainer.run(lambda metrics: None)
    return curve(recipe)


def test_stored_states_give_the_weights_that_the_policy_gives_at_first(
    make: Callable[..., Recipe],
) -> None:
    """Transport between the reference's states: no KL is computed, and they do not move."""
    recipes = [
        make(states, "mask.kind=transport", f"mask.states={states}")
        for states in ("policy", "reference")
    ]
    own, stored = map(alone, recipes)
    assert not any("kl" in name for name in next(read_metrics(RunPaths.of(recipes[1]).train)))
    torch.testing.assert_close(stored[0], own[0], rtol=1e-4, atol=1e-5)
    assert float((stored[1:, 3] - own[1:, 3]).abs().max()) > 1e-4
