"""SimPO with another shape of reward. Source: Gupta et al. (AlphaPO), arXiv:2501.03884."""

import math

import torch
from torch import Tensor

from sparsepo.objectives.base import LogisticObjective, non_negative, positive
from sparsepo.records import TokenScores


class AlphaPO(LogisticObjective, name="alphapo"):
    """logits = beta * (r_chosen - r_rejected) - gamma with r = (1 - p^-alpha) / alpha.

    p = exp(mean logp), the mean per scored token in nats; no reference is needed. alpha 0 is its
    limit, r = log p, which is SimPO. The implicit reward is beta * r, so the margin is logit +
    gamma; exchanging chosen and rejected negates the margin. A policy equal to the reference has no
    fixed loss.

    Args:
        beta: > 0. gamma: target margin, >= 0. alpha: shape, any finite number. label_smoothing,
            nll_coef: see LogisticObjective.
    """

    def __init__(
        self,
        beta: float = 2.5,
        gamma: float = 0.1,
        alpha: float = 0.25,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        if not math.isfinite(alpha):
            raise ValueError(f"alpha={alpha}: must be finite")
        self.beta, self.gamma = positive("beta", beta), non_negative("gamma", gamma)
        self.alpha = alpha

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        means = scores.per_response(scores.policy_logps) / scores.lengths()
        shaped = means if self.alpha == 0 else -torch.expm1(-self.alpha * means) / self.alpha
        rewards = self.beta * shaped
        return rewards[:, 0] - rewards[:, 1] - self.gamma, rewards
