"""How likely a token is to be critical, from two contrastive scorers.

Source: critical tokens (cDPO), arXiv:2411.19943 (read).
"""

from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import require_feature
from sparsepo.masks.declarations import MASKS
from sparsepo.masks.frozen import FrozenMask, FrozenOptions
from sparsepo.records import Features


class ContrastMask(FrozenMask):
    """w_t = p+(y_t) for chosen, 1 - p-(y_t) for rejected tokens, in [0, 1].

    p+ and p- are the token's probabilities under the positive and the negative scorer.

    Args: see FrozenMask.
    """

    requires = MASKS["contrast"].requires

    def __init__(self, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        # Rounding may leave the log-probability of a certain token a little above 0.
        good = require_feature(features, "positive_logps").clamp(max=0.0).exp()
        # expm1: a token that is nearly certain keeps its digits.
        not_bad = -require_feature(features, "negative_logps").clamp(max=0.0).expm1()
        return torch.where((response_index % 2).bool(), not_bad, good)
