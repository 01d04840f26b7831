"""What the driver tells the actors of an evaluation: they build no stage record."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.evaluate.light import checkpoint_record, ends_of
from pipelines.models import ResponseEnds
from pipelines.recipe import EvaluateSection, Run
from pipelines.train import TrainingFacts, training_facts


@dataclass(frozen=True)
class EvaluationFacts:
    """What an `Evaluator` needs besides its tasks.

    Attributes:
        settings: of the evaluation. model: the starting model's name or path. tokenizer: likewise,
            of what holds the tokenizer. ends: of all models' samples. store: root of this
            evaluation's store. training: of the policy, its pairs and its reference. step: of the
            evaluated checkpoint; None is the published model. published: that model's directory.
            key_words: in lower case, or None.
    """

    settings: EvaluateSection
    model: str
    tokenizer: str
    ends: ResponseEnds
    store: str
    training: TrainingFacts
    step: int | None
    published: str
    key_words: frozenset[str] | None

    @classmethod
    def of(cls, run: Run, step: int | None) -> "EvaluationFacts":
        """Args: step: of the checkpoint; None is the published model."""
        recipe, words = run.recipe, run.recipe.evaluate.key_words
        return cls(
            recipe.evaluate,
            recipe.model.name_or_path,
            recipe.model.tokenizer or recipe.model.name_or_path,
            ends_of(run),
            checkpoint_record(run, step).store.root,
            training_facts(run),
            step,
            run.paths.model,
            None if words is None else frozenset(Path(words).read_text().lower().split()),
        )

    def starts_from_reference(self) -> bool:
        """Whether the starting model is the reference."""
        return self.training.reference.model.name == self.model
