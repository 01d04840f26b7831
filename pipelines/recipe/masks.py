"""One class per kind of token mask: its options and the features it reads."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipelines.recipe.section import Section, added, of_stage
from sparsepo.masks.declarations import (
    ACTIVATION_MAPPINGS,
    LEARNED_MASKS,
    MASKS,
    RATIO_SOURCES,
    SEGMENT_VALUES,
    TRANSPORT_STATES,
    check_exp_ratio_options,
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

    terms: which terms are masked. sides: the other response's tokens weigh 1. keep_fraction: keep a
    response's tokens with the largest absolute weights, zero the others. normalise: per response,
    mean_one = the weights that are not 0 have the mean 1, sum_length = they sum to the number of
    tokens.
    """

    terms: Terms = of_stage("train", "both")
    sides: Literal["both", "chosen", "rejected"] = added("both", "train")
    keep_fraction: float | None = of_stage("train", None, gt=0, le=1)
    normalise: Literal["none", "mean_one", "sum_length"] = added("none", "train")

    def masked_terms(self) -> tuple[str, ...]:
        return ("reward", "kl") if self.terms == "both" else (self.terms,)


class ActivationMaskConfig(FrozenMaskConfig):
    """Weights from the reference's activations.

    hooks: points of the model that are read. mapping: how activations become weights.
    """

    STAGE = "reference"
    kind: Literal["activation"] = "activation"
    hooks: str | tuple[str, ...] = "all"
    mapping: Literal["zn_rescale", "sigmoid", "none"] = ACTIVATION_MAPPINGS[0]

    def options(self) -> dict[str, Any]:
        given = self.model_dump(include=FrozenMaskConfig.model_fields.keys() - {"kind"})
        return {**given, "signed": self.mapping == "none"}


class RandomMaskConfig(FrozenMaskConfig):
    """Uniform weights that depend on the seed, the pair and the token's place alone.

    seed: another one gives other weights.
    """

    kind: Literal["random"] = "random"
    seed: int = 0


class ExternalMaskConfig(FrozenMaskConfig):
    """Weights from the columns data.sources[].columns.chosen_weights and rejected_weights."""

    kind: Literal["external"] = "external"


class PositionDecayMaskConfig(FrozenMaskConfig):
    """D2PO: g^t, t from 1."""

    kind: Literal["position_decay"] = "position_decay"
    g: float = Field(0.98, gt=0, le=1)


class LengthSplitMaskConfig(FrozenMaskConfig):
    """LD-DPO: 1 up to the shorter response's length, alpha beyond."""

    kind: Literal["length_split"] = "length_split"
    alpha: float = Field(0.5, ge=0, le=1)


class PartitionMaskConfig(FrozenMaskConfig):
    """Tokens hashed into parts, of which every epoch weighs another; validation weighs all by 1."""

    kind: Literal["partition"] = "partition"
    parts: int = Field(4, ge=1)
    seed: int = 0


class ConfidenceMaskConfig(FrozenMaskConfig):
    """ConfPO: tokens that the policy finds less likely than its mean over the response."""

    kind: Literal["confidence"] = "confidence"


class SurpriseMaskConfig(FrozenMaskConfig):
    """Selective DPO: tokens from this quantile on of what the policy lacks of the reference."""

    kind: Literal["surprise"] = "surprise"
    quantile: float = Field(0.6, ge=0, lt=1)


class AdversarialMaskConfig(FrozenMaskConfig):
    """The fraction k of a response's tokens that lowers the margin most."""

    kind: Literal["adversarial"] = "adversarial"
    k: float = Field(0.5, gt=0, le=1)


class ExpRatioMaskConfig(FrozenMaskConfig):
    """The weights of TIS-DPO, from two scorers, or the data's columns as they are."""

    kind: Literal["exp_ratio"] = "exp_ratio"
    mu: float = Field(1.0, gt=0)
    low: float = -0.5
    high: float = 1.5
    source: Literal["scorers", "external"] = "scorers"

    @model_validator(mode="after")
    def _fits(self) -> "ExpRatioMaskConfig":
        check_exp_ratio_options(self.mu, self.low, self.high, self.source)
        return self

    def requires(self) -> frozenset[str]:
        return frozenset({RATIO_SOURCES[self.source]})


class TokenRewardMaskConfig(FrozenMaskConfig):
    """TGDPO: 1 + alpha beta q chosen, 1 - alpha beta q rejected; weights may be negative."""

    kind: Literal["token_reward"] = "token_reward"
    alpha: float = Field(0.5, ge=0, allow_inf_nan=False)
    beta: float = Field(0.1, gt=0, allow_inf_nan=False)


