"""What the driver knows of a training, for its ranks and for those who load what it made."""

from dataclasses import dataclass, field
from typing import Any

from pipelines.models import ChatSettings, Control
from pipelines.recipe import MaskConfig, ModelSection, ObjectiveConfig, TrainSection
from pipelines.reference import ReferenceFacts


@dataclass(frozen=True)
class TrainingFacts:
    """What a rank trains, on what, and where it writes.

    Attributes:
        root: of the stage's store. pairs_root: of the pairs. reference: where features come from.
        model, objective, mask, train: the recipe's sections.
        base: fingerprint of the weights that training keeps, None if it changes them.
        vocabulary: rows of the policy's head over which its distributions are, None for all.
        gpus_per_run: what the run may take; a fraction of a GPU has that much of its memory.
        chat: the template that the recipe sets. control: what stands in front of the prompts.
        trains_control: whether its soft tokens alone are trained.
        run_dir, settings: name and recipe, for trackers.
        compiled: root of the store of compiled code. key: signs what lies there.
    """

    root: str
    pairs_root: str
    reference: ReferenceFacts
    model: ModelSection
    objective: ObjectiveConfig
    mask: MaskConfig
    train: TrainSection
    base: str | None
    vocabulary: int | None
    gpus_per_run: float | None
    chat: ChatSettings
    run_dir: str
    settings: dict[str, Any]
    compiled: str
    key: bytes = field(repr=False)
    control: Control | None = None
    trains_control: bool = False
