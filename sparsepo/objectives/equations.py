"""The equations of LOSSES and of the divergences, each a function of one value per response."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsepo.objectives.base import logistic_loss

_DISCOPOP_TAU = 0.05
_LARGEST_EXPONENT = 80.0  # what float32 can hold


@dataclass(frozen=True)
class ResponseValues:
    """What a loss reads of its pairs.

    Attributes:
        values: [num_pairs, 2], of chosen and rejected: R, or what a divergence puts for it.
        beta: inverse temperature. label_smoothing: e.
    """

    values: Tensor
    beta: float
    label_smoothing: float = 0.0

    @property
    def rewards(self) -> Tensor:
        """beta * values [num_pairs, 2]."""
        return self.beta * self.values

    @property
    def logits(self) -> Tensor:
        """beta * (chosen - rejected) [num_pairs]."""
        rewards = self.rewards
        return rewards[:, 0] - rewards[:, 1]


def sigmoid(of: ResponseValues) -> Tensor:
    """-(1-e) log s(z) - e log s(-z). Source: arXiv:2305.18290, eq. 7; e: Mitchell 2023."""
    return logistic_loss(of.logits, of.label_smoothing)


def hinge(of: ResponseValues) -> Tensor:
    """max(0, 1 - z). Source: arXiv:2305.10425 and arXiv:2309.06657."""
    return (1 - of.logits).clamp(min=0)


def robust(of: ResponseValues) -> Tensor:
    """[-(1-e) log s(z) + e log s(-z)] / (1 - 2e), unbiased if a share e of the labels is flipped.

    Source: arXiv:2403.00409.
    """
    e, logits = of.label_smoothing, of.logits
    return (e * F.logsigmoid(-logits) - (1 - e) * F.logsigmoid(logits)) / (1 - 2 * e)


def exo(of: ResponseValues) -> Tensor:
    """KL from (1-e, e) to (s(z), s(-z)), e > 0. Source: arXiv:2402.00856, eq. 16."""
    e, logits = of.label_smoothing, of.logits
    return logits.sigmoid() * (F.logsigmoid(logits) - math.log1p(-e)) + (-logits).sigmoid() * (
        F.logsigmoid(-logits) - math.log(e)
    )


def apo_zero(of: ResponseValues) -> Tensor:
    """1 - s(b R_chosen) + s(b R_rejected). Source: arXiv:2408.06266, eq. 7."""
    rewards = of.rewards
    return (-rewards[:, 0]).sigmoid() + rewards[:, 1].sigmoid()


def apo_down(of: ResponseValues) -> Tensor:
    """s(b R_chosen) + 1 - s(z). Source: arXiv:2408.06266, eq. 8."""
    return of.rewards[:, 0].sigmoid() + (-of.logits).sigmoid()


def bco_pair(of: ResponseValues) -> Tensor:
    """-log s(b R_chosen) - log s(-b R_rejected), without a running shift.

    Source: arXiv:2404.04656, as TRL 1.16 has it.
    """
    rewards = of.rewards
    return -F.logsigmoid(rewards[:, 0]) - F.logsigmoid(-rewards[:, 1])


def nca(of: ResponseValues) -> Tensor:
    """-log s(b R_chosen) - 0.5 log s(-b R_chosen) - 0.5 log s(-b R_rejected).

    Source: arXiv:2402.05369.
    """
    rewards = of.rewards
    return -F.logsigmoid(rewards[:, 0]) - 0.5 * F.logsigmoid(-rewards).sum(1)


def sppo(of: ResponseValues) -> Tensor:
    """(R_chosen - 1/(2b))^2 + (R_rejected + 1/(2b))^2.

    Source: arXiv:2405.00675, eq. 4.7 with hard probabilities.
    """
    target = of.values.new_tensor([0.5 / of.beta, -0.5 / of.beta])
    return (of.values - target).square().sum(1)


def discopop(of: ResponseValues) -> Tensor:
    """(1-m) (-log s(z)) + m e^-z with m = s(z / 0.05). Source: arXiv:2406.08414, eq. 5."""
    logits = of.logits
    mixed = (logits / _DISCOPOP_TAU).sigmoid()
    # Below z = -80 the share of e^-z is 0 to the last bit, but infinity times 0 is not.
    return -F.logsigmoid(logits) * (1 - mixed) + _exp(-logits) * mixed


EQUATIONS: dict[str, Callable[[ResponseValues], Tensor]] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid,
    "hinge": hinge,
    "robust": robust,
    "exo": exo,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "bco_pair": bco_pair,
    "nca": nca,
    "sppo": sppo,
    "discopop": discopop,
}


# f'(u) of a divergence's f at u = policy / reference, as a function of R = log u, with the constant
# that makes it 0 at the reference. Source: Wang et al. (f-DPO), arXiv:2309.16240.


def reverse(log_ratios: Tensor, alpha: float) -> Tensor:
    """R."""
    return log_ratios


def forward(log_ratios: Tensor, alpha: float) -> Tensor:
    """1 - e^-R."""
    return -torch.expm1((-log_ratios).clamp(max=_LARGEST_EXPONENT))


def jensen_shannon(log_ratios: Tensor, alpha: float) -> Tensor:
    """log 2 + log s(R)."""
    return math.log(2) + F.logsigmoid(log_ratios)


def alpha_divergence(log_ratios: Tensor, alpha: float) -> Tensor:
    """(e^((alpha-1) R) - 1) / (alpha - 1)."""
    power = alpha - 1
    return torch.expm1((power * log_ratios).clamp(max=_LARGEST_EXPONENT)) / power


DIVERGENCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reverse": reverse,
    "forward": forward,
    "js": jensen_shannon,
    "alpha": alpha_divergence,
}


def _exp(values: Tensor) -> Tensor:
    return values.clamp(max=_LARGEST_EXPONENT).exp()
