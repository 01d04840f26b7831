"""DPO on pairs weighted by how likely the policy is to write them.

Source: Zhou et al. (WPO), arXiv:2406.11827, eq. 2, and their released trainer.
"""

from torch import Tensor

from sparsepo.objectives.base import PairLosses
from sparsepo.objectives.dpo import DPO
from sparsepo.records import Metrics, TokenScores, on_device


class WPO(DPO, name="wpo"):
    """losses = min(1, w(chosen) * w(rejected)) * those of DPO, with its options.

    w = exp(mean over tokens of [logp_t - log sum_v p_v^2]), where p is the policy's distribution
    over the vocabulary: 1 for a response of which each token has its expected probability. The
    weights carry no gradient; an NLL term is not weighed. Rewards and margins are DPO's.
    """

    def pair_weights(self, scores: TokenScores) -> Tensor:
        """[num_pairs] in (0, 1], no gradient."""
        surplus = scores.policy_logps.detach() - scores.require("policy_square_sum").log()
        means = scores.per_response(surplus) / scores.lengths()
        return means.sum(1).clamp(max=0).exp()

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        losses, rewards = super().pair_losses(scores)
        return PairLosses(self.pair_weights(scores) * losses, rewards)

    def extra_metrics(self, scores: TokenScores) -> Metrics:
        weights = self.pair_weights(scores)
        return {"weights/pair": (weights.sum(), on_device(scores.num_pairs, weights))}
