"""DPO with an offset: the margin has to grow with the difference of the scores.

Source: Amini et al., arXiv:2402.10571.
"""

from torch import Tensor

from sparsepo.checks import require
from sparsepo.objectives.base import LogisticObjective, non_negative, positive
from sparsepo.records import TokenScores


class ODPO(LogisticObjective, name="odpo"):
    """logits = beta * (R_chosen - R_rejected) - alpha * log(score_chosen - score_rejected).

    R is the sum of a response's log ratios in nats. The implicit reward is beta * R, so the margin
    is the logit plus the offset; at the reference the loss is -log sigmoid(-alpha log gap).

    Args:
        beta: inverse temperature, > 0. alpha: weight of the offset, >= 0; 0 is DPO.
        min_gap: smallest score difference allowed, > 0: the logarithm of a small gap has no bound.
        label_smoothing, nll_coef: see LogisticObjective.
    Raises: (on call) ValueError naming the first pair whose scores differ by less than min_gap, or
        are in the wrong order.
    """

    def __init__(
        self,
        beta: float = 0.1,
        alpha: float = 1.0,
        min_gap: float = 1e-3,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        self.beta, self.alpha, self.min_gap = (
            positive("beta", beta),
            non_negative("alpha", alpha),
            positive("min_gap", min_gap),
        )

    def check(self, scores: TokenScores) -> None:
        super().check(scores)
        values = scores.require("preference_scores")
        # Written so that a score that is not a number fails too.
        holds = values[:, 0] - values[:, 1] >= self.min_gap

        def first() -> str:
            pair = int((~holds).nonzero()[0, 0])
            chosen, rejected = values[pair].tolist()
            return (
                f"preference_scores of pair {pair}: chosen {chosen}, rejected {rejected}; chosen "
                f"must be larger by min_gap={self.min_gap}"
            )

        require(holds.all(), first)

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        rewards = self.beta * scores.per_response(scores.log_ratios())
        values = scores.require("preference_scores")
        offset = self.alpha * (values[:, 0] - values[:, 1]).log().to(rewards.dtype)
        return rewards[:, 0] - rewards[:, 1] - offset, rewards
