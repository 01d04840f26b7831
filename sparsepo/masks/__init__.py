"""Token masks: the weights of each response token's log ratio (reward mask) and KL (kl mask)."""

from sparsepo.masks.activation import (
    ACTIVATION_MAPPINGS,
    ActivationMask,
    activation_weights,
)
from sparsepo.masks.base import TokenMasks
from sparsepo.masks.learned import LEARNED_MASKS, LearnedMasks, SimpleAll, SimpleLast
from sparsepo.masks.uniform import UniformMask

__all__ = [
    "ACTIVATION_MAPPINGS",
    "LEARNED_MASKS",
    "ActivationMask",
    "LearnedMasks",
    "SimpleAll",
    "SimpleLast",
    "TokenMasks",
    "UniformMask",
    "activation_weights",
]
