"""Tokens at which the reference is least decided.

A mask for preference pairs, ours, after the 80/20 rule of reinforcement learning with verifiable
rewards (arXiv:2506.01939), which updates the policy on a batch's tokens of highest entropy alone.
"""

from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import require_feature
from sparsepo.masks.declarations import MASKS
from sparsepo.masks.frozen import FrozenMask, FrozenOptions, are_largest
from sparsepo.records import Features


class EntropyMask(FrozenMask):
    """w_t = 1 for the ceil(f n) tokens of a response of n with the highest entropy, else 0.

    The entropy is that of the reference's distribution from which the token is taken. The fraction
    is of each response, so no response is left empty; ties keep the earlier token.

    Args:
        fraction: f, in (0, 1]; 1 weighs all tokens alike. Others: see FrozenMask.
    """

    requires = MASKS["entropy"].requires

    def __init__(self, fraction: float = 0.2, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction={fraction}: must be in (0, 1]")
        self.fraction = fraction

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        entropy = require_feature(features, "reference_entropy")
        kept = are_largest(entropy, response_index, num_responses, self.fraction)
        return torch.where(kept, 1.0, 0.0)
