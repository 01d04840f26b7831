"""sft: a starting model from chosen responses, through the same prepare and train stages."""

from collections.abc import Sequence
from typing import Any

import yaml

from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.errors import UserError
from pipelines.pairs import PREPARE
from pipelines.recipe import NoMask, Recipe, RunPaths, Say, SFTConfig, SFTSection, load_recipe
from pipelines.train import TRAIN

_STAGES = (PREPARE, TRAIN)


def load_sft(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The supervised form of a recipe.

    Raises: UserError as `load_recipe`, and for an override of `train` in whose place section sft
        stands: it would change nothing.
    """
    recipe = load_recipe(name, overrides)
    if recipe.objective.name != "sft":
        for item in overrides:
            _refuse_unread(item)
    return sft_recipe(recipe)


def _refuse_unread(item: str) -> None:
    key, _, text = item.partition("=")
    section, _, rest = key.partition(".")
    if section != "train":
        return
    named = yaml.safe_load(text) if not rest else {rest: text}
    for field in SFTSection.model_fields:
        if isinstance(named, dict) and field in named:
            raise UserError(
                f"train.{field} is the preference run's: `sparsepo sft` takes sft.{field}"
            )


def sft_recipe(recipe: Recipe) -> Recipe:
    """The supervised form of a recipe.

    A preference recipe's goes to RUN/sft, so that both runs can stand together. Adapters are merged
    into the weights: the preference run trains adapters of its own on them.
    """
    if recipe.objective.name == "sft":
        return recipe
    own = recipe.sft.model_dump()
    if own["global_batch_size"] is None:
        del own["global_batch_size"]
    if recipe.train.lora is not None:
        own["lora"] = recipe.train.lora.model_copy(update={"save": "merged"})
    changed: dict[str, Any] = {
        "objective": SFTConfig(),
        "mask": NoMask(),
        "train": recipe.train.model_copy(update=own),
        "sft": SFTSection(),
        "run_dir": f"{recipe.run_dir.rstrip('/')}/sft",
        "paths": recipe.paths.model_copy(update={"pairs": None, "reference": None}),
    }
    return recipe.model_copy(update=changed)


def run_sft(recipe: Recipe, say: Say, quiet: bool = False) -> str:
    """Fine-tune on chosen responses; returns the directory of the model."""
    sft = sft_recipe(recipe)
    run_stages(sft, _STAGES, say, quiet)
    return RunPaths.of(sft).model


def plan_sft(recipe: Recipe, tflops: float | None, name: str) -> dict[str, Any]:
    """What `run_plan` says of the supervised run."""
    return run_plan(sft_recipe(recipe), tflops, _STAGES, name)
