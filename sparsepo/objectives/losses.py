"""Losses of `dpo` by name, and divergences: which options they read. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

SequenceLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "robust",
    "exo",
    "apo_zero",
    "apo_down",
    "bco_pair",
    "nca",
    "sppo",
    "discopop",
]
Divergence = Literal["reverse", "forward", "js", "alpha"]
DEFAULT_DIVERGENCE_ALPHA = 0.5


@dataclass(frozen=True)
class LossDeclaration:
    """What a loss on two responses reads beside their values.

    Attributes:
        beta: its default. label_smoothing: whether it reads one, or cannot be without.
        is_of_difference: it sees both responses through the difference of their values alone.
            There, and only there, another divergence can take the place of the reverse KL: what
            depends on the prompt alone cancels.
        is_per_token: it reads means per token instead of sums.
    """

    beta: float = 0.1
    label_smoothing: Literal["unread", "read", "needed"] = "unread"
    is_of_difference: bool = False
    is_per_token: bool = False


LOSSES: dict[str, LossDeclaration] = {
    "sigmoid": LossDeclaration(label_smoothing="read", is_of_difference=True),
    # 0.1 is inert on means per token: 5 is Tulu 3's (arXiv:2411.15124).
    "sigmoid_norm": LossDeclaration(
        beta=5.0, label_smoothing="read", is_of_difference=True, is_per_token=True
    ),
    "hinge": LossDeclaration(is_of_difference=True),
    "robust": LossDeclaration(label_smoothing="read", is_of_difference=True),
    "exo": LossDeclaration(label_smoothing="needed", is_of_difference=True),
    "apo_zero": LossDeclaration(),
    "apo_down": LossDeclaration(),
    "bco_pair": LossDeclaration(),
    "nca": LossDeclaration(),
    "sppo": LossDeclaration(),
    "discopop": LossDeclaration(is_of_difference=True),
}


def loss_conflict(
    loss: str, label_smoothing: float, divergence: str, divergence_alpha: float | None
) -> str | None:
    """Why a loss cannot be had with these options, in a line; None if it can.

    An option that would be ignored is a conflict.
    """
    for option, value, allowed in (
        ("loss", loss, tuple(LOSSES)),
        ("divergence", divergence, get_args(Divergence)),
    ):
        if value not in allowed:
            return f"{option}={value!r}: allowed are {', '.join(allowed)}"
    declared = LOSSES[loss]
    if label_smoothing and declared.label_smoothing == "unread":
        return (
            f"label_smoothing={label_smoothing} with loss={loss}, which reads none: leave it out; "
            f"{_names(lambda other: other.label_smoothing != 'unread')} read it"
        )
    if not label_smoothing and declared.label_smoothing == "needed":
        return f"loss={loss} needs label_smoothing > 0; its paper's is 0.001"
    if divergence != "reverse" and not declared.is_of_difference:
        return (
            f"divergence={divergence} with loss={loss}, which reads more than the difference of "
            f"both responses: allowed with {_names(lambda other: other.is_of_difference)}"
        )
    if divergence_alpha is not None:
        if divergence != "alpha":
            return (
                f"divergence_alpha={divergence_alpha} with divergence={divergence}, which reads "
                "none: leave it out, or set divergence=alpha"
            )
        if not 0 < divergence_alpha < 1:
            return (
                f"divergence_alpha={divergence_alpha}: must be above 0 (divergence=forward) and "
                "below 1 (divergence=reverse)"
            )
    return None


def _names(allowed: Callable[[LossDeclaration], bool]) -> str:
    return ", ".join(name for name, declared in LOSSES.items() if allowed(declared))
