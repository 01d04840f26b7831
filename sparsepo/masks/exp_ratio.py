"""The weights of TIS-DPO. Source: Liu et al., arXiv:2410.04350 (read)."""

from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import require_feature
from sparsepo.masks.declarations import RATIO_SOURCES, RatioSource, check_exp_ratio_options
from sparsepo.masks.frozen import FrozenMask, FrozenOptions
from sparsepo.records import Features


class ExpRatioMask(FrozenMask):
    """w_t = exp(mu * clamp(d_t, low, high)) for chosen, exp(-mu * clamp(...)) for rejected tokens.

    d_t (scorer_log_ratios) is a token's log-probability under a positive scorer minus that under a
    negative one.

    Args:
        mu: strength, > 0. low, high: bounds of d_t in nats, low < high.
        source: "scorers", or "external": w_t is external_weights as it is, and the other three
            options stay at their defaults. Others: see FrozenMask.
    """

    def __init__(
        self,
        mu: float = 1.0,
        low: float = -0.5,
        high: float = 1.5,
        source: RatioSource = "scorers",
        **options: Unpack[FrozenOptions],
    ) -> None:
        super().__init__(**options)
        check_exp_ratio_options(mu, low, high, source)
        self.mu, self.low, self.high = mu, low, high
        self.feature = RATIO_SOURCES[source]
        self.requires = frozenset({self.feature})

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        values = require_feature(features, self.feature)
        if self.feature == "external_weights":
            return values
        return exp_ratio_weights(values, response_index, self.mu, self.low, self.high)


def exp_ratio_weights(
    log_ratios: Tensor, response_index: Tensor, mu: float, low: float, high: float
) -> Tensor:
    """[S] > 0, of log ratios [S] that are clamped first; the sign of mu changes with the side."""
    clamped = log_ratios.clamp(low, high)
    return torch.where((response_index % 2).bool(), -mu * clamped, mu * clamped).exp()
