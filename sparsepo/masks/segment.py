"""Segments of a response that agree with its side.

Source: adaptive segment rewards, arXiv:2411.00809. That a segment ends where the token reward
jumps was read; the threshold and that disagreeing segments weigh 0 are ours.
"""

import math
from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import require_feature
from sparsepo.masks.declarations import MASKS
from sparsepo.masks.frozen import FrozenMask, FrozenOptions
from sparsepo.records import Features, segment_sum


class SegmentMask(FrozenMask):
    """w_t = 1 in segments whose sum of q_t agrees with their side, 0 in the others.

    A segment ends before a token with abs(q_t - q_{t-1}) > theta. It agrees with a chosen response
    if its sum is above 0, with a rejected one if it is below. q_t is scorer_log_ratios, nats.

    Args:
        theta: in nats, >= 0. Others: see FrozenMask.
    """

    requires = MASKS["segment"].requires
    may_be_empty = True

    def __init__(self, theta: float = 1.0, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)
        if not (math.isfinite(theta) and theta >= 0):
            raise ValueError(f"theta={theta}: must be finite and >= 0")
        self.theta = theta

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        log_ratios = require_feature(features, "scorer_log_ratios")
        begins = torch.zeros_like(response_index)
        jumps = (log_ratios[1:] - log_ratios[:-1]).abs() > self.theta
        begins[1:] = jumps | (response_index[1:] != response_index[:-1])
        segment = begins.cumsum(0)
        # Summed in float64, in which a segment's tokens cancel exactly or not at all.
        sums = segment_sum(log_ratios.double(), segment, len(segment))[segment]
        agreeing = torch.where((response_index % 2).bool(), -sums, sums)
        return torch.where(agreeing > 0, 1.0, 0.0)
