"""Weights that fall with a token's place. Source: D2PO, arXiv:2502.14340 (read)."""

import math
from typing import Unpack

from torch import Tensor

from sparsepo.masks.base import position_in_response
from sparsepo.masks.frozen import FrozenMask, FrozenOptions
from sparsepo.records import Features


class PositionDecayMask(FrozenMask):
    """w_t = g^t with t = 1, 2, ... within the response; nothing is read.

    Args:
        g: in (0, 1]; 1 weighs all tokens alike. Others: see FrozenMask.
    """

    def __init__(self, g: float = 0.98, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)
        if not 0 < g <= 1:
            raise ValueError(f"g={g}: must be in (0, 1]")
        self.g = g

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        place = 1 + position_in_response(response_index, num_responses)
        return (place * math.log(self.g)).exp()
