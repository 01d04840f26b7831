"""One class per kind of token mask: its options, the features it reads and the module it builds."""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from pipelines.recipe.section import Section, of_stage
from sparsepo.backbone import state_size
from sparsepo.masks import (
    ACTIVATION_MAPPINGS,
    LEARNED_MASKS,
    ActivationMask,
    ExternalMask,
    LearnedMasks,
    RandomMask,
    TokenMasks,
    UniformMask,
    check_mask_options,
)

Terms = Literal["both", "reward", "kl"]


class MaskConfig(Section):
    STAGE: ClassVar[str | None] = "train"
    kind: str

    def requires(self) -> frozenset[str]:
        """Features that the mask reads."""
        return frozenset()

    def masked_terms(self) -> tuple[str, ...]:
        return ()

    def build(self, reference_config: Any, seed: int) -> TokenMasks:
        """The mask's module.

        Learned masks are freshly initialised from `seed` for the reference model of this config.
        """
        return UniformMask()


class NoMask(MaskConfig):
    kind: Literal["none"] = "none"


class FrozenMaskConfig(MaskConfig):
    """keep_fraction: keep the heaviest tokens of a response, zero the others."""

    terms: Terms = of_stage("train", "both")
    keep_fraction: float | None = of_stage("train", None, gt=0, le=1)

    def masked_terms(self) -> tuple[str, ...]:
        return ("reward", "kl") if self.terms == "both" else (self.terms,)


class ActivationMaskConfig(FrozenMaskConfig):
    STAGE = "reference"
    kind: Literal["activation"] = "activation"
    hooks: str | tuple[str, ...] = "all"
    mapping: Literal["zn_rescale", "sigmoid", "none"] = ACTIVATION_MAPPINGS[0]

    def requires(self) -> frozenset[str]:
        return ActivationMask.requires

    def build(self, reference_config: Any, seed: int) -> TokenMasks:
        return ActivationMask(self.terms, self.keep_fraction, signed=self.mapping == "none")


class RandomMaskConfig(FrozenMaskConfig):
    """Uniform weights that depend on the seed, the pair and the token's place alone."""

    kind: Literal["random"] = "random"
    seed: int = 0

    def requires(self) -> frozenset[str]:
        return RandomMask.requires

    def build(self, reference_config: Any, seed: int) -> TokenMasks:
        return RandomMask(self.seed, self.terms, self.keep_fraction)


class ExternalMaskConfig(FrozenMaskConfig):
    """Weights from the columns data.sources[].columns.chosen_weights and rejected_weights."""

    kind: Literal["external"] = "external"

    def requires(self) -> frozenset[str]:
        return ExternalMask.requires

    def build(self, reference_config: Any, seed: int) -> TokenMasks:
        return ExternalMask(self.terms, self.keep_fraction)


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

    def build(self, reference_config: Any, seed: int) -> TokenMasks:
        names = ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps")
        norm_eps = next(
            (float(v) for n in names if (v := getattr(reference_config, n, None))), 1e-5
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LearnedMasks(
                self.architecture,
                self.sharing,
                state_size(reference_config),
                reference_config.num_hidden_layers,
                getattr(reference_config, "initializer_range", 0.02),
                norm_eps,
                self.terms,
                self.layer_activation,
                self.mixer_activation,
                self.dropout,
                self.target_sparsity,
                self.weights,
            )


AnyMask = Annotated[
    NoMask | ActivationMaskConfig | RandomMaskConfig | ExternalMaskConfig | LearnedMaskConfig,
    Field(discriminator="kind"),
]
