"""Tokens that the policy has yet to learn from its reference.

Source: selective DPO, arXiv:2507.07725 (read). Scores are per response there too; that scores are
rounded is ours.
"""

from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import rounded_log_ratios
from sparsepo.masks.declarations import MASKS
from sparsepo.masks.frozen import FrozenMask, FrozenOptions, order_within
from sparsepo.records import Features, segment_sum


class SurpriseMask(FrozenMask):
    """w_t = 1 where a token's score is at or above its response's quantile, else 0.

    Scores are reference minus policy log-probability for chosen, policy minus reference for
    rejected tokens, rounded to 1e-4 nats so that rounding does not choose between tokens. While
    the policy is the reference, all tokens tie and are kept. Quantiles are interpolated linearly.

    Args:
        quantile: in [0, 1); 0.6 keeps the upper 40 %. Others: see FrozenMask.
    """

    requires = MASKS["surprise"].requires

    def __init__(self, quantile: float = 0.6, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)
        if not 0 <= quantile < 1:
            raise ValueError(f"quantile={quantile}: must be in [0, 1)")
        self.quantile = quantile

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        ratios = rounded_log_ratios(features)
        scores = torch.where((response_index % 2).bool(), ratios, -ratios)
        ordered = scores[order_within(scores, response_index)]
        lengths = segment_sum(torch.ones_like(response_index), response_index, num_responses)
        starts = lengths.cumsum(0) - lengths
        # Rounded, so that 0.7 * 10 is the seventh and not a little more.
        at = (self.quantile * (lengths.clamp(min=1) - 1).double()).round(decimals=9)
        low, last = at.floor().long(), len(scores) - 1
        below = ordered[(starts + low).clamp(max=last)]
        above = ordered[(starts + (low + 1).minimum((lengths - 1).clamp(min=0))).clamp(max=last)]
        threshold = below + (at - low).to(scores.dtype) * (above - below)
        return torch.where(scores >= threshold[response_index], 1.0, 0.0)
