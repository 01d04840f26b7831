"""Which parameters of a learned mask weight decay pulls to zero."""

from typing import Any

from torch import nn


def decay_groups(masks: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups of a mask's trained parameters; a group without parameters is left out.

    Maps decay. Biases and norms do not, as in the released code, which takes transformers' rule.

    Args:
        weight_decay: of the maps.
    Source: Christopoulou et al., arXiv:2410.05102, released trainer.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in masks.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_free = isinstance(module, nn.LayerNorm) or name.endswith("bias")
                (free if is_free else decayed).append(parameter)
    groups = ((decayed, weight_decay), (free, 0.0))
    return [{"params": held, "weight_decay": rate} for held, rate in groups if held]
