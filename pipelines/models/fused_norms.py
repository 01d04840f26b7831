"""RMSNorm as one kernel, where a model's own is seven small ones."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_EPSILONS = ("variance_epsilon", "eps")  # as families call it


@torch.no_grad()
def plain_rms_norms(model: Any) -> list[tuple[Any, float]]:
    """Modules that compute weight * x / sqrt(mean(x^2) + epsilon), and their epsilon.

    Each is tried on random numbers: some families add 1 to the weight, or norm in groups.
    """
    found = []
    for module in model.modules():
        weight = getattr(module, "weight", None)
        epsilon = next((getattr(module, name) for name in _EPSILONS if hasattr(module, name)), None)
        if not (type(module).__name__.endswith("RMSNorm") and isinstance(epsilon, float)):
            continue
        if not (isinstance(weight, Tensor) and weight.ndim == 1):
            continue
        chance = torch.Generator().manual_seed(0)
        states = torch.randn(2, 3, len(weight), generator=chance).to(weight.device, weight.dtype)
        with contextlib.suppress(Exception):  # a module that wants more than states
            own, fused = module(states), F.rms_norm(states, weight.shape, weight, epsilon)
            rounding = 4 * torch.finfo(weight.dtype).eps
            if own.dtype == fused.dtype and torch.allclose(own, fused, rounding, rounding):
                found.append((module, epsilon))
    return found


@contextlib.contextmanager
def fused(norms: Sequence[tuple[Any, float]]) -> Iterator[None]:
    """These modules as one kernel each, for a while."""
    for module, epsilon in norms:
        module.forward = _forward(module, epsilon)
    try:
        yield
    finally:
        for module, _ in norms:
            del module.forward


def _forward(module: Any, epsilon: float) -> Callable[[Tensor], Tensor]:
    return lambda states: F.rms_norm(states, module.weight.shape, module.weight, epsilon)
