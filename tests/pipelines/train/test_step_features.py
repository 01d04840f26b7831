"""Transport between stored states beside transport between those of the step."""

from pathlib import Path

import torch
from runs import MakeRecipe, trainer_of

from pipelines.recipe.run_paths import RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.train.metrics import read_metrics


def test_stored_states_give_the_weights_that_the_policy_gives_at_first(
    scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """No KL is computed from them, and the weights do not move with the policy."""
    paths = {name: f"{scored.run_dir}/{name}" for name in ("pairs", "reference")}
    options = ("objective.name=weighted", "objective.beta=1", "mask.kind=transport")
    found = []
    for states in ("policy", "reference"):
        recipe = recipe_in(
            tmp_path / states, *options, f"mask.states={states}", "train.max_steps=4", paths=paths
        )
        trainer_of(recipe).run(lambda metrics: None)
        records = [r for r in read_metrics(RunPaths.of(recipe).train) if "kind" not in r]
        assert not any(name.startswith("kl/") for name in records[0])
        names = ("loss", "grad_norm", "masks/reward_max")
        found.append(torch.tensor([[record[name] for name in names] for record in records]))
    own, stored = found
    torch.testing.assert_close(stored[0], own[0], rtol=1e-4, atol=1e-5)
    assert float((stored[1:, 2] - own[1:, 2]).abs().max()) > 1e-4
