"""Segments of a response that agree with its side.

Source: adaptive segment rewards, arXiv:2411.00809. That a segment ends where the token reward
jumps was read; the threshold, that disagreeing segments weigh 0 and the choice of the value are
ours.
"""

import math
from typing import Unpack

import torch
from torch import Tensor

from sparsepo.discriminator import signed_value
from sparsepo.masks.base import require_feature, rounded_log_ratios
from sparsepo.masks.declarations import SEGMENT_VALUES, SegmentValue, check_one_of
from sparsepo.masks.frozen import FrozenMask, FrozenOptions
from sparsepo.records import Features, segment_sum


class SegmentMask(FrozenMask):
    """w_t = 1 in segments whose sum of q_t agrees with their side, 0 in the others.

    A segment ends before a token with abs(q_t - q_{t-1}) > theta. It agrees with a chosen response
    if its sum is above 0, with a rejected one if it is below.

    Args:
        theta: in the value's unit, >= 0. value: what q_t is; "ratio": scorer_log_ratios, nats, of
            which a token reward is a multiple; "discriminator": 2 D_t - 1 of discriminator_values,
            in [-1, 1]; "policy_ratio": policy minus reference, nats, rounded to 1e-4;
            "external": external_weights as they came. Others: see FrozenMask.
    """

    may_be_empty = True

    def __init__(
        self,
        theta: float = 1.0,
        value: SegmentValue = "ratio",
        **options: Unpack[FrozenOptions],
    ) -> None:
        super().__init__(**options)
        check_one_of("value", value, tuple(SEGMENT_VALUES))
        if not (math.isfinite(theta) and theta >= 0):
            raise ValueError(f"theta={theta}: must be finite and >= 0")
        self.theta, self.value = theta, value
        self.requires = SEGMENT_VALUES[value]

    def segments(self, features: Features, response_index: Tensor) -> Tensor:
        return _numbered(self._values(features), response_index, self.theta)

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        values = self._values(features)
        segment = _numbered(values, response_index, self.theta)
        # Summed in float64, in which a segment's tokens cancel exactly or not at all.
        sums = segment_sum(values.double(), segment, len(segment))[segment]
        agreeing = torch.where((response_index % 2).bool(), -sums, sums)
        return torch.where(agreeing > 0, 1.0, 0.0)

    def _values(self, features: Features) -> Tensor:
        if self.value == "policy_ratio":
            return rounded_log_ratios(features)
        values = require_feature(features, *self.requires)
        return signed_value(values) if self.value == "discriminator" else values


def _numbered(values: Tensor, response_index: Tensor, theta: float) -> Tensor:
    """int64 [S]: every token's segment, 0, 1, ... over all responses."""
    begins = torch.zeros_like(response_index)
    jumps = (values[1:] - values[:-1]).abs() > theta
    begins[1:] = jumps | (response_index[1:] != response_index[:-1])
    return begins.cumsum(0)
