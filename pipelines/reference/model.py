"""The frozen reference model of a recipe."""

import torch

from pipelines.models import load_causal_lm, reference_dtype, resolve_model
from pipelines.recipe import ReferenceSection
from pipelines.reference.discriminators import load_discriminator
from pipelines.reference.facts import FrozenReference
from sparsepo import ReferenceModel


def load_reference(
    model: FrozenReference, device: torch.device, num_gpus: int = 1
) -> ReferenceModel:
    """The frozen reference model with its hooks, on a device or spread over several GPUs."""
    loaded = load_causal_lm(
        str(resolve_model(model.name)),
        reference_dtype(model.dtype, device),
        device,
        num_gpus,
        model.vocabulary,
    )
    return ReferenceModel(
        loaded,
        model.hooks,
        model.mapping,
        model.topk,
        token_layer=model.token_layer,
        discriminator=None
        if model.discriminator is None
        else load_discriminator(model.discriminator),
    )


def batch_tokens(settings: ReferenceSection, device: torch.device) -> int:
    """The token budget of a batch; larger on a GPU by default."""
    return settings.batch_tokens or (32768 if device.type == "cuda" else 4096)
