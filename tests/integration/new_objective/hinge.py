"""Hinge loss on DPO's margin. Source: Zhao et al. (SLiC-HF), arXiv:2305.10425."""

from sparsepo.objectives.base import PairLosses, PreferenceObjective, positive
from sparsepo.records import TokenScores


class Hinge(PreferenceObjective, name="hinge"):
    """losses = max(0, 1 - beta * (R_chosen - R_rejected)); the implicit reward is beta * R.

    At the reference the loss is 1.
    """

    def __init__(self, beta: float = 0.1, nll_coef: float = 0.0) -> None:
        super().__init__(nll_coef=nll_coef)
        self.beta = positive("beta", beta)

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        rewards = self.beta * scores.per_response(scores.log_ratios())
        return PairLosses((1 - (rewards[:, 0] - rewards[:, 1])).clamp(min=0), rewards)
