"""Rotary features that depend on the row alone.

LongRoPE has two sets of frequencies. transformers takes the long one for a whole batch as soon as
its longest row is longer than the model was first trained on. A row would be scored differently
beside another one. Here every row has the set that it would have alone.
Source: LongRoPE (arXiv:2402.13753), as transformers computes it.
"""

from typing import Any

import torch
from torch import Tensor, nn

_IS_SETTLED = "_sparsepo_rows_apart"


def short_row(config: Any) -> int | None:
    """Tokens up to which a row has the short frequencies; None if a model has one set.

    Args:
        config: a transformers configuration.
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [parameters, *(part for part in parameters.values() if isinstance(part, dict))]
    limits = [
        int(kind["original_max_position_embeddings"])
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min(limits) if limits else None


def settle_rows(transformer: nn.Module) -> None:
    """Let every row of a batch have its own frequencies; once per model."""
    config: Any = transformer.config
    if getattr(transformer, _IS_SETTLED, False):
        return
    setattr(transformer, _IS_SETTLED, True)
    if short_row(config) is None:
        return
    for module in transformer.modules():
        kinds = getattr(module, "rope_type", None)
        if kinds is not None and "longrope" in (
            kinds.values() if isinstance(kinds, dict) else [kinds]
        ):
            module.register_forward_hook(_of_each_row, with_kwargs=True)


def _of_each_row(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """The cosines and sines [R, T, d] of a rotary embedding, row by row; None leaves them."""
    named = dict(zip(("x", "position_ids", "layer_type"), args, strict=False)) | kwargs
    kind, positions = named.get("layer_type"), named["position_ids"]
    parameters = module.config.rope_parameters
    limit = (parameters if kind is None else parameters[kind]).get(
        "original_max_position_embeddings"
    )
    rope_type = module.rope_type if kind is None else module.rope_type[kind]
    if rope_type != "longrope" or positions.shape[0] == 1:
        return None
    is_long = (positions.amax(dim=1, keepdim=True) >= limit)[..., None]
    with_short = module.forward(**{**named, "position_ids": positions.clamp(max=limit - 1)})
    cosines, sines = (
        torch.where(is_long, long, short) for long, short in zip(output, with_short, strict=True)
    )
    return cosines, sines
