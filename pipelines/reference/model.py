"""The frozen reference model of a recipe."""

import torch

from pipelines.models import load_causal_lm, reference_dtype
from pipelines.recipe import ActivationMaskConfig, Recipe
from pipelines.reference.origins import reference_model_dir
from sparsepo import ReferenceModel


def load_reference(recipe: Recipe, device: torch.device, num_gpus: int = 1) -> ReferenceModel:
    """A recipe's frozen reference model with its hooks, on a device or spread over several GPUs."""
    mask = recipe.mask
    hooks, mapping = (
        (mask.hooks, mask.mapping)
        if isinstance(mask, ActivationMaskConfig)
        else ("all", "zn_rescale")
    )
    model = load_causal_lm(
        reference_model_dir(recipe),
        reference_dtype(recipe.reference.dtype, device),
        device,
        num_gpus,
    )
    return ReferenceModel(model, hooks, mapping, recipe.reference.topk or 64)


def batch_tokens(recipe: Recipe, device: torch.device) -> int:
    """The token budget of a batch; larger on a GPU by default."""
    return recipe.reference.batch_tokens or (32768 if device.type == "cuda" else 4096)
