"""Several policies with one vocabulary, merged token by token.

Source: arXiv:2407.04181. The map of the hidden state is ours: the paper trains its own with REBEL.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Form = Literal["mixture", "product"]
_SUM_SLACK = 1e-6


def merge_logps(logps: Tensor, weights: Tensor, form: Form) -> Tensor:
    """Log-probabilities [n, V] of the merged distribution.

    mixture: log sum_k weights_k p_k. product: sum_k weights_k log p_k, normalised over the
    vocabulary. A row whose weights are one 1 and zeros is that policy's, bit for bit. A policy of
    weight 0 counts for nothing, whatever it says. What a policy with another weight makes
    impossible is so in a product, too.

    Args:
        logps: [K, n, V], normalised log-probabilities in nats. weights: [n, K], each row sums to
            one; `checked_weights` makes them. Gradient flows to both.
    Raises: ValueError for shapes that do not fit, or a form that is none.
    Source: arXiv:2407.04181.
    """
    _check_shapes(logps, weights)
    by_policy = weights.T[..., None]  # [K, n, 1]
    if form == "mixture":
        merged = torch.logsumexp(logps + by_policy.log(), dim=0)
    elif form == "product":
        is_heard = by_policy != 0
        impossible = (logps.isneginf() & is_heard).any(0)
        terms = torch.where(is_heard & ~logps.isneginf(), by_policy * logps, 0.0)
        merged = terms.sum(0).masked_fill(impossible, -math.inf).log_softmax(-1)
    else:
        raise ValueError(f"form = {form!r}: must be mixture or product")
    alone = alone_in(weights)
    own = logps[alone.clamp_min(0), torch.arange(len(alone), device=alone.device)]
    return torch.where((alone >= 0)[:, None], own, merged)


def mixed_label_logps(label_logps: Tensor, weights: Tensor) -> Tensor:
    """Log-probabilities [n] of single tokens under a mixture.

    Args:
        label_logps: [K, n], of those tokens under each policy, nats. weights: [n, K], positive.
    """
    if label_logps.shape != weights.T.shape:
        raise ValueError(
            f"log-probabilities are {tuple(label_logps.shape)}, weights {tuple(weights.shape)}: "
            "must be [K, n] and [n, K]"
        )
    return torch.logsumexp(label_logps + weights.T.log(), dim=0)


def product_label_logps(
    label_logps: Tensor, weights: Tensor, logps: Callable[[], Tensor]
) -> Tensor:
    """Log-probabilities [n] of single tokens under a product.

    The gradient to the weights is exact and needs no second pass: that of log Z is the expectation
    of log p_k under the merged distribution. None flows to the policies.

    Args:
        label_logps: [K, n], of those tokens under each policy, nats. weights: [n, K]. logps: makes
            all log-probabilities [K, n, V], finite; they are let go of at once.
    """
    with torch.no_grad():
        found = logps()
        _check_shapes(found, weights)
        unnormalised = (weights.T[..., None] * found).sum(0)
        log_z = unnormalised.logsumexp(-1)
        probabilities = (unnormalised - log_z[:, None]).exp()
        expected = (found * probabilities).sum(-1).T  # [n, K]
    along = (weights - weights.detach()) * expected
    return (weights * label_logps.T).sum(-1) - log_z - along.sum(-1)


def alone_in(weights: Tensor) -> Tensor:
    """Of each row of weights [n, K], the policy that has all of it; -1 where several have some."""
    is_one_hot = ((weights != 0).sum(-1) == 1) & (weights == 1).any(-1)
    return torch.where(is_one_hot, weights.argmax(-1), -1)


def checked_weights(
    weights: Sequence[float], num_policies: int, form: Form
) -> tuple[tuple[float, ...], bool]:
    """Weights that sum to one, and whether they had to be divided by their sum.

    A product may have negative ones: it moves away from that policy.

    Raises: ValueError for another number of weights, one that is not finite, a negative one of a
        mixture, or a sum that is not positive.
    """
    shown = f"weights {list(weights)}"
    if len(weights) != num_policies:
        raise ValueError(f"{shown}: must be {num_policies}, one per model")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"{shown}: must be finite")
    if form == "mixture" and min(weights) < 0:
        raise ValueError(f"{shown}: a mixture takes none below 0")
    total = math.fsum(weights)
    if total <= _SUM_SLACK:
        raise ValueError(f"{shown}: their sum must be above 0")
    return tuple(weight / total for weight in weights), abs(total - 1) > _SUM_SLACK


class WeightMap(nn.Module):
    """Weights [n, K] = softmax(W h / |h| + b) for hidden states h [n, d], in float32.

    It begins with equal weights for all policies, whatever the state.
    """

    def __init__(self, state_size: int, num_policies: int) -> None:
        super().__init__()
        self.linear = nn.Linear(state_size, num_policies)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        weights: Tensor = self.linear(F.normalize(states.float(), dim=-1)).softmax(-1)
        return weights


def _check_shapes(logps: Tensor, weights: Tensor) -> None:
    if logps.ndim != 3 or weights.shape != (logps.shape[1], logps.shape[0]):
        raise ValueError(
            f"log-probabilities are {tuple(logps.shape)}, weights {tuple(weights.shape)}: must be "
            "[K, n, V] and [n, K]"
        )
