"""Odds-ratio preference optimisation without a reference. Source: Hong et al., arXiv:2403.07691."""

import math

import torch
from torch import Tensor

from sparsepo.objectives.base import PairLosses, PreferenceObjective, positive
from sparsepo.records import TokenScores

_LEAST_SURPRISE = 1e-7  # nats per token; nearer to certainty the odds have no float32


class ORPO(PreferenceObjective, name="orpo"):
    """losses = nll_coef * -mean logp_chosen - beta * log sigmoid(log odds ratio).

    The odds of a response are p / (1 - p) with p = exp(mean logp), its mean per scored token. The
    implicit reward is beta * mean logp, as other tools log it; exchanging chosen and rejected
    negates the margin. A policy equal to the reference has no fixed loss.

    Args:
        beta: weight of the odds ratio, > 0, the paper's lambda. nll_coef: see PreferenceObjective;
            the method is 1.
    """

    def __init__(self, beta: float = 0.1, nll_coef: float = 1.0) -> None:
        super().__init__(nll_coef=nll_coef)
        self.beta = positive("beta", beta)

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        means = scores.per_response(scores.policy_logps) / scores.lengths()
        odds = means - log1mexp(means.clamp(max=-_LEAST_SURPRISE))
        ratio = odds[:, 0] - odds[:, 1]
        return PairLosses(-self.beta * torch.nn.functional.logsigmoid(ratio), self.beta * means)


def log1mexp(values: Tensor) -> Tensor:
    """log(1 - e^x) of x < 0, by whichever of two forms loses no digits there."""
    near, far = values.clamp(min=-math.log(2)), values.clamp(max=-math.log(2))
    return torch.where(
        values > -math.log(2), (-torch.expm1(near)).log(), torch.log1p(-torch.exp(far))
    )
