"""Less weight beyond the shorter response's length. Source: LD-DPO, arXiv:2409.06411 (read).

TRL's `ld_alpha` is the same.
"""

from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import position_in_response
from sparsepo.masks.frozen import FrozenMask, FrozenOptions
from sparsepo.records import Features, segment_sum


class LengthSplitMask(FrozenMask):
    """w_t = 1 for the first min(n_chosen, n_rejected) tokens of a response, alpha beyond.

    Args:
        alpha: in [0, 1]; 1 weighs all tokens alike. Others: see FrozenMask.
    """

    reads_both = True

    def __init__(self, alpha: float = 0.5, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: must be in [0, 1]")
        self.alpha = alpha

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        lengths = segment_sum(torch.ones_like(response_index), response_index, num_responses)
        shared = lengths.view(-1, 2).amin(1)[response_index // 2]
        is_shared = position_in_response(response_index, num_responses) < shared
        return torch.where(is_shared, 1.0, self.alpha)
