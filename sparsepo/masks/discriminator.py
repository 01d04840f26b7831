"""Weights from a discriminator of tokens.

Source: TLCR, arXiv:2407.16574 (read): a token's reward is 2 D - 1. The weight made of it is ours.
"""

import math
from typing import Unpack

import torch
from torch import Tensor

from sparsepo.discriminator import signed_value
from sparsepo.masks.base import require_feature
from sparsepo.masks.declarations import MASKS
from sparsepo.masks.frozen import FrozenMask, FrozenOptions
from sparsepo.records import Features


class DiscriminatorMask(FrozenMask):
    """w_t = clamp(1 + mu v_t, 0, hi) for chosen, clamp(1 - mu v_t, 0, hi) for rejected tokens.

    v_t = 2 D_t - 1, where D_t (discriminator_values) is the probability that the token is good.

    Args:
        mu: strength, >= 0; 0 weighs all tokens alike. hi: the largest weight, >= 1. Others: see
            FrozenMask.
    """

    requires = MASKS["discriminator"].requires
    may_be_empty = True

    def __init__(self, mu: float = 1.0, hi: float = 2.0, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)
        if not (math.isfinite(mu) and mu >= 0):
            raise ValueError(f"mu={mu}: must be finite and >= 0")
        if not (math.isfinite(hi) and hi >= 1):
            raise ValueError(f"hi={hi}: must be finite and >= 1")
        self.mu, self.hi = mu, hi

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        values = signed_value(require_feature(features, "discriminator_values"))
        agreeing = torch.where((response_index % 2).bool(), -values, values)
        return (1 + self.mu * agreeing).clamp(0.0, self.hi)
