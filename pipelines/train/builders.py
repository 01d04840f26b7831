"""What sections of a recipe describe, built: objectives and masks."""

from typing import Any

import torch

from pipelines.recipe import LearnedMaskConfig, MaskConfig, ObjectiveConfig
from sparsepo.backbone import state_size
from sparsepo.masks import MASKS, TokenMasks
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
    names = ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps")
    norm_eps = next(
        (float(v) for n in names if (v := getattr(reference_config.get_text_config(), n, None))),
        1e-5,
    )
    text = reference_config.get_text_config()
    reads_layers = "reference_layers" in config.requires()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MASKS[config.kind](
            **config.options(),
            hidden_size=text.hidden_size if reads_layers else state_size(reference_config),
            num_layers=text.num_hidden_layers,
            initializer_range=getattr(text, "initializer_range", 0.02),
            norm_eps=norm_eps,
        )
