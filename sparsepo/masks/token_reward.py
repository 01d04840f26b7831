"""Weights from a token reward. Source: TGDPO, arXiv:2506.14574 (read)."""

import math
from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import require_feature
from sparsepo.masks.declarations import MASKS
from sparsepo.masks.frozen import FrozenMask, FrozenOptions
from sparsepo.records import Features


class TokenRewardMask(FrozenMask):
    """w_t = 1 + alpha beta q_t for chosen, 1 - alpha beta q_t for rejected tokens.

    q_t (scorer_log_ratios) is a token's log ratio of a tuned model to the reference, so beta q_t is
    its reward under DPO. The weights may be negative: a loss that needs others refuses them.

    Args:
        alpha: strength, >= 0; 0 weighs all tokens alike. beta: of the tuned model, > 0. Others: see
            FrozenMask.
    """

    requires = MASKS["token_reward"].requires
    signed = True

    def __init__(
        self, alpha: float = 0.5, beta: float = 0.1, **options: Unpack[FrozenOptions]
    ) -> None:
        super().__init__(**options)
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha={alpha}: must be finite and >= 0")
        if not (math.isfinite(beta) and beta > 0):
            raise ValueError(f"beta={beta}: must be finite and > 0")
        self.alpha, self.beta = alpha, beta

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        rewards = self.beta * require_feature(features, "scorer_log_ratios")
        return 1 + self.alpha * torch.where((response_index % 2).bool(), -rewards, rewards)
