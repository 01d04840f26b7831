"""Every mask's declaration: what is known of it before it is built. Imports no torch."""

import importlib
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sparsepo.masks.base import TokenMasks

MaskedTerms = Literal["both", "reward", "kl"]
MaskedSides = Literal["both", "chosen", "rejected"]
Normalisation = Literal["none", "mean_one", "sum_length"]
ActivationMapping = Literal["zn_rescale", "sigmoid", "none"]
MaskSharing = Literal["common", "independent"]
MaskActivation = Literal["relu", "none", "rescale"]
MaskWeighting = Literal["released", "centred"]
ACTIVATION_MAPPINGS: tuple[ActivationMapping, ...] = ("zn_rescale", "sigmoid", "none")
MASKED_TERMS: tuple[MaskedTerms, ...] = ("both", "reward", "kl")
MASKED_SIDES: tuple[MaskedSides, ...] = ("both", "chosen", "rejected")
NORMALISATIONS: tuple[Normalisation, ...] = ("none", "mean_one", "sum_length")
MASK_ACTIVATIONS: tuple[MaskActivation, ...] = ("relu", "none", "rescale")
MASK_WEIGHTINGS: tuple[MaskWeighting, ...] = ("released", "centred")


RatioSource = Literal["scorers", "external"]
# Where the weights of TIS-DPO come from -> the feature that is read.
RATIO_SOURCES: dict[RatioSource, str] = {
    "scorers": "scorer_log_ratios",
    "external": "external_weights",
}
SegmentValue = Literal["ratio", "discriminator", "policy_ratio", "external"]
# The per-token value that segments are made of -> the features that it is made of.
SEGMENT_VALUES: dict[SegmentValue, frozenset[str]] = {
    "ratio": frozenset({"scorer_log_ratios"}),
    "discriminator": frozenset({"discriminator_values"}),
    "policy_ratio": frozenset({"policy_logps", "reference_logps"}),
    "external": frozenset({"external_weights"}),
}
TransportStates = Literal["policy", "reference"]
TRANSPORT_STATES: dict[TransportStates, str] = {
    "policy": "policy_hidden",
    "reference": "reference_hidden",
}


@dataclass(frozen=True)
class MaskDeclaration:
    """What a kind of mask reads. Called with its options, it builds the mask.

    Attributes:
        module: in sparsepo.masks. class_name: the class in it.
        requires: features the mask reads, with the options' defaults; of a learned one its
            architecture says which.
    """

    module: str
    class_name: str
    requires: frozenset[str] = frozenset()

    def load(self) -> "type[TokenMasks]":
        """The mask's class. The first call imports its module, and torch."""
        module = importlib.import_module(f"sparsepo.masks.{self.module}")
        found: type[TokenMasks] = getattr(module, self.class_name)
        return found

    def __call__(self, **options: Any) -> "TokenMasks":
        """The mask with these options. ValueError naming one that is out of range."""
        return self.load()(**options)


MASKS: dict[str, MaskDeclaration] = {
    "none": MaskDeclaration("base", "UniformMask"),
    "activation": MaskDeclaration("frozen", "ActivationMask", frozenset({"activation_mask"})),
    "random": MaskDeclaration("frozen", "RandomMask", frozenset({"pair_keys"})),
    "external": MaskDeclaration("frozen", "ExternalMask", frozenset({"external_weights"})),
    "learned": MaskDeclaration("learned", "LearnedMasks"),
    "position_decay": MaskDeclaration("position_decay", "PositionDecayMask"),
    "length_split": MaskDeclaration("length_split", "LengthSplitMask"),
    "partition": MaskDeclaration("partition", "PartitionMask", frozenset({"pair_keys", "epoch"})),
    "confidence": MaskDeclaration("confidence", "ConfidenceMask", frozenset({"policy_logps"})),
    "surprise": MaskDeclaration(
        "surprise", "SurpriseMask", frozenset({"policy_logps", "reference_logps"})
    ),
    "adversarial": MaskDeclaration(
        "adversarial", "AdversarialMask", frozenset({"policy_logps", "reference_logps"})
    ),
    "exp_ratio": MaskDeclaration("exp_ratio", "ExpRatioMask", frozenset({"scorer_log_ratios"})),
    "token_reward": MaskDeclaration(
        "token_reward", "TokenRewardMask", frozenset({"scorer_log_ratios"})
    ),
    "selective": MaskDeclaration("selective", "SelectiveMask", frozenset({"scorer_log_ratios"})),
    "segment": MaskDeclaration("segment", "SegmentMask", frozenset({"scorer_log_ratios"})),
    "discriminator": MaskDeclaration(
        "discriminator", "DiscriminatorMask", frozenset({"discriminator_values"})
    ),
    "contrast": MaskDeclaration(
        "contrast", "ContrastMask", frozenset({"positive_logps", "negative_logps"})
    ),
    "entropy": MaskDeclaration("entropy", "EntropyMask", frozenset({"reference_entropy"})),
    "saliency": MaskDeclaration("saliency", "SaliencyMask", frozenset({"saliency"})),
    "transport": MaskDeclaration("transport", "TransportMask", frozenset({"policy_hidden"})),
}


