"""Token-masked preference optimisation with learned sparse masks.

Source: Christopoulou et al., arXiv:2410.05102.
"""

from torch import Tensor

from sparsepo.objectives.base import (
    LogisticObjective,
    PairLosses,
    mask_metrics,
    non_negative,
    positive,
)
from sparsepo.records import Metrics, TokenScores


class SparsePO(LogisticObjective, name="sparsepo"):
    """losses = -log sigmoid(beta * logit) + l1_reward |a|_1 + l1_kl |b|_1.

    The masks are a (reward_mask) and b (kl_mask).
    logit = (U_chosen - U_rejected) - (K_rejected - K_chosen) with U = sum a_t r_t and
    K = sum b_t k_t, where r is the log ratio and k = token_kl >= 0. Gradient flows through both, to
    the policy and to the masks. The implicit reward is beta * (U + K), so the margin is exactly
    beta * logit; the released code logs beta * (U - K) instead. At the reference and without
    penalty the loss is ln 2; exchanging chosen and rejected negates the margin. The L1 norms sum
    over the chosen and the rejected response; one shared mask counts half in each and an unmasked
    term not at all, as released (TokenScores.l1_shares).

    Args:
        beta: inverse temperature, > 0. l1_reward, l1_kl: penalty per unit of weight, >= 0.
        label_smoothing, nll_coef: see LogisticObjective.
    """

    def __init__(
        self,
        beta: float = 0.1,
        l1_reward: float = 0.0,
        l1_kl: float = 0.0,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        self.beta = positive("beta", beta)
        self.l1_reward, self.l1_kl = (
            non_negative("l1_reward", l1_reward),
            non_negative("l1_kl", l1_kl),
        )

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        rewards = self.beta * masked_values(scores)
        return rewards[:, 0] - rewards[:, 1], rewards

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        losses, rewards = super().pair_losses(scores)
        penalties = ((self.l1_reward, scores.reward_mask), (self.l1_kl, scores.kl_mask))
        for share, (coefficient, weights) in zip(scores.l1_shares, penalties, strict=True):
            if share * coefficient > 0:
                losses = losses + share * coefficient * scores.per_response(weights.abs()).sum(-1)
        return PairLosses(losses, rewards)

    def extra_metrics(self, scores: TokenScores) -> Metrics:
        return mask_metrics(scores, self.beta)


def masked_values(scores: TokenScores) -> Tensor:
    """U + K per response, [num_pairs, 2], in nats.

    U + K are mask-weighted log ratios plus mask-weighted KL.
    """
    weighted = scores.reward_mask * scores.log_ratios() + scores.kl_mask * scores.require(
        "token_kl"
    )
    return scores.per_response(weighted)
