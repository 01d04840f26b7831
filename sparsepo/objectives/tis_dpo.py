"""DPO with token-level importance sampling. Source: Liu et al., arXiv:2410.04350."""

import math

import torch
from torch import Tensor

from sparsepo.objectives.base import LogisticObjective, positive
from sparsepo.records import Metrics, TokenScores, on_device


class TISDPO(LogisticObjective, name="tis_dpo"):
    """logits = beta * [sum w_t r_t (chosen) - sum w_t r_t (rejected)].

    w_t = exp(mu * clamp(d_t, low, high)) for chosen and exp(-mu * clamp(d_t, low, high)) for
    rejected tokens, where d_t (scorer_log_ratios) is a token's log-probability under a positive
    scorer minus that under a negative one. The weights carry no gradient. The implicit reward is
    beta * sum w_t r_t, so the margin is the logit; at the reference the loss is ln 2; exchanging
    chosen and rejected does not negate the margin, because the weights' sign changes with the side.

    Args:
        beta: inverse temperature, > 0. mu: strength of the weighting, > 0. low, high: bounds of d_t
            in nats, low < high.
        label_smoothing, nll_coef: see LogisticObjective.
    """

    def __init__(
        self,
        beta: float = 0.1,
        mu: float = 1.0,
        low: float = -0.5,
        high: float = 1.5,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low={low}, high={high}: must be finite with low < high")
        self.beta, self.mu, self.low, self.high = (
            positive("beta", beta),
            positive("mu", mu),
            low,
            high,
        )

    def token_weights(self, scores: TokenScores) -> Tensor:
        """[S] w_t > 0, no gradient."""
        clamped = scores.require("scorer_log_ratios").detach().clamp(self.low, self.high)
        is_rejected = (scores.response_index % 2).bool()
        return torch.where(is_rejected, -self.mu * clamped, self.mu * clamped).exp()

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        rewards = self.beta * scores.per_response(self.token_weights(scores) * scores.log_ratios())
        return rewards[:, 0] - rewards[:, 1], rewards

    def extra_metrics(self, scores: TokenScores) -> Metrics:
        weights = self.token_weights(scores)
        return {
            "weights/mean": (
                weights.sum(),
                on_device(weights.numel(), weights),
            )
        }
