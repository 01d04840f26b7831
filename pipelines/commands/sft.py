"""sft: a starting model from chosen responses, through the same prepare and train stages."""

from typing import Any

from pipelines.commands.run import run_stages
from pipelines.pairs import PREPARE
from pipelines.recipe import NoMask, Recipe, RunPaths, Say, SFTConfig
from pipelines.train import TRAIN


def sft_recipe(recipe: Recipe) -> Recipe:
    """The supervised form of a recipe.

    A preference recipe's goes to RUN/sft, so that both runs can stand together.
    """
    if recipe.objective.name == "sft":
        return recipe
    changed: dict[str, Any] = {
        "objective": SFTConfig(),
        "mask": NoMask(),
        "run_dir": f"{recipe.run_dir.rstrip('/')}/sft",
        "paths": recipe.paths.model_copy(update={"pairs": None, "reference": None}),
    }
    return recipe.model_copy(update=changed)


def run_sft(recipe: Recipe, say: Say, quiet: bool = False) -> str:
    """Fine-tune on chosen responses; returns the directory of the model."""
    sft = sft_recipe(recipe)
    run_stages(sft, (PREPARE, TRAIN), say, quiet)
    return RunPaths.of(sft).model
