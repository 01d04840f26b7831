"""Every objective's declaration: what is known of it before it is built. Imports no torch."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from sparsepo.masks.declarations import MASKS, RATIO_SOURCES, check_one_of

if TYPE_CHECKING:
    from sparsepo.objectives.base import Objective


Reduction = Literal["sum", "mean_kept"]
REDUCTIONS: tuple[Reduction, ...] = ("sum", "mean_kept")


@dataclass(frozen=True)
class ObjectiveDeclaration:
    """What an objective needs and allows. Called with its options, it builds the objective.

    Attributes:
        name: its key in OBJECTIVES, and its module in sparsepo.objectives.
        class_name: the class in that module, which takes the other attributes from here.
        requires: features the loss itself reads (the mask declares its own), with the options'
            defaults.
        requires_of: the same of any options, where they change it.
        uses_rejected: False for objectives on chosen responses alone.
        mask_kinds: kinds of token mask that the loss can work with; "none" alone means that it
            reads no mask.
        default_mask: the kind that is meant where none is named; "none" where the loss reads no
            mask, or one must be chosen.
    """

    name: str
    class_name: str
    requires: frozenset[str] = frozenset({"reference_logps"})
    requires_of: Callable[[Mapping[str, Any]], frozenset[str]] | None = None
    uses_rejected: bool = True
    mask_kinds: frozenset[str] = frozenset({"none"})
    default_mask: str = "none"

    def load(self) -> "type[Objective]":
        """The objective's class. The first call imports its module, and torch."""
        module = importlib.import_module(f"sparsepo.objectives.{self.name}")
        found: type[Objective] = getattr(module, self.class_name)
        return found

    def requires_for(self, options: Mapping[str, Any]) -> frozenset[str]:
        """Features that the loss reads with these options of its constructor."""
        return self.requires if self.requires_of is None else self.requires_of(options)

    def __call__(self, **options: Any) -> "Objective":
        """The objective with these options. ValueError naming one that is out of range."""
        return self.load()(**options)


def _of_every_term(options: Mapping[str, Any]) -> frozenset[str]:
    """What the terms of a sum read."""
    return frozenset(
        feature
        for term in options.get("of", ())
        for feature in OBJECTIVES[term["name"]].requires_for(term)
    )


def common_mask_kinds(names: Iterable[str]) -> frozenset[str]:
    """Kinds of mask that serve every one of these objectives; one that reads no mask takes any.

    Raises: ValueError naming the objectives of which no kind serves all.
    """
    reading = [name for name in names if OBJECTIVES[name].mask_kinds != {"none"}]
    if not reading:
        return frozenset({"none"})
    common = frozenset.intersection(*(OBJECTIVES[name].mask_kinds for name in reading))
    if not common:
        raise ValueError(f"no kind of mask serves all terms of the sum: {', '.join(reading)}")
    return common


def check_weighted_options(
    alpha: float,
    reference_free: bool,
    reduction: str,
    log_ratio_clamp: tuple[float, float] | None,
    l1_kl: float,
) -> None:
    """ValueError naming an option of Weighted that is wrong or would be ignored."""
    check_one_of("reduction", reduction, REDUCTIONS)
    if log_ratio_clamp is not None:
        low, high = log_ratio_clamp
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ValueError(f"log_ratio_clamp=[{low}, {high}]: must be finite with low < high")
        if reference_free:
            raise ValueError(
                f"log_ratio_clamp=[{low}, {high}] with reference_free: there are no log ratios to "
                "clamp"
            )
    if l1_kl and not alpha:
        raise ValueError(f"l1_kl={l1_kl} with alpha=0: there is no KL that a mask weighs")


def _weighted_requires(options: Mapping[str, Any]) -> frozenset[str]:
    ratios = frozenset() if options.get("reference_free") else frozenset({"reference_logps"})
    return ratios | (frozenset({"reference_hidden"}) if options.get("alpha") else frozenset())


def _tis_dpo_requires(options: Mapping[str, Any]) -> frozenset[str]:
    return frozenset({"reference_logps", RATIO_SOURCES[options.get("source", "scorers")]})


_WITH_KL = frozenset({"reference_logps", "reference_hidden"})

OBJECTIVES: dict[str, ObjectiveDeclaration] = {
    declared.name: declared
    for declared in (
        ObjectiveDeclaration("dpo", "DPO"),
        ObjectiveDeclaration("ipo", "IPO"),
        ObjectiveDeclaration("simpo", "SimPO", requires=frozenset()),
        ObjectiveDeclaration("dpop", "DPOP"),
        ObjectiveDeclaration(
            "odpo", "ODPO", requires=frozenset({"reference_logps", "preference_scores"})
        ),
        ObjectiveDeclaration("tdpo1", "TDPO1", requires=_WITH_KL),
        ObjectiveDeclaration("tdpo2", "TDPO2", requires=_WITH_KL),
        ObjectiveDeclaration(
            "mapo",
            "MaPO",
            requires=_WITH_KL,
            mask_kinds=frozenset({"activation", "random", "external"}),
            default_mask="activation",
        ),
        ObjectiveDeclaration(
            "sparsepo", "SparsePO", requires=_WITH_KL, mask_kinds=frozenset({"learned"})
        ),
        ObjectiveDeclaration(
            "weighted",
            "Weighted",
            requires_of=_weighted_requires,
            mask_kinds=frozenset(MASKS),
        ),
        ObjectiveDeclaration(
            "tis_dpo",
            "TISDPO",
            requires=frozenset({"reference_logps", "scorer_log_ratios"}),
            requires_of=_tis_dpo_requires,
        ),
        ObjectiveDeclaration(
            "rpo", "RPO", requires=frozenset({"reference_logps", "prompt_embedding"})
        ),
        ObjectiveDeclaration("kto", "KTO", requires=frozenset({"reference_logps", "desirable"})),
        ObjectiveDeclaration("orpo", "ORPO", requires=frozenset()),
        ObjectiveDeclaration("cpo", "CPO", requires=frozenset()),
        ObjectiveDeclaration("alphapo", "AlphaPO", requires=frozenset()),
        ObjectiveDeclaration("dpo_shift", "DPOShift"),
        ObjectiveDeclaration("beta_dpo", "BetaDPO"),
        ObjectiveDeclaration(
            "wpo", "WPO", requires=frozenset({"reference_logps", "policy_square_sum"})
        ),
        ObjectiveDeclaration("sft", "SFT", requires=frozenset(), uses_rejected=False),
        ObjectiveDeclaration("sum", "Sum", requires=frozenset(), requires_of=_of_every_term),
    )
}
