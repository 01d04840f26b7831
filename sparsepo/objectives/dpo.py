"""Direct preference optimisation. Source: Rafailov et al., arXiv:2305.18290, eq. 7; label smoothing: Mitchell 2023."""

from sparsepo.objectives.base import (
    Objective,
    logistic_loss,
    positive,
    preference_output,
    require_tokens,
)
from sparsepo.records import ObjectiveOutput, TokenScores


class DPO(Objective):
    """losses = -(1-e) log sigmoid(beta (R_chosen - R_rejected)) - e log sigmoid(-beta (R_chosen - R_rejected)).

    R is the sum of a response's log ratios in nats; the implicit reward is beta * R.

    Args:
        beta: inverse temperature, > 0. label_smoothing: e, assumed share of flipped preferences, in [0, 0.5).
    """

    name = "dpo"

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        self.beta = positive("beta", beta)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing={label_smoothing}: must be in [0, 0.5)")
        self.label_smoothing = label_smoothing

    def __call__(self, scores: TokenScores) -> ObjectiveOutput:
        require_tokens(scores)
        sums = scores.per_response(scores.log_ratios())
        logits = sums[:, 0] - sums[:, 1]
        return preference_output(scores, logistic_loss(self.beta * logits, self.label_smoothing), self.beta * sums)
