"""DPO with token-level importance sampling. Source: Liu et al., arXiv:2410.04350."""

from torch import Tensor

from sparsepo.masks.declarations import RatioSource, check_exp_ratio_options
from sparsepo.masks.exp_ratio import exp_ratio_weights
from sparsepo.objectives.declarations import OBJECTIVES
from sparsepo.objectives.weighted import Weighted
from sparsepo.records import Metrics, TokenScores, on_device


class TISDPO(Weighted, name="tis_dpo"):
    """logits = beta * [sum w_t r_t (chosen) - sum w_t r_t (rejected)].

    w_t = exp(mu * clamp(d_t, low, high)) for chosen and exp(-mu * clamp(d_t, low, high)) for
    rejected tokens, where d_t (scorer_log_ratios) is a token's log-probability under a positive
    scorer minus that under a negative one. The weights carry no gradient. The implicit reward is
    beta * sum w_t r_t, so the margin is the logit; at the reference the loss is ln 2; exchanging
    chosen and rejected does not negate the margin, because the weights' sign changes with the side.
    It is Weighted with alpha 0 and the weights of ExpRatioMask on the reward term.

    Args:
        beta: inverse temperature, > 0. mu: strength of the weighting, > 0. low, high: bounds of d_t
            in nats, low < high.
        source: "scorers", or "external": w_t is external_weights as it is, and the other three
            options stay at their defaults.
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
        source: RatioSource = "scorers",
    ) -> None:
        super().__init__(beta, label_smoothing=label_smoothing, nll_coef=nll_coef)
        check_exp_ratio_options(mu, low, high, source)
        self.mu, self.low, self.high, self.source = mu, low, high, source
        self.requires = OBJECTIVES["tis_dpo"].requires_for({"source": source})

    def reward_weights(self, scores: TokenScores) -> Tensor:
        """[S] w_t, no gradient."""
        if self.source == "external":
            return scores.require("external_weights").detach()
        ratios = scores.require("scorer_log_ratios").detach()
        return exp_ratio_weights(ratios, scores.response_index, self.mu, self.low, self.high)

    def extra_metrics(self, scores: TokenScores) -> Metrics:
        weights = self.reward_weights(scores)
        return {"weights/mean": (weights.sum(), on_device(weights.numel(), weights))}
