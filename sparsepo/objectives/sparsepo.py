"""Token-masked preference optimisation with learned sparse masks.

Source: Christopoulou et al., arXiv:2410.05102.
"""

from sparsepo.objectives.weighted import Weighted


class SparsePO(Weighted, name="sparsepo"):
    """losses = -log sigmoid(beta * logit) + l1_reward |a|_1 + l1_kl |b|_1.

    The masks are a (reward_mask) and b (kl_mask).
    logit = (U_chosen - U_rejected) - (K_rejected - K_chosen) with U = sum a_t r_t and
    K = sum b_t k_t, where r is the log ratio and k = token_kl >= 0. Gradient flows through both, to
    the policy and to the masks. The implicit reward is beta * (U + K), so the margin is exactly
    beta * logit; the released code logs beta * (U - K) instead. At the reference and without
    penalty the loss is ln 2; exchanging chosen and rejected negates the margin. The L1 norms sum
    over the chosen and the rejected response; one shared mask counts half in each and an unmasked
    term not at all, as released (TokenScores.l1_shares). It is Weighted with alpha 1.

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
        super().__init__(
            beta,
            alpha=1.0,
            l1_reward=l1_reward,
            l1_kl=l1_kl,
            label_smoothing=label_smoothing,
            nll_coef=nll_coef,
        )
