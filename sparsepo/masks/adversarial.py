"""The tokens that hurt a pair's margin most.

An analogue for preference pairs, ours, after adversarial masks (arXiv:2010.01739).
"""

from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import rounded_log_ratios
from sparsepo.masks.declarations import MASKS
from sparsepo.masks.frozen import FrozenMask, FrozenOptions, are_largest
from sparsepo.records import Features


class AdversarialMask(FrozenMask):
    """w_t = 1 for the ceil(k n) tokens of a response of n that lower the margin most, else 0.

    They have the smallest log ratios of the chosen and the largest of the rejected response. The
    margin is a sum over tokens, so no other choice of as many tokens gives a smaller one. Log
    ratios are rounded to 1e-4 nats, so that rounding does not choose; ties keep the earlier token.

    Args:
        k: fraction of a response's tokens, in (0, 1]; 1 weighs all alike. Others: see FrozenMask.
    """

    requires = MASKS["adversarial"].requires

    def __init__(self, k: float = 0.5, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)
        if not 0 < k <= 1:
            raise ValueError(f"k={k}: must be in (0, 1]")
        self.k = k

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        ratios = rounded_log_ratios(features)
        harm = torch.where((response_index % 2).bool(), ratios, -ratios)
        return torch.where(are_largest(harm, response_index, num_responses, self.k), 1.0, 0.0)
