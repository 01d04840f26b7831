"""MaPO: the SparsePO loss with a frozen mask and no penalty.

Source: Christopoulou et al., arXiv:2410.05102.
"""

from torch import Tensor

from sparsepo.objectives.base import LogisticObjective, mask_metrics, positive
from sparsepo.objectives.sparsepo import masked_values
from sparsepo.records import Metrics, TokenScores


class MaPO(LogisticObjective, name="mapo"):
    """logits = beta * [(U + K)_chosen - (U + K)_rejected].

    The reference's activations weight U and K. The same equation serves any frozen mask: random or
    external weights are its natural baselines. Without a mask it is TDPO v1, which has a name of
    its own. The implicit reward is
    beta * (U + K), so the margin is the logit. At the reference the loss is ln 2; exchanging chosen
    and rejected negates the margin.

    Args:
        beta: inverse temperature, > 0. label_smoothing, nll_coef: see LogisticObjective.
    """

    def __init__(
        self, beta: float = 0.1, label_smoothing: float = 0.0, nll_coef: float = 0.0
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        self.beta = positive("beta", beta)

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        rewards = self.beta * masked_values(scores)
        return rewards[:, 0] - rewards[:, 1], rewards

    def extra_metrics(self, scores: TokenScores) -> Metrics:
        return mask_metrics(scores, self.beta)
