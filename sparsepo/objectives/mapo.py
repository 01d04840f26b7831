"""MaPO: the SparsePO loss with a frozen activation mask and no penalty. Source: arXiv:2410.05102."""

from sparsepo.objectives.base import (
    Objective,
    logistic_loss,
    mask_metrics,
    positive,
    preference_output,
    require_tokens,
)
from sparsepo.objectives.sparsepo import masked_values
from sparsepo.records import ObjectiveOutput, TokenScores


class MaPO(Objective):
    """losses = -log sigmoid(beta * [(U + K)_chosen - (U + K)_rejected]), U and K weighted by the reference's activations.

    Args:
        beta: inverse temperature, > 0.
    """

    name = "mapo"
    requires = frozenset({"reference_logps", "reference_hidden"})

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = positive("beta", beta)

    def __call__(self, scores: TokenScores) -> ObjectiveOutput:
        require_tokens(scores)
        values = masked_values(scores)
        losses = logistic_loss(self.beta * (values[:, 0] - values[:, 1]))
        return preference_output(scores, losses, self.beta * values, mask_metrics(scores))
