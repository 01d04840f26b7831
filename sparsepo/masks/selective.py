"""The tokens of highest reward of a good response and of lowest of a bad one.

Source: SePO, arXiv:2408.13518 (read). Its own loss is Weighted with beta 1, reference_free and
reduction "mean_kept".
"""

from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import require_feature
from sparsepo.masks.declarations import MASKS
from sparsepo.masks.frozen import FrozenMask, FrozenOptions, rank_within
from sparsepo.records import Features, segment_sum


class SelectiveMask(FrozenMask):
    """w_t = 1 for the floor(k n) chosen tokens with the largest q_t, rejected with the smallest.

    All others weigh 0; n is the response's length, so a response shorter than 1 / k keeps none.
    q_t (scorer_log_ratios) is a token's log-probability under a positive scorer minus that under a
    negative one; SePO's are a small model tuned by DPO and its own reference. Ties keep the earlier
    token.

    Args:
        k: fraction of a response's tokens, in (0, 1]; 1 weighs all alike. Others: see FrozenMask.
    """

    requires = MASKS["selective"].requires
    may_be_empty = True

    def __init__(self, k: float = 0.3, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)
        if not 0 < k <= 1:
            raise ValueError(f"k={k}: must be in (0, 1]")
        self.k = k

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        log_ratios = require_feature(features, "scorer_log_ratios")
        agreeing = torch.where((response_index % 2).bool(), -log_ratios, log_ratios)
        rank = rank_within(agreeing, response_index, num_responses)
        lengths = segment_sum(torch.ones_like(response_index), response_index, num_responses)
        # In float64 and with a guard, so that 0.3 * 10 keeps 3 tokens and not 2.
        kept = (self.k * lengths.double() + 1e-9).floor()
        return torch.where(rank < kept[response_index], 1.0, 0.0)
