"""Tokens of which the policy is less sure than on average. Source: ConfPO, arXiv:2506.08712 (read).

The paper's own loss is Weighted with reference_free, reduction "mean_kept" and gamma.
"""

from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import require_feature, response_means
from sparsepo.masks.declarations import MASKS
from sparsepo.masks.frozen import FrozenMask, FrozenOptions
from sparsepo.records import Features


class ConfidenceMask(FrozenMask):
    """w_t = 1 where the policy's probability of the token is below its response's mean, else 0.

    Strictly below, by the arithmetic mean of probabilities: a response of one token, or of equal
    probabilities, keeps none. The policy is that of the step, without gradient.

    Args: see FrozenMask.
    """

    requires = MASKS["confidence"].requires
    may_be_empty = True

    def __init__(self, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        probabilities = require_feature(features, "policy_logps").exp()
        means = response_means(probabilities, response_index, num_responses)
        return torch.where(probabilities < means, 1.0, 0.0)
