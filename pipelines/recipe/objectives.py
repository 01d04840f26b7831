"""One class per objective: its options and their ranges.

A subclass of ObjectiveConfig is an alternative of `objective.name`.
"""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, create_model, model_validator

from pipelines.recipe.masks import LearnedMaskConfig, MaskConfig
from pipelines.recipe.section import Section, added
from sparsepo.masks.declarations import check_exp_ratio_options
from sparsepo.objectives.declarations import (
    OBJECTIVES,
    ObjectiveDeclaration,
    check_weighted_options,
    common_mask_kinds,
)
from sparsepo.objectives.losses import LOSSES, Divergence, SequenceLoss, loss_conflict


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

    def mask_kinds(self) -> frozenset[str]:
        """Kinds of mask that it can work with."""
        return self.declared.mask_kinds

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


class _OfSequenceLoss(LogisticConfig):
    """dpo's options, which wpo has too."""

    beta: float = Field(0.1, gt=0)  # or the loss's own default
    loss: SequenceLoss = added("sigmoid")
    divergence: Divergence = added("reverse")
    divergence_alpha: float | None = added(None)

    @model_validator(mode="before")
    @classmethod
    def _beta_of_the_loss(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "beta" in given or given.get("loss") not in LOSSES:
            return given
        return {**given, "beta": LOSSES[given["loss"]].beta}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        conflict = loss_conflict(
            self.loss, self.label_smoothing, self.divergence, self.divergence_alpha
        )
        if conflict:
            raise ValueError(conflict)
        return self


class DPOConfig(_OfSequenceLoss):
    name: Literal["dpo"] = "dpo"


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
    source: Literal["scorers", "external"] = added("scorers")

    @model_validator(mode="after")
    def _fits(self) -> "TISDPOConfig":
        check_exp_ratio_options(self.mu, self.low, self.high, self.source)
        return self


class RPOConfig(LogisticConfig):
    name: Literal["rpo"] = "rpo"
    beta: float = Field(0.1, gt=0)
    tau: float = Field(0.5, gt=0)


class KTOConfig(ObjectiveConfig):
    name: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0)
    desirable_weight: float = Field(1.0, ge=0)
    undesirable_weight: float = Field(1.0, ge=0)


class ORPOConfig(PreferenceConfig):
    name: Literal["orpo"] = "orpo"
    beta: float = Field(0.1, gt=0)
    nll_coef: float = Field(1.0, ge=0)


class CPOConfig(LogisticConfig):
    name: Literal["cpo"] = "cpo"
    beta: float = Field(0.1, gt=0)
    nll_coef: float = Field(1.0, ge=0)


class AlphaPOConfig(LogisticConfig):
    name: Literal["alphapo"] = "alphapo"
    beta: float = Field(2.5, gt=0)
    gamma: float = Field(0.1, ge=0)
    alpha: float = 0.25


class DPOShiftConfig(LogisticConfig):
    name: Literal["dpo_shift"] = "dpo_shift"
    beta: float = Field(0.1, gt=0)
    lambda_start: float = Field(0.5, gt=0, le=1)
    lambda_end: float = Field(1.0, gt=0, le=1)


class BetaDPOConfig(LogisticConfig):
    name: Literal["beta_dpo"] = "beta_dpo"
    beta: float = Field(0.1, gt=0)
    alpha: float = Field(0.6, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    drop_fraction: float = Field(0.2, ge=0, lt=1)
    seed: int = Field(0, ge=0)


class WPOConfig(_OfSequenceLoss):
    name: Literal["wpo"] = "wpo"


class SFTConfig(ObjectiveConfig):
    name: Literal["sft"] = "sft"


def _alternatives(base: type[ObjectiveConfig]) -> list[type[ObjectiveConfig]]:
    """The classes that name an objective, in the order of OBJECTIVES."""
    below = [found for child in base.__subclasses__() for found in _alternatives(child)] or [base]
    return sorted(
        below, key=lambda section: list(OBJECTIVES).index(section.model_fields["name"].default)
    )


def _term_of(section: type[ObjectiveConfig]) -> type[ObjectiveConfig]:
    """The same section with the weight that its loss has in a sum."""
    name = section.__name__.replace("Config", "Term")
    weight: Any = (float, Field(gt=0))
    told = "weight: of the term's loss in the sum."
    term = create_model(name, __base__=section, __module__=__name__, __doc__=told, weight=weight)
    globals()[name] = term  # where facts that travel to workers find it
    return term


_ALONE = _alternatives(ObjectiveConfig)
if TYPE_CHECKING:

    class AnyTerm(ObjectiveConfig):
        weight: float
else:
    _OF_PAIRS = [
        section
        for section in _ALONE
        if "desirable" not in OBJECTIVES[section.model_fields["name"].default].requires
    ]
    AnyTerm = Annotated[reduce(or_, map(_term_of, _OF_PAIRS)), Field(discriminator="name")]


class SumConfig(ObjectiveConfig):
    """of: the terms, each an objective's own keys with the weight of its loss."""

    name: Literal["sum"] = "sum"
    of: tuple[AnyTerm, ...] = Field(min_length=1)

    def options(self) -> dict[str, Any]:
        return {"of": [{"name": term.name, **term.options()} for term in self.of]}

    def mask_kinds(self) -> frozenset[str]:
        return common_mask_kinds(term.name for term in self.of)

    def mask_conflict(self, mask: MaskConfig) -> str | None:
        reading = (term for term in self.of if term.mask_kinds() != {"none"})
        return next(filter(None, (term.mask_conflict(mask) for term in reading)), None)

    def conflict(self, min_gap: float) -> str | None:
        return next(filter(None, (term.conflict(min_gap) for term in self.of)), None)

    @model_validator(mode="after")
    def _is_of_preferences(self) -> "SumConfig":
        if not any(term.declared.uses_rejected for term in self.of):
            names = ", ".join(term.name for term in self.of)
            raise ValueError(f"of names {names} alone: a sum needs a term with preferences")
        common_mask_kinds(term.name for term in self.of)
        return self


def named_objectives(given: Any) -> list[str]:
    """The objective that a section names, not validated yet, and the terms of a sum."""
    if isinstance(given, ObjectiveConfig):
        given = given.model_dump()
    if not isinstance(given, dict):
        return []
    terms = given.get("of")
    within = (
        [name for term in terms for name in named_objectives(term)]
        if isinstance(terms, list | tuple)
        else []
    )
    return [name for name in [given.get("name"), *within] if isinstance(name, str)]


if TYPE_CHECKING:
    AnyObjective = ObjectiveConfig
else:
    AnyObjective = Annotated[reduce(or_, [*_ALONE, SumConfig]), Field(discriminator="name")]
