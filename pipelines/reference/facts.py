"""What the driver knows of a recipe's reference, for those who read it or load it.

Nobody who is handed it builds a stage record: no source is read again, no weights are hashed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.models import longest_row
from pipelines.recipe import ActivationMaskConfig, Recipe, StageRecord

if TYPE_CHECKING:
    from pipelines.pairs import PairTable
    from sparsepo.masks.declarations import ActivationMapping


@dataclass(frozen=True)
class FrozenReference:
    """How a machine loads the reference model.

    Attributes:
        name: a directory, or a name that every machine resolves to a copy of its own.
        dtype: auto, float32 or bfloat16. hooks, mapping: of the activation mask.
        topk: outcomes kept of a distribution, where only the likeliest are. longest: tokens of the
            longest sequence that it reads.
        vocabulary: rows over which it is compared with the policy where one of them has more, None
            for all.
        token_layer: whose states of the tokens themselves are stored, None for the last one.
        discriminator: the directory of the one that judges them, if any does.
    """

    name: str
    dtype: str
    hooks: str | tuple[str, ...]
    mapping: "ActivationMapping"
    topk: int
    longest: int
    vocabulary: int | None = None
    token_layer: int | None = None
    discriminator: str | None = None

    @classmethod
    def of(cls, recipe: Recipe, vocabulary: int | None = None) -> "FrozenReference":
        """The starting policy, its adapter included, unless another reference is named."""
        mask = recipe.mask
        hooks, mapping = (
            (mask.hooks, mask.mapping)
            if isinstance(mask, ActivationMaskConfig)
            else ("all", "zn_rescale")
        )
        return cls(
            recipe.model.reference or recipe.model.name_or_path,
            recipe.reference.dtype,
            hooks,
            mapping,
            recipe.reference.topk or 64,
            longest_row(recipe),
            vocabulary,
            recipe.discriminator.layer,
            recipe.model.discriminator if recipe.judges_tokens() else None,
        )


@dataclass(frozen=True)
class OtherModels:
    """Names of the models beside the reference, which every machine resolves for itself.

    Attributes:
        positive_scorer, negative_scorer: what tokens are weighed by; the reference takes the place
            of one that is missing. embedder: of RPO's prompts; None for the reference itself.
    """

    positive_scorer: str | None = None
    negative_scorer: str | None = None
    embedder: str | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> "OtherModels":
        model = recipe.model
        return cls(model.positive_scorer, model.negative_scorer, model.embedder)

    def scorers(self) -> dict[str, str | None]:
        """Key of the recipe -> name of the scorer, None for the reference in its place."""
        assert self.positive_scorer or self.negative_scorer, "the recipe's validation requires one"
        return {"positive_scorer": self.positive_scorer, "negative_scorer": self.negative_scorer}


@dataclass(frozen=True)
class ReferenceFacts:
    """Where the features that a recipe wants come from.

    Attributes:
        root: of the reference stage's store. fingerprint: that its manifest has to name.
        wanted: what objective and mask want. online: of these, what the model computes beside
            training. stored: of these, what is read from the store.
        failed: split -> its rows that the stage could not score; empty if nothing is read from the
            store.
        model: for what is computed online.
    """

    root: str
    fingerprint: str
    wanted: frozenset[str]
    online: frozenset[str]
    stored: frozenset[str]
    failed: Mapping[str, frozenset[int]]
    model: FrozenReference


def reference_facts(
    recipe: Recipe, record: StageRecord | None, vocabulary: int | None
) -> ReferenceFacts:
    """The facts of a recipe, from the record of its reference stage.

    A stage that is not finished has no failed rows yet; `open_reference` refuses it.

    Raises: UserError if something is read from the store and it is another recipe's.
    """
    wanted = recipe.required_features()
    stored = recipe.stored_features() & wanted
    failed: dict[str, dict[str, str]] = {}
    if stored and record is not None and record.is_complete():
        failed = record.manifest()["counts"]["failed"]
    return ReferenceFacts(
        "" if record is None else record.store.root,
        "" if record is None else record.fingerprint(),
        wanted,
        recipe.online_features(),
        stored,
        {split: frozenset(map(int, rows)) for split, rows in failed.items()},
        FrozenReference.of(recipe, vocabulary),
    )


def usable_rows(facts: ReferenceFacts, pairs: "PairTable", split: str) -> list[int]:
    """Rows of a split without those that the reference stage could not score."""
    failed = facts.failed.get(split, frozenset())
    return [row for row in range(pairs.num_rows(split)) if row not in failed]
