"""Direct preference optimisation.

Source: Rafailov et al., arXiv:2305.18290, eq. 7; label smoothing: Mitchell 2023.
"""

from torch import Tensor

from sparsepo.objectives.base import LogisticObjective, positive
from sparsepo.records import TokenScores


class DPO(LogisticObjective, name="dpo"):
    """logits = beta * (R_chosen - R_rejected).

    R is the sum of a response's log ratios in nats. The implicit reward is beta * R, so the margin
    is the logit. At the reference the loss is ln 2 (label_smoothing 0); exchanging chosen and
    rejected negates the margin.

    Args:
        beta: inverse temperature, > 0. label_smoothing, nll_coef: see LogisticObjective.
    """

    def __init__(
        self, beta: float = 0.1, label_smoothing: float = 0.0, nll_coef: float = 0.0
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        self.beta = positive("beta", beta)

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        rewards = self.beta * scores.per_response(scores.log_ratios())
        return rewards[:, 0] - rewards[:, 1], rewards
