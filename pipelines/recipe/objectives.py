"""One class per objective: its options and their ranges.

A subclass of ObjectiveConfig is an alternative of `objective.name`.
"""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from pipelines.recipe.masks import LearnedMaskConfig, MaskConfig
from pipelines.recipe.section import Section
from sparsepo.masks.declarations import check_exp_ratio_options
from sparsepo.objectives.declarations import (
    OBJECTIVES,
    ObjectiveDeclaration,
    check_weighted_options,
)


class ObjectiveConfig(Section):
    """Fields are named as the options of the objective's constructor.

    Their ranges are the constructor's too: what a recipe may say can be built.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    STAGE = "train"
    name: str

    @property
    def declared(self) -> ObjectiveDeclaration:
        """What the objective needs and allows."""
        return OBJECTIVES[self.name]

    def options(self) -> dict[str, Any]:
        """The constructor's."""
        return self.model_dump(exclude={"name"})

    def requires(self) -> frozenset[str]:
        """Features that the loss reads with these options."""
        return self.declared.requires_for(self.options())

    def mask_conflict(self, mask: MaskConfig) -> str | None:
        """Why this objective cannot use this mask of a kind that it takes; None if it can."""
        return None

    def conflict(self, min_gap: float) -> str | None:
        """Why this objective cannot use data prepared with this data.min_gap; None if it can."""
        return None


class PreferenceConfig(ObjectiveConfig):
    nll_coef: float = Field(0.0, ge=0)


class LogisticConfig(PreferenceConfig):
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)


class DPOConfig(LogisticConfig):
    name: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)


class IPOConfig(PreferenceConfig):
    name: Literal["ipo"] = "ipo"
    beta: float = Field(0.1, gt=0)
    length_average: bool = True


class SimPOConfig(LogisticConfig):
    name: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0)
    gamma_beta_ratio: float = Field(0.25, ge=0)


class DPOPConfig(LogisticConfig):
    name: Literal["dpop"] = "dpop"
    beta: float = Field(0.3, gt=0)
    penalty_lambda: float = Field(50.0, ge=0)


class ODPOConfig(LogisticConfig):
    name: Literal["odpo"] = "odpo"
    beta: float = Field(0.1, gt=0)
    alpha: float = Field(1.0, ge=0)
    min_gap: float = Field(1e-3, gt=0)

    def conflict(self, min_gap: float) -> str | None:
        if min_gap >= self.min_gap:
            return None
        return (
            f"data.min_gap={min_gap} with objective.name={self.name}: must be at least "
            f"objective.min_gap={self.min_gap}, so that prepare drops the pairs whose scores are "
            "too close"
        )


class TDPO1Config(LogisticConfig):
    name: Literal["tdpo1"] = "tdpo1"
    beta: float = Field(0.1, gt=0)


class TDPO2Config(LogisticConfig):
    name: Literal["tdpo2"] = "tdpo2"
    beta: float = Field(0.1, gt=0)
    alpha: float = Field(0.5, ge=0)


class MaPOConfig(LogisticConfig):
    name: Literal["mapo"] = "mapo"
    beta: float = Field(0.1, gt=0)


class SparsePOConfig(LogisticConfig):
    name: Literal["sparsepo"] = "sparsepo"
    beta: float = Field(0.1, gt=0)
    l1_reward: float = Field(0.0, ge=0)
    l1_kl: float = Field(0.0, ge=0)


class WeightedConfig(LogisticConfig):
    """Token weights of any mask; alpha 0 means no KL. See sparsepo.Weighted."""

    name: Literal["weighted"] = "weighted"
    beta: float = Field(0.1, gt=0)
    alpha: float = Field(0.0, ge=0)
    reference_free: bool = False
    reduction: Literal["sum", "mean_kept"] = "sum"
    gamma: float = Field(0.0, ge=0)
    log_ratio_clamp: tuple[float, float] | None = None
    l1_reward: float = Field(0.0, ge=0)
    l1_kl: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "WeightedConfig":
        check_weighted_options(
            self.alpha, self.reference_free, self.reduction, self.log_ratio_clamp, self.l1_kl
        )
        return self

    def mask_conflict(self, mask: MaskConfig) -> str | None:
        for key in ("l1_reward", "l1_kl"):
            if (value := getattr(self, key)) and not isinstance(mask, LearnedMaskConfig):
                return (
                    f"objective.{key}={value} with mask.kind={mask.kind}: a penalty is for "
                    "weights that are learned (mask.kind=learned)"
                )
        if self.alpha:
            return None
        if mask.masked_terms() == ("kl",):
            return "mask.terms=kl with objective.alpha=0: there is no KL that a mask weighs"
        if isinstance(mask, LearnedMaskConfig) and (mask.sharing, mask.terms) == (
            "independent",
            "both",
        ):
            return (
                "mask.sharing=independent with objective.alpha=0: there is no KL that the second "
                "mask weighs; set mask.terms=reward"
            )
        return None


class TISDPOConfig(LogisticConfig):
    name: Literal["tis_dpo"] = "tis_dpo"
    beta: float = Field(0.1, gt=0)
    mu: float = Field(1.0, gt=0)
    low: float = -0.5
    high: float = 1.5
    source: Literal["scorers", "external"] = "scorers"

    @model_validator(mode="after")
    def _fits(self) -> "TISDPOConfig":
        check_exp_ratio_options(self.mu, self.low, self.high, self.source)
        return self


class RPOConfig(LogisticConfig):
    name: Literal["rpo"] = "rpo"
    beta: float = Field(0.1, gt=0)
    tau: float = Field(0.5, gt=0)


class SFTConfig(ObjectiveConfig):
    name: Literal["sft"] = "sft"


def _alternatives(base: type[ObjectiveConfig]) -> list[type[ObjectiveConfig]]:
    """The classes that name an objective, in the order of OBJECTIVES."""
    below = [found for child in base.__subclasses__() for found in _alternatives(child)] or [base]
    return sorted(
        below, key=lambda section: list(OBJECTIVES).index(section.model_fields["name"].default)
    )


if TYPE_CHECKING:
    AnyObjective = ObjectiveConfig
else:
    AnyObjective = Annotated[
        reduce(or_, _alternatives(ObjectiveConfig)), Field(discriminator="name")
    ]
