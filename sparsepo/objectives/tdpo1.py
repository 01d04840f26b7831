"""Token-level DPO, version 1. Source: Zeng et al., arXiv:2404.11999, eq. 15."""

from sparsepo.objectives.base import (
    Objective,
    logistic_loss,
    positive,
    preference_output,
    require_tokens,
)
from sparsepo.records import ObjectiveOutput, TokenScores


class TDPO1(Objective):
    """losses = -log sigmoid(beta [(R_chosen - R_rejected) - (K_rejected - K_chosen)]).

    R sums log ratios, K sums token_kl = KL(reference || policy), both unweighted; gradient flows through both K.
    The implicit reward is beta * (R + K).

    Args:
        beta: inverse temperature, > 0.
    """

    name = "tdpo1"
    requires = frozenset({"reference_logps", "reference_hidden"})

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = positive("beta", beta)

    def __call__(self, scores: TokenScores) -> ObjectiveOutput:
        require_tokens(scores)
        log_ratios = scores.per_response(scores.log_ratios())
        kl = scores.per_response(scores.require_token_kl())
        logits = (log_ratios[:, 0] - log_ratios[:, 1]) - (kl[:, 1] - kl[:, 0])
        return preference_output(scores, logistic_loss(self.beta * logits), self.beta * (log_ratios + kl))
