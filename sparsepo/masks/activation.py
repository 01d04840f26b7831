"""MaPO: a frozen weight per token from the reference model's activations.

Deviation from the release: all statistics are float32 (the release rounds them to float16), and a
response whose activations are constant, or that has one token, gets weight 1 instead of NaN.
Source: arXiv:2410.05102, section on MaPO, and its released code.
"""

import torch
from torch import Tensor

from sparsepo.kernels.token_scoring import CHUNK_ELEMENTS, LMHead
from sparsepo.masks.base import rescale_per_response
from sparsepo.masks.declarations import ActivationMapping


def activation_weights(
    recorded: dict[str, list[Tensor]],
    response_index: Tensor,
    num_responses: int,
    mapping: ActivationMapping,
    vocabulary_size: int,
) -> Tensor:
    """Combine reduced activations into one weight per scored token.

    zn_rescale: each point is min-max rescaled over its response (the z-score the paper applies
    first cancels in it), then averaged over layers and points of a type, then over types. sigmoid:
    the same averages of mean sigmoid activations. none: within a type the mean of the raw features;
    over types, logits count as V columns against 1 for each other type.

    Args:
        recorded: hook name -> per layer [S] feature means over scored tokens ("sigmoid": means of
            sigmoids).
        response_index: int64 [S]. num_responses: responses indexed.
        vocabulary_size: V, used by "none" only.
    Returns: float32 [S]; in [0, 1] for zn_rescale and sigmoid, unbounded for none.
    Raises: ValueError if nothing was recorded.
    """
    if not recorded:
        raise ValueError("no activation was recorded: the hook list is empty for this model")
    by_type: dict[str, list[Tensor]] = {}
    for name, layers in recorded.items():
        for values in layers:
            mapped = (
                rescale_per_response(values, response_index, num_responses)
                if mapping == "zn_rescale"
                else values
            )
            by_type.setdefault(name.split(".")[0], []).append(mapped)
    means = {kind: torch.stack(values).mean(0) for kind, values in by_type.items()}
    columns = {
        kind: float(vocabulary_size) if mapping == "none" and kind == "logits" else 1.0
        for kind in means
    }
    total = sum(columns.values())
    return torch.stack([means[kind] * (columns[kind] / total) for kind in means]).sum(0)


def logit_activation(hidden: Tensor, head: LMHead, mapping: ActivationMapping) -> Tensor:
    """Mean over the vocabulary of each token's logits (or of their sigmoid).

    [S, d] -> float32 [S].
    """
    size = max(16, CHUNK_ELEMENTS // head.weight.shape[0])
    means = []
    for chunk in hidden.split(size):
        logits = head.logits(chunk)
        means.append((logits.sigmoid() if mapping == "sigmoid" else logits).mean(-1))
    return torch.cat(means) if means else hidden.new_zeros(0, dtype=torch.float32)
