"""What the driver tells the actors of an evaluation: they build no stage record."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models import ResponseEnds
from pipelines.recipe import (
    DPOConfig,
    EvaluateSection,
    ModelSection,
    NoMask,
    Recipe,
    ReferenceSection,
    Run,
)
from pipelines.storage import RunStore
from pipelines.train import TrainingFacts, training_facts


@dataclass(frozen=True)
class EvaluationFacts:
    """What an `Evaluator` needs besides its tasks.

    Attributes:
        store: root of this evaluation's store. step: of the checkpoint that is evaluated; None is
            the published model. start: the starting model's name or path. tokenizer: of what
            holds the tokenizer. ends: of all models' samples. key_words: in lower case, or None.
    """

    settings: EvaluateSection
    store: str
    training: TrainingFacts
    step: int | None
    start: str
    tokenizer: str
    ends: ResponseEnds
    key_words: frozenset[str] | None

    @classmethod
    def of(
        cls,
        run: Run,
        store: RunStore,
        step: int | None,
        ends: ResponseEnds,
    ) -> "EvaluationFacts":
        """UserError if the reference's store is another recipe's.

        A model that evaluate.model names is the policy of a training without a step.
        """
        settings, model = run.recipe.evaluate, run.recipe.model
        training = training_facts(run if settings.model is None else Run(in_its_place(run.recipe)))
        tokenizer = model.tokenizer or model.name_or_path
        words = read_key_words(settings)
        return cls(settings, store.root, training, step, model.name_or_path, tokenizer, ends, words)

    def starts_from_reference(self) -> bool:
        """Whether the starting model is the reference."""
        return self.training.reference.model.name == self.start


def in_its_place(recipe: Recipe) -> Recipe:
    """The recipe of a training that would start from the model which evaluate.model names.

    It needs nothing that a stage stores: the objective is DPO with the recipe's beta, without a
    mask, and the reference runs beside.
    """
    assert recipe.evaluate.model is not None
    model = recipe.model
    changed: dict[str, Any] = {
        "model": ModelSection(
            name_or_path=recipe.evaluate.model,
            reference=model.reference or model.name_or_path,
            tokenizer=model.tokenizer or model.name_or_path,
        ),
        "objective": DPOConfig(beta=beta_of(recipe)),
        "mask": NoMask(),
        "reference": ReferenceSection(mode="online", dtype=recipe.reference.dtype),
        "train": recipe.train.model_copy(update={"lora": None}),
    }
    return recipe.model_copy(update=changed)


def beta_of(recipe: Recipe) -> float:
    """The objective's beta; DPO's own where it has none."""
    found = getattr(recipe.objective, "beta", None)
    return DPOConfig().beta if found is None else float(found)


def read_key_words(settings: EvaluateSection) -> frozenset[str] | None:
    """The words of evaluate.key_words in lower case. Raises: UserError for no file of texts."""
    words = settings.key_words
    if words is None:
        return None
    try:
        return frozenset(Path(words).read_text(encoding="utf-8").lower().split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"evaluate.key_words = {words!r}: {error}") from error