class SelectiveMaskConfig(FrozenMaskConfig):
    """SePO: the fraction k of chosen tokens with the largest q, of rejected with the smallest."""

    kind: Literal["selective"] = "selective"
    k: float = Field(0.3, gt=0, le=1)


class SegmentMaskConfig(FrozenMaskConfig):
    """Segments, cut where a value jumps by more than theta, whose sum agrees with their side.

    value: of each token; ratio = the scorers' log ratio q, in nats, of which token_reward's is a
    multiple; discriminator = 2 D - 1 of model.discriminator; policy_ratio = policy minus reference;
    external = the data's columns of weights. theta: in the value's unit.
    """

    kind: Literal["segment"] = "segment"
    theta: float = Field(1.0, ge=0, allow_inf_nan=False)
    value: Literal["ratio", "discriminator", "policy_ratio", "external"] = added("ratio")

    def requires(self) -> frozenset[str]:
        return SEGMENT_VALUES[self.value]


class DiscriminatorMaskConfig(FrozenMaskConfig):
    """TLCR: clamp(1 + mu v, 0, hi) chosen, clamp(1 - mu v, 0, hi) rejected, v = 2 D - 1."""

    kind: Literal["discriminator"] = "discriminator"
    mu: float = Field(1.0, ge=0, allow_inf_nan=False)
    hi: float = Field(2.0, ge=1, allow_inf_nan=False)


class ContrastMaskConfig(FrozenMaskConfig):
    """Critical tokens: probability under the positive scorer, 1 less that under the negative."""

    kind: Literal["contrast"] = "contrast"


class EntropyMaskConfig(FrozenMaskConfig):
    """The fraction of a response's tokens at which the reference is least decided."""

    kind: Literal["entropy"] = "entropy"
    fraction: float = Field(0.2, gt=0, le=1)


class SaliencyMaskConfig(FrozenMaskConfig):
    """TI-DPO: a gradient's norm, and a Gaussian over positions with what is left of the share."""

    kind: Literal["saliency"] = "saliency"
    share: float = Field(0.7, ge=0, le=1)


class TransportMaskConfig(FrozenMaskConfig):
    """OTPO: marginals of a transport plan between both responses' states."""

    kind: Literal["transport"] = "transport"
    states: Literal["policy", "reference"] = "policy"
    entropic_reg: float = Field(0.1, gt=0, allow_inf_nan=False)
    marginal_penalty: float = Field(0.2, gt=0, allow_inf_nan=False)

    def requires(self) -> frozenset[str]:
        return frozenset({TRANSPORT_STATES[self.states]})


class LearnedMaskConfig(MaskConfig):
    """Masks learned from the reference's hidden states.

    architecture: which states a mask reads, and its layers. sharing: one mask for both terms, or
    one each. terms: which terms are masked. weights: centred = within [0, 2], from 1 on, never zero
    on a whole response; released = the released code's numbers. layer_activation, mixer_activation:
    what follows a layer's score, and the mixture. dropout: of the states. target_sparsity: share of
    tokens held at weight 0. learning_rate, weight_decay, adam_eps: of the masks' parameters; while
    policy and reference are equal their gradients are rounding noise, which a smaller adam_eps
    would make full steps of.
    """

    kind: Literal["learned"] = "learned"
    architecture: Literal[
        "simple_last", "simple_all", "ml_last", "ml_all", "binary_last", "binary_all"
    ] = "simple_all"
    sharing: Literal["common", "independent"] = "common"
    terms: Terms = "both"
    weights: Literal["centred", "released"] = "centred"
    layer_activation: Literal["relu", "none", "rescale"] = "relu"
    mixer_activation: Literal["relu", "none", "rescale"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    target_sparsity: float | None = Field(None, gt=0, lt=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
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
    NoMask
    | ActivationMaskConfig
    | RandomMaskConfig
    | ExternalMaskConfig
    | LearnedMaskConfig
    | PositionDecayMaskConfig
    | LengthSplitMaskConfig
    | PartitionMaskConfig
    | ConfidenceMaskConfig
    | SurpriseMaskConfig
    | AdversarialMaskConfig
    | ExpRatioMaskConfig
    | TokenRewardMaskConfig
    | SelectiveMaskConfig
    | SegmentMaskConfig
    | DiscriminatorMaskConfig
    | ContrastMaskConfig
    | EntropyMaskConfig
    | SaliencyMaskConfig
    | TransportMaskConfig,
    Field(discriminator="kind"),
]
