"""Token-level DPO, version 1. Source: Zeng et al., arXiv:2404.11999, eq. 15."""

from torch import Tensor

from sparsepo.objectives.base import LogisticObjective, positive
from sparsepo.records import TokenScores


class TDPO1(LogisticObjective, name="tdpo1"):
    """logits = beta * [(R_chosen - R_rejected) - (K_rejected - K_chosen)].

    R sums log ratios, K sums token_kl = KL(reference || policy), both unweighted; gradient flows
    through both K. The implicit reward is beta * (R + K), so the margin is the logit. At the
    reference the loss is ln 2; exchanging chosen and rejected negates the margin.

    Args:
        beta: inverse temperature, > 0. label_smoothing, nll_coef: see LogisticObjective.
    """

    def __init__(
        self, beta: float = 0.1, label_smoothing: float = 0.0, nll_coef: float = 0.0
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        self.beta = positive("beta", beta)

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        log_ratios = scores.per_response(scores.log_ratios())
        kl = scores.per_response(scores.require("token_kl"))
        logits = (log_ratios[:, 0] - log_ratios[:, 1]) - (kl[:, 1] - kl[:, 0])
        return self.beta * logits, self.beta * (log_ratios + kl)
