"""Simple preference optimisation without a reference.

Source: Meng et al., arXiv:2405.14734, eq. 6.
"""

from torch import Tensor

from sparsepo.objectives.base import LogisticObjective, non_negative, positive
from sparsepo.records import TokenScores


class SimPO(LogisticObjective, name="simpo"):
    """logits = beta * (mean logp of chosen - mean logp of rejected) - gamma.

    gamma = beta * gamma_beta_ratio. Means are per scored token, in nats; no reference is needed.
    The implicit reward is beta * mean logp, so the margin is logit + gamma; exchanging chosen and
    rejected negates the margin. A policy equal to the reference has no fixed loss.

    Args:
        beta: > 0. gamma_beta_ratio: target margin in units of beta, >= 0. label_smoothing,
            nll_coef: see LogisticObjective.
    """

    def __init__(
        self,
        beta: float = 2.0,
        gamma_beta_ratio: float = 0.25,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        self.beta, self.gamma_beta_ratio = (
            positive("beta", beta),
            non_negative("gamma_beta_ratio", gamma_beta_ratio),
        )

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        rewards = self.beta * scores.per_response(scores.policy_logps) / scores.lengths()
        return rewards[:, 0] - rewards[:, 1] - self.beta * self.gamma_beta_ratio, rewards
