"""Contrastive preference optimisation without a reference.

Source: Xu et al., arXiv:2401.08417, eq. 3 and 4.
"""

from torch import Tensor

from sparsepo.objectives.base import LogisticObjective, positive
from sparsepo.records import TokenScores


class CPO(LogisticObjective, name="cpo"):
    """logits = beta * (logp_chosen - logp_rejected), and nll_coef * -mean logp_chosen beside it.

    logp is a response's sum of log-probabilities in nats. The implicit reward is beta * logp, so
    the margin is the logit; exchanging chosen and rejected negates it. A policy equal to the
    reference has no fixed loss.

    Args:
        beta: > 0. label_smoothing: see LogisticObjective. nll_coef: see PreferenceObjective; the
            method is 1. (Released code takes the mean over all tokens of a micro-batch instead.)
    """

    def __init__(
        self, beta: float = 0.1, label_smoothing: float = 0.0, nll_coef: float = 1.0
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        self.beta = positive("beta", beta)

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        rewards = self.beta * scores.per_response(scores.policy_logps)
        return rewards[:, 0] - rewards[:, 1], rewards
