"""discriminator: a head on the reference's states, in a run of its own beside the preference run.

The run's pairs are shared: they are prepared once. RUN/discriminator holds the states of the
reference, which no one needs once the head is trained.
"""

from typing import Any

from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.discriminator import DISCRIMINATOR, check_labels
from pipelines.pairs import PREPARE
from pipelines.recipe import (
    DISCRIMINATOR_RUN,
    NoMask,
    Recipe,
    ReferenceSection,
    RunPaths,
    Say,
    ScheduleSection,
    SimPOConfig,
)
from pipelines.reference import REFERENCE

_STAGES = (PREPARE, REFERENCE, DISCRIMINATOR)


def discriminator_recipe(recipe: Recipe) -> Recipe:
    """What is run for a recipe's discriminator, in RUN/discriminator.

    Raises: UserError for a recipe whose pairs give no labels.
    """
    check_labels(recipe)
    paths = RunPaths.of(recipe)
    changed: dict[str, Any] = {
        "objective": SimPOConfig(),  # which reads nothing of the reference
        "mask": NoMask(),
        "model": recipe.model.model_copy(update={"discriminator": None}),
        "reference": _states_of(recipe.reference),
        "evaluate": recipe.evaluate.model_copy(
            update={"benchmarks": (), "name": None, "model": None}
        ),
        "schedule": ScheduleSection(),
        "run_dir": f"{recipe.run_dir.rstrip('/')}/{DISCRIMINATOR_RUN}",
        "paths": recipe.paths.model_copy(update={"pairs": paths.pairs_root, "reference": None}),
    }
    return recipe.model_copy(update=changed)


def _states_of(section: ReferenceSection) -> ReferenceSection:
    """The reference stage that stores states of tokens, and nothing that only a KL reads."""
    changed = {
        "mode": "stored",
        "features": ("token_states",),
        "topk": None,
        "layers_dtype": "compute",
    }
    return section.model_copy(update=changed)


def run_discriminator(recipe: Recipe, say: Say, quiet: bool = False) -> str:
    """Train a recipe's discriminator; returns its directory, for model.discriminator."""
    own = discriminator_recipe(recipe)
    run_stages(own, _STAGES, say, quiet)
    return RunPaths.of(own).discriminator.root


def plan_discriminator(recipe: Recipe, tflops: float | None, name: str) -> dict[str, Any]:
    """What `run_plan` says of a recipe's discriminator."""
    return run_plan(discriminator_recipe(recipe), tflops, _STAGES, name)
