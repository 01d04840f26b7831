"""DPO-positive (Smaug). Source: Pal et al., arXiv:2402.13228."""

import torch
from torch import Tensor

from sparsepo.objectives.base import LogisticObjective, non_negative, positive
from sparsepo.records import TokenScores


class DPOP(LogisticObjective, name="dpop"):
    """logits = beta * [(R_chosen - R_rejected) - penalty_lambda * max(0, -R_chosen)].

    The penalty makes the loss grow when the policy falls below the reference on the chosen
    response. The implicit rewards are beta * (R - penalty_lambda * max(0, -R)) for chosen and beta
    * R for rejected, so the margin is the logit; exchanging chosen and rejected does not negate it.
    At the reference the loss is ln 2.

    Args:
        beta: inverse temperature, > 0. penalty_lambda: >= 0; 0 is DPO. label_smoothing, nll_coef:
            see LogisticObjective.
    """

    def __init__(
        self,
        beta: float = 0.3,
        penalty_lambda: float = 50.0,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        self.beta, self.penalty_lambda = (
            positive("beta", beta),
            non_negative("penalty_lambda", penalty_lambda),
        )

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        sums = scores.per_response(scores.log_ratios())
        chosen = sums[:, 0] - self.penalty_lambda * (-sums[:, 0]).clamp(min=0)
        rewards = self.beta * torch.stack([chosen, sums[:, 1]], dim=1)
        return rewards[:, 0] - rewards[:, 1], rewards
