"""Token masks: the weights of each response token's log ratio (reward mask) and KL (kl mask)."""

from sparsepo.masks.activation import ACTIVATION_MAPPINGS, activation_weights
from sparsepo.masks.base import MaskWeights, TokenMasks, UniformMask
from sparsepo.masks.collapse import CollapseWatch
from sparsepo.masks.frozen import (
    ActivationMask,
    ExternalMask,
    FrozenMask,
    RandomMask,
    keep_heaviest,
)
from sparsepo.masks.learned import LEARNED_MASKS, LearnedMasks, check_mask_options

__all__ = [
    "ACTIVATION_MAPPINGS",
    "LEARNED_MASKS",
    "ActivationMask",
    "CollapseWatch",
    "ExternalMask",
    "FrozenMask",
    "LearnedMasks",
    "MaskWeights",
    "RandomMask",
    "TokenMasks",
    "UniformMask",
    "activation_weights",
    "check_mask_options",
    "keep_heaviest",
]