def check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError naming an option whose value is not one of these."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def check_exp_ratio_options(mu: float, low: float, high: float, source: str) -> None:
    """ValueError naming an option of the weights of TIS-DPO that is wrong or would be ignored."""
    check_one_of("source", source, tuple(RATIO_SOURCES))
    if not (isfinite(low) and isfinite(high) and low < high):
        raise ValueError(f"low={low}, high={high}: must be finite with low < high")
    if not (isfinite(mu) and mu > 0):
        raise ValueError(f"mu={mu}: must be finite and > 0")
    if source == "external" and (mu, low, high) != (1.0, -0.5, 1.5):
        raise ValueError(
            f"mu={mu}, low={low}, high={high} with source='external': weights from the data are "
            "taken as they are; leave the three out"
        )


@dataclass(frozen=True)
class MaskArchitecture:
    """Which states a learned mask reads and how it scores them."""

    reads_all_layers: bool
    is_two_layer: bool = False
    is_binary: bool = False

    @property
    def feature(self) -> str:
        return "reference_layers" if self.reads_all_layers else "reference_hidden"


LEARNED_MASKS: dict[str, MaskArchitecture] = {
    "simple_last": MaskArchitecture(False),
    "simple_all": MaskArchitecture(True),
    "ml_last": MaskArchitecture(False, is_two_layer=True),
    "ml_all": MaskArchitecture(True, is_two_layer=True),
    "binary_last": MaskArchitecture(False, is_binary=True),
    "binary_all": MaskArchitecture(True, is_binary=True),
}


def check_mask_options(
    architecture: str,
    layer_activation: str,
    mixer_activation: str,
    dropout: float,
    target_sparsity: float | None,
    weights: str = "released",
) -> MaskArchitecture:
    """The architecture of these options.

    ValueError naming the option that is wrong or would be ignored.
    """
    if architecture not in LEARNED_MASKS:
        raise ValueError(
            f"mask architecture {architecture!r} is not one of {', '.join(LEARNED_MASKS)}"
        )
    kind = LEARNED_MASKS[architecture]
    for name, value in (
        ("layer_activation", layer_activation),
        ("mixer_activation", mixer_activation),
    ):
        check_one_of(name, value, MASK_ACTIVATIONS)
    check_one_of("weights", weights, MASK_WEIGHTINGS)
    if not kind.reads_all_layers and mixer_activation != "relu":
        raise ValueError(
            f"mixer_activation={mixer_activation!r}: {architecture} reads one layer and has no "
            "mixer"
        )
    name, final = (
        ("mixer_activation", mixer_activation)
        if kind.reads_all_layers
        else ("layer_activation", layer_activation)
    )
    if kind.is_binary and final != "relu":
        raise ValueError(
            f"{name}={final!r}: {architecture} ends in sign(relu(.)), only 'relu' is allowed"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: must be in [0, 1)")
    if target_sparsity is not None:
        if not 0 < target_sparsity < 1:
            raise ValueError(f"target_sparsity={target_sparsity}: must be in (0, 1)")
        if final != "relu":
            raise ValueError(
                f"target_sparsity={target_sparsity} with {name}={final!r}: only a mask that ends "
                "in relu has exact zeros"
            )
    return kind
