"""What the driver tells the actors of an evaluation: they build no stage record."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.models import ResponseEnds
from pipelines.pairs import pairs_store
from pipelines.recipe import EvaluateSection, Recipe, StageRecord
from pipelines.reference import ReferenceFacts
from pipelines.storage import RunStore
from pipelines.train import frozen_base, train_store


@dataclass(frozen=True)
class PolicyFacts:
    """Where the evaluated policy lies.

    Attributes:
        train: root of the train stage's store. step: of the checkpoint; None is the published
            model. base: fingerprint of the weights that training kept; None if it changed them.
        recipe: for the functions of the train room that take one.
    """

    train: str
    step: int | None
    base: str | None
    recipe: Recipe

    @classmethod
    def of(cls, recipe: Recipe, step: int | None) -> "PolicyFacts":
        base = None if step is None else frozen_base(recipe)
        return cls(train_store(recipe).root, step, base, recipe)


@dataclass(frozen=True)
class EvaluationFacts:
    """What an `Evaluator` needs besides its tasks.

    Attributes:
        settings: of the evaluation. model: the starting model's name or path. tokenizer: likewise,
            of what holds the tokenizer. ends: of all models' samples. pairs: root of their store.
            store: root of this evaluation's store. key_words: in lower case, or None.
    """

    settings: EvaluateSection
    model: str
    tokenizer: str
    ends: ResponseEnds
    pairs: str
    store: str
    reference: ReferenceFacts
    policy: PolicyFacts
    key_words: frozenset[str] | None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        record: StageRecord,
        reference: ReferenceFacts,
        ends: ResponseEnds,
        step: int | None,
    ) -> "EvaluationFacts":
        """Args: record: of the evaluation. step: of the checkpoint; None is the published model."""
        words = recipe.evaluate.key_words
        return cls(
            recipe.evaluate,
            recipe.model.name_or_path,
            recipe.model.tokenizer or recipe.model.name_or_path,
            ends,
            pairs_store(recipe).root,
            record.store.root,
            reference,
            PolicyFacts.of(recipe, step),
            None if words is None else frozenset(Path(words).read_text().lower().split()),
        )

    def published_model(self) -> str:
        return RunStore(self.policy.train).at("model").root

    def starts_from_reference(self) -> bool:
        """Whether the starting model is the reference."""
        return self.reference.model.name == self.model
