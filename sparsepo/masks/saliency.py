"""Tokens that move what the reference says at a response's end, mixed with a prior over places.

Source: TI-DPO, arXiv:2505.19653, read in part. Read: the gradient's L1 norm (sparsepo.saliency),
the Gaussian over positions and the shares 0.7 and 0.3. Ours: both parts have the mean 1 within a
response, and the Gaussian stands in its middle with a quarter of its length as deviation.
"""

from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import position_in_response, require_feature, response_means
from sparsepo.masks.declarations import MASKS
from sparsepo.masks.frozen import FrozenMask, FrozenOptions
from sparsepo.records import Features, segment_sum


class SaliencyMask(FrozenMask):
    """w_t = share * s_t / mean(s) + (1 - share) * g_t / mean(g), means over the response.

    s is the feature saliency, g_t = exp(-((t - (n - 1) / 2) / (n / 4))^2 / 2) with t from 0. The
    weights of a response have the mean 1. A response whose saliency is zero everywhere counts as
    one whose tokens are alike.

    Args:
        share: of the gradient, in [0, 1]. Others: see FrozenMask.
    """

    requires = MASKS["saliency"].requires

    def __init__(self, share: float = 0.7, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)
        if not 0 <= share <= 1:
            raise ValueError(f"share={share}: must be in [0, 1]")
        self.share = share

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        saliency = require_feature(features, "saliency")
        means = response_means(saliency, response_index, num_responses)
        gradient = torch.where(means > 0, saliency / means.where(means > 0, 1.0), 1.0)
        lengths = segment_sum(torch.ones_like(saliency), response_index, num_responses)
        lengths = lengths[response_index]
        place = position_in_response(response_index, num_responses)
        prior = (-0.5 * ((place - (lengths - 1) / 2) / (lengths / 4)).square()).exp()
        prior = prior / response_means(prior, response_index, num_responses)
        return self.share * gradient + (1 - self.share) * prior
