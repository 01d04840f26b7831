"""A part of the tokens per epoch, another one in the next.

An analogue for preference pairs, ours, after fully-explored masks (arXiv:2010.06040).
"""

from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import require_feature, unit_weights
from sparsepo.masks.declarations import MASKS
from sparsepo.masks.frozen import FrozenMask, FrozenOptions, token_hash
from sparsepo.records import Features


class PartitionMask(FrozenMask):
    """w_t = parts for the tokens of part (epoch mod parts), 0 for the others.

    Tokens are hashed into parts by seed, pair and place alone, so every worker, cut and resumed run
    has the same, and over `parts` epochs every token counts alike: the weights sum to `parts`. In
    eval mode every token weighs 1, the mean over the epochs, and no epoch is read.

    Args:
        parts: number of parts, >= 1. seed: of the hash. Others: see FrozenMask.
    """

    requires = MASKS["partition"].requires
    may_be_empty = True

    def __init__(self, parts: int = 4, seed: int = 0, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)
        if parts < 1:
            raise ValueError(f"parts={parts}: must be at least 1")
        self.parts, self.seed = parts, seed

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        if not self.training:
            return unit_weights(response_index)
        keys, epoch = (require_feature(features, name) for name in ("pair_keys", "epoch"))
        part = token_hash(keys, response_index, num_responses, self.seed) % self.parts
        is_due = part == (epoch % self.parts)[response_index // 2]
        return torch.where(is_due, float(self.parts), 0.0)
