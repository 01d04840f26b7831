"""What sections of a recipe describe, built: objectives and masks."""

from typing import Any

import torch

from pipelines.recipe import LearnedMaskConfig, MaskConfig, ObjectiveConfig
from sparsepo.masks import MASKS, LearnedMasks, TokenMasks
from sparsepo.objectives import Objective


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that a recipe's section `objective` describes."""
    return config.declared(**config.options())


def build_mask(config: MaskConfig, reference_config: Any, seed: int) -> TokenMasks:
    """The mask that a recipe's section `mask` describes.

    Args:
        reference_config: of the reference model, whose states a learned mask reads. seed: of a
            learned mask's initial parameters.
    """
    if not isinstance(config, LearnedMaskConfig):
        return MASKS[config.kind](**config.options())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LearnedMasks.for_model(reference_config, **config.options())
