"""DPO with a weight per token, and a weighted KL if it is asked for.

SparsePO, MaPO and TIS-DPO are settings of it; so are what has been published since about which
tokens should count, each with another producer of weights (sparsepo.masks).
"""

import torch
from torch import Tensor

from sparsepo.checks import require
from sparsepo.objectives.base import (
    LogisticObjective,
    PairLosses,
    mask_metrics,
    non_negative,
    positive,
)
from sparsepo.objectives.declarations import OBJECTIVES, Reduction, check_weighted_options
from sparsepo.records import Metrics, TokenScores, on_device


class Weighted(LogisticObjective, name="weighted"):
    """losses = -log sigmoid(logit) + l1_reward |a|_1 + l1_kl |b|_1.

    logit = beta * [(U_chosen - U_rejected) - alpha * (K_rejected - K_chosen)] - gamma with
    U = sum a_t r_t and K = sum b_t k_t, where a is the reward_mask, b the kl_mask, r the log ratio
    and k = token_kl >= 0. Gradient flows through r and k, and to weights that are learned. The
    implicit reward is beta * (U + alpha K), so the margin is the logit plus gamma. At the reference
    the loss without penalty and margin is ln 2; exchanging chosen and rejected negates the margin
    where the weights do not depend on the side. Constant weights and alpha 0 are DPO.

    The L1 norms sum over both responses; one shared mask counts half in each and an unmasked term
    not at all (TokenScores.l1_shares).

    Args:
        beta: inverse temperature, > 0.
        alpha: weight of the KL difference, >= 0; with 0 no KL is needed.
        reference_free: r is the policy's log-probability instead of the log ratio.
        reduction: "sum", or "mean_kept", which divides U by the number of tokens whose a is not 0
            and K by those whose b is not 0. A pair with a response that keeps none has loss 0
            where the mask may leave none (TokenScores.empty_sides), and is refused elsewhere.
        gamma: target margin, >= 0; SimPO's gamma is beta * gamma_beta_ratio.
        log_ratio_clamp: (low, high) in nats, bounds of r_t before it is weighed; beyond them it
            carries no gradient. None for no bounds.
        l1_reward, l1_kl: penalty per unit of weight, >= 0.
        label_smoothing, nll_coef: see LogisticObjective.
    Source: ours as one equation. mean_kept with gamma: ConfPO (arXiv:2506.08712). log_ratio_clamp:
        Humanline (arXiv:2509.24207), which also moves the reference with the policy; here it stays.
    """

    def __init__(
        self,
        beta: float = 0.1,
        alpha: float = 0.0,
        reference_free: bool = False,
        reduction: Reduction = "sum",
        gamma: float = 0.0,
        log_ratio_clamp: tuple[float, float] | None = None,
        l1_reward: float = 0.0,
        l1_kl: float = 0.0,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        self.beta, self.alpha = positive("beta", beta), non_negative("alpha", alpha)
        self.gamma = non_negative("gamma", gamma)
        self.l1_reward, self.l1_kl = (
            non_negative("l1_reward", l1_reward),
            non_negative("l1_kl", l1_kl),
        )
        check_weighted_options(alpha, reference_free, reduction, log_ratio_clamp, l1_kl)
        self.reference_free, self.reduction = reference_free, reduction
        self.log_ratio_clamp = log_ratio_clamp
        given = {"alpha": alpha, "reference_free": reference_free}
        self.requires = OBJECTIVES["weighted"].requires_for(given)

    def reward_weights(self, scores: TokenScores) -> Tensor:
        """[S] the weights a_t."""
        return scores.reward_mask

    def check(self, scores: TokenScores) -> None:
        super().check(scores)
        if self.reduction == "mean_kept" and not scores.empty_sides:
            empty = self._empty_sides(scores)

            def first() -> str:
                pair, side = empty.nonzero()[0].tolist()
                return (
                    "reduction='mean_kept' needs a token with a weight other than 0 in every "
                    f"response: pair {pair}, {'rejected' if side else 'chosen'}"
                )

            require(~empty.any(), first)

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        rewards = self.beta * self._values(scores)
        logits = rewards[:, 0] - rewards[:, 1]
        return (logits - self.gamma if self.gamma else logits), rewards

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        losses, rewards = super().pair_losses(scores)
        if self.reduction == "mean_kept":
            losses = torch.where(self._empty_sides(scores).any(-1), 0.0, losses)
        penalties = ((self.l1_reward, scores.reward_mask), (self.l1_kl, scores.kl_mask))
        for share, (coefficient, weights) in zip(scores.l1_shares, penalties, strict=True):
            if share * coefficient > 0:
                losses = losses + share * coefficient * scores.per_response(weights.abs()).sum(-1)
        return PairLosses(losses, rewards)

    def extra_metrics(self, scores: TokenScores) -> Metrics:
        terms = ("reward", "kl") if self.alpha else ("reward",)
        metrics = mask_metrics(scores, self.beta, terms)
        if self.reduction == "mean_kept":
            empty = self._empty_sides(scores).any(-1).to(scores.policy_logps.dtype)
            metrics["masks/empty_pairs"] = (empty.sum(), on_device(scores.num_pairs, empty))
        return metrics

    def _values(self, scores: TokenScores) -> Tensor:
        """U + alpha K per response, [num_pairs, 2], in nats."""
        ratios = scores.policy_logps if self.reference_free else scores.log_ratios()
        if self.log_ratio_clamp is not None:
            ratios = ratios.clamp(*self.log_ratio_clamp)
        weighed = self.reward_weights(scores) * ratios
        if not self.alpha:
            return self._reduced(scores, weighed, self.reward_weights(scores))
        divergence = scores.kl_mask * scores.require("token_kl")
        if self.alpha != 1:
            divergence = self.alpha * divergence
        if self.reduction == "sum":
            return scores.per_response(weighed + divergence)
        return self._reduced(scores, weighed, self.reward_weights(scores)) + self._reduced(
            scores, divergence, scores.kl_mask
        )

    def _reduced(self, scores: TokenScores, values: Tensor, weights: Tensor) -> Tensor:
        sums = scores.per_response(values)
        return sums if self.reduction == "sum" else sums / _num_kept(scores, weights).clamp(min=1)

    def _empty_sides(self, scores: TokenScores) -> Tensor:
        """bool [num_pairs, 2]: responses without a token that is weighed."""
        return _num_kept(scores, self.reward_weights(scores)) == 0


def _num_kept(scores: TokenScores, weights: Tensor) -> Tensor:
    """[num_pairs, 2] tokens whose weight is not 0."""
    return scores.per_response((weights.detach() != 0).to(scores.policy_logps.dtype))
