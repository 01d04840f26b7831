"""Identity preference optimisation. Source: Azar et al., arXiv:2310.12036, eq. 17."""

from sparsepo.objectives.base import PairLosses, PreferenceObjective, positive
from sparsepo.records import TokenScores


class IPO(PreferenceObjective, name="ipo"):
    """losses = (h - 1 / (2 beta))^2 with h = R_chosen / n_chosen - R_rejected / n_rejected.

    R is the sum of a response's log ratios in nats, n its number of scored tokens. At the reference
    the loss is 1 / (4 beta^2). The implicit reward is beta * R, of the sum in both forms, as other
    tools log it; the margin is therefore beta * h only with length_average=False. Exchanging chosen
    and rejected negates the margin.

    Args:
        beta: the paper's tau, > 0. length_average: False takes the summed R instead of the mean per
            token.
        nll_coef: see PreferenceObjective.
    """

    def __init__(
        self, beta: float = 0.1, length_average: bool = True, nll_coef: float = 0.0
    ) -> None:
        super().__init__(nll_coef=nll_coef)
        self.beta, self.length_average = positive("beta", beta), length_average

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        sums = scores.per_response(scores.log_ratios())
        values = sums / scores.lengths() if self.length_average else sums
        return PairLosses(
            (values[:, 0] - values[:, 1] - 1 / (2 * self.beta)).square(), self.beta * sums
        )
