"""One class per kind of token mask: its options and the features it reads."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipelines.recipe.section import Section, of_stage
from sparsepo.masks.declarations import (
    ACTIVATION_MAPPINGS,
    LEARNED_MASKS,
    MASKS,
    check_mask_options,
)

Terms = Literal["both", "reward", "kl"]


class MaskConfig(Section):
    STAGE: ClassVar[str | None] = "train"
    kind: str

    def requires(self) -> frozenset[str]:
        """Features that the mask reads."""
        return MASKS[self.kind].requires

    def masked_terms(self) -> tuple[str, ...]:
        return ()

    def options(self) -> dict[str, Any]:
        """The constructor's, as far as a recipe says them."""
        return self.model_dump(exclude={"kind"})


class NoMask(MaskConfig):
    kind: Literal["none"] = "none"


class FrozenMaskConfig(MaskConfig):
    """Options of every frozen mask, in the order in which they act.

    sides: the other response's tokens weigh 1. keep_fraction: keep a response's tokens with the
    largest absolute weights, zero the others. normalise: per response, mean_one = the weights that
    are not 0 have the mean 1, sum_length = they sum to the number of tokens.
    """

    terms: Terms = of_stage("train", "both")
    sides: Literal["both", "chosen", "rejected"] = of_stage("train", "both")
    keep_fraction: float | None = of_stage("train", None, gt=0, le=1)
    normalise: Literal["none", "mean_one", "sum_length"] = of_stage("train", "none")

    def masked_terms(self) -> tuple[str, ...]:
        return ("reward", "kl") if self.terms == "both" else (self.terms,)


class ActivationMaskConfig(FrozenMaskConfig):
    STAGE = "reference"
    kind: Literal["activation"] = "activation"
    hooks: str | tuple[str, ...] = "all"
    mapping: Literal["zn_rescale", "sigmoid", "none"] = ACTIVATION_MAPPINGS[0]

    def options(self) -> dict[str, Any]:
        given = self.model_dump(include=FrozenMaskConfig.model_fields.keys() - {"kind"})
        return {**given, "signed": self.mapping == "none"}


class RandomMaskConfig(FrozenMaskConfig):
    """Uniform weights that depend on the seed, the pair and the token's place alone."""

    kind: Literal["random"] = "random"
    seed: int = 0


class ExternalMaskConfig(FrozenMaskConfig):
    """Weights from the columns data.sources[].columns.chosen_weights and rejected_weights."""

    kind: Literal["external"] = "external"


class LearnedMaskConfig(MaskConfig):
    kind: Literal["learned"] = "learned"
    architecture: Literal[
        "simple_last", "simple_all", "ml_last", "ml_all", "binary_last", "binary_all"
    ] = "simple_all"
    sharing: Literal["common", "independent"] = "common"
    terms: Terms = "both"
    # centred: within [0, 2], from 1 on, never zero on a whole response; released: the released
    # code's numbers.
    weights: Literal["centred", "released"] = "centred"
    layer_activation: Literal["relu", "none", "rescale"] = "relu"
    mixer_activation: Literal["relu", "none", "rescale"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    target_sparsity: float | None = Field(None, gt=0, lt=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    # While the policy still is the reference, a mask's gradient is rounding noise of about 1e-7,
    # which Adam's usual epsilon would turn into full steps.
    adam_eps: float = Field(1e-6, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> "LearnedMaskConfig":
        check_mask_options(
            self.architecture,
            self.layer_activation,
            self.mixer_activation,
            self.dropout,
            self.target_sparsity,
            self.weights,
        )
        return self

    def requires(self) -> frozenset[str]:
        return frozenset({LEARNED_MASKS[self.architecture].feature})

    def masked_terms(self) -> tuple[str, ...]:
        return ("reward", "kl") if self.terms == "both" else (self.terms,)

    def options(self) -> dict[str, Any]:
        return self.model_dump(exclude={"kind", "learning_rate", "weight_decay", "adam_eps"})


AnyMask = Annotated[
    NoMask | ActivationMaskConfig | RandomMaskConfig | ExternalMaskConfig | LearnedMaskConfig,
    Field(discriminator="kind"),
]
