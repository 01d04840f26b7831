"""What the driver knows of a training, for its ranks and for those who load what it made."""

from dataclasses import dataclass
from typing import Any

from pipelines.pairs import PREPARE
from pipelines.recipe import AnyMask, AnyObjective, ModelSection, Run, TrainSection
from pipelines.reference import ReferenceFacts, run_facts
from pipelines.train.light import TRAIN


@dataclass(frozen=True)
class TrainingFacts:
    """What a rank trains, on what, and where it writes.

    Attributes:
        root: of the stage's store. pairs_root: of the pairs. reference: where features come from.
        model, objective, mask, train: the recipe's sections.
        base: fingerprint of the weights that training keeps, None if it changes them.
        gpus_per_run: what the run may take; a fraction of a GPU has that much of its memory.
        run_dir, settings: name and recipe, for trackers.
    """

    root: str
    pairs_root: str
    reference: ReferenceFacts
    model: ModelSection
    objective: AnyObjective
    mask: AnyMask
    train: TrainSection
    base: str | None
    gpus_per_run: float | None
    run_dir: str
    settings: dict[str, Any]


def training_facts(run: Run) -> TrainingFacts:
    """The facts of a run whose pairs and reference are there.

    Raises: UserError if the reference's store is another recipe's.
    """
    recipe = run.recipe
    return TrainingFacts(
        run.paths.train.root,
        run.record(PREPARE).store.root,
        run_facts(run),
        recipe.model,
        recipe.objective,
        recipe.mask,
        recipe.train,
        None if recipe.train.lora is None else run.inputs(TRAIN).start.fingerprint,
        recipe.ray.gpus_per_run,
        recipe.run_dir,
        recipe.model_dump(mode="json"),
    )
