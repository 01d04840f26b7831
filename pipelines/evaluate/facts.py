"""What the driver tells the actors of an evaluation: they build no stage record."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.models import Control, ResponseEnds
from pipelines.recipe import EvaluateSection, Recipe
from pipelines.storage import RunStore
from pipelines.train import TrainingFacts


@dataclass(frozen=True)
class EvaluationFacts:
    """What an `Evaluator` needs besides its tasks.

    Attributes:
        store: root of this evaluation's store. step: of the checkpoint that is evaluated; None is
            the published model. start: the starting model's name or path. tokenizer: of what
            holds the tokenizer. ends: of all models' samples. key_words: in lower case, or None.
            fronts: the ids of each of evaluate.control, which stand in front of the policy's
            prompts in turn; one that is empty without.
    """

    settings: EvaluateSection
    store: str
    training: TrainingFacts
    step: int | None
    start: str
    tokenizer: str
    ends: ResponseEnds
    key_words: frozenset[str] | None
    fronts: tuple[tuple[int, ...], ...] = ((),)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        store: RunStore,
        training: TrainingFacts,
        step: int | None,
        ends: ResponseEnds,
        control: Control | None = None,
    ) -> "EvaluationFacts":
        settings, model = recipe.evaluate, recipe.model
        tokenizer = model.tokenizer or model.name_or_path
        words = read_key_words(settings)
        fronts = ((),) if control is None else tuple(map(control.front, settings.control))
        return cls(
            settings,
            store.root,
            training,
            step,
            model.name_or_path,
            tokenizer,
            ends,
            words,
            fronts,
        )

    def starts_from_reference(self) -> bool:
        """Whether the starting model is the reference."""
        return self.training.reference.model.name == self.start


def read_key_words(settings: EvaluateSection) -> frozenset[str] | None:
    """The words of evaluate.key_words in lower case. Raises: UserError for no file of texts."""
    words = settings.key_words
    if words is None:
        return None
    try:
        return frozenset(Path(words).read_text(encoding="utf-8").lower().split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"evaluate.key_words = {words!r}: {error}") from error
