"""discriminator: a head on the reference's states, in a run of its own beside the preference run.

The run's pairs are shared: they are prepared once. RUN/discriminator holds the states of the
reference, which no one needs once the head is trained. With an editor, RUN/discriminator/editor
has its rows, which are prepared as pairs of their own.
"""

from typing import Any

from pipelines.commands.discriminator_status import EDITOR_RUN
from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.discriminator import DISCRIMINATOR, EDIT, check_labels
from pipelines.pairs import PREPARE
from pipelines.recipe import (
    DISCRIMINATOR_RUN,
    TOKEN_STATES,
    NoMask,
    Recipe,
    ReferenceSection,
    RunPaths,
    Say,
    ScheduleSection,
    SimPOConfig,
    Source,
)
from pipelines.reference import REFERENCE

_BY_EDITOR = (PREPARE, EDIT)
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


def editing_recipe(recipe: Recipe) -> Recipe:
    """What is run to edit, in a run of its own: the discriminator's has other pairs."""
    own = discriminator_recipe(recipe)
    return own.model_copy(update={"run_dir": f"{own.run_dir}/{EDITOR_RUN}"})


def edited_recipe(recipe: Recipe) -> Recipe:
    """What is run once an editor has edited: the same on pairs of edited and rejected responses."""
    own = discriminator_recipe(recipe)
    held_out = own.discriminator.held_out
    edits = EDIT.folder(RunPaths.of(editing_recipe(recipe))).root
    sources = {
        split: (Source(path=f"{edits}/{split}.jsonl", form="auto"),)
        for split in ("train", held_out)
    }
    data = own.data.model_copy(
        update={
            "sources": sources["train"],
            "validation": (),
            "test": (),
            held_out: sources[held_out],
            "validation_fraction": 0.0,
            "test_fraction": 0.0,
            "min_gap": 0.0,
            "scored_turns": "last",
            **dict.fromkeys(("max_train_pairs", "max_validation_pairs", "max_test_pairs")),
        }
    )
    paths = own.paths.model_copy(update={"pairs": None})
    return own.model_copy(update={"data": data, "paths": paths})


def _states_of(section: ReferenceSection) -> ReferenceSection:
    """The reference stage that stores states of tokens, and nothing that only a KL reads."""
    changed = {
        "mode": "stored",
        "features": (TOKEN_STATES,),
        "topk": None,
        "layers_dtype": "compute",
    }
    return section.model_copy(update=changed)


def run_discriminator(recipe: Recipe, say: Say, quiet: bool = False) -> str:
    """Train a recipe's discriminator; returns its directory, for model.discriminator."""
    own = discriminator_recipe(recipe)
    if own.discriminator.editor is not None:
        run_stages(editing_recipe(recipe), _BY_EDITOR, say, quiet)
        own = edited_recipe(recipe)
    run_stages(own, _STAGES, say, quiet)
    return RunPaths.of(own).discriminator.root


def plan_discriminator(recipe: Recipe, tflops: float | None, name: str) -> dict[str, Any]:
    """What `run_plan` says of a recipe's discriminator; of the edits alone until they are there."""
    own = discriminator_recipe(recipe)
    if own.discriminator.editor is None:
        return run_plan(own, tflops, _STAGES, name)
    found = run_plan(editing_recipe(recipe), tflops, _BY_EDITOR, name)
    if not found[EDIT.title].get("done"):
        return found
    return run_plan(edited_recipe(recipe), tflops, _STAGES, name)
