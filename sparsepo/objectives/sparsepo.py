"""Token-masked preference optimisation with learned sparse masks. Source: Christopoulou et al., arXiv:2410.05102."""

from torch import Tensor

from sparsepo.objectives.base import (
    Objective,
    logistic_loss,
    mask_metrics,
    positive,
    preference_output,
    require_tokens,
)
from sparsepo.records import ObjectiveOutput, TokenScores


class SparsePO(Objective):
    """losses = -log sigmoid(beta * logit) + l1_reward |a|_1 + l1_kl |b|_1, masks a (reward_mask) and b (kl_mask).

    logit = (U_chosen - U_rejected) - (K_rejected - K_chosen) with U = sum a_t r_t and K = sum b_t k_t, where r is the log
    ratio and k = token_kl >= 0. Gradient flows through both, to the policy and to the masks. The implicit reward is
    beta * (U + K), so the margin is exactly beta * logit; the released code logs beta * (U - K) instead.
    The L1 norms sum over the chosen and the rejected response; one shared mask counts half in each and
    an unmasked term not at all, as released (TokenScores.l1_shares).

    Args:
        beta: inverse temperature, > 0. l1_reward, l1_kl: penalty per unit of weight, >= 0.
    """

    name = "sparsepo"
    requires = frozenset({"reference_logps", "reference_hidden"})

    def __init__(self, beta: float = 0.1, l1_reward: float = 0.0, l1_kl: float = 0.0) -> None:
        self.beta = positive("beta", beta)
        for name, value in (("l1_reward", l1_reward), ("l1_kl", l1_kl)):
            if not value >= 0:
                raise ValueError(f"{name}={value}: must be >= 0")
        self.l1_reward, self.l1_kl = l1_reward, l1_kl

    def __call__(self, scores: TokenScores) -> ObjectiveOutput:
        require_tokens(scores)
        values = masked_values(scores)
        losses = logistic_loss(self.beta * (values[:, 0] - values[:, 1]))
        penalties = ((self.l1_reward, scores.reward_mask), (self.l1_kl, scores.kl_mask))
        for share, (coefficient, weights) in zip(scores.l1_shares, penalties, strict=True):
            if share * coefficient > 0:
                losses = losses + share * coefficient * scores.per_response(weights.abs()).sum(-1)
        return preference_output(scores, losses, self.beta * values, mask_metrics(scores))


def masked_values(scores: TokenScores) -> Tensor:
    """U + K per response, [num_pairs, 2]: mask-weighted log ratios plus mask-weighted KL, in nats."""
    weighted = scores.reward_mask * scores.log_ratios() + scores.kl_mask * scores.require_token_kl()
    return scores.per_response(weighted)
