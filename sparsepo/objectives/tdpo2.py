"""Token-level DPO, version 2. Source: Zeng et al., arXiv:2404.11999."""

from torch import Tensor

from sparsepo.objectives.base import LogisticObjective, non_negative, positive
from sparsepo.records import TokenScores


class TDPO2(LogisticObjective, name="tdpo2"):
    """logits = beta * [(R_chosen - R_rejected) - alpha * (K_rejected - stopgrad(K_chosen))].

    R sums log ratios, K sums token_kl = KL(reference || policy); no gradient flows through the
    chosen response's K. The implicit reward is beta * (R + alpha * K), so the margin is the logit.
    At the reference the loss is ln 2; exchanging chosen and rejected negates the margin.

    Args:
        beta: inverse temperature, > 0. alpha: weight of the KL difference, >= 0. label_smoothing,
            nll_coef: see LogisticObjective.
    """

    def __init__(
        self,
        beta: float = 0.1,
        alpha: float = 0.5,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        self.beta, self.alpha = positive("beta", beta), non_negative("alpha", alpha)

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        log_ratios = scores.per_response(scores.log_ratios())
        kl = scores.per_response(scores.require("token_kl"))
        logits = (log_ratios[:, 0] - log_ratios[:, 1]) - self.alpha * (kl[:, 1] - kl[:, 0].detach())
        return self.beta * logits, self.beta * (log_ratios + self.alpha * kl)
