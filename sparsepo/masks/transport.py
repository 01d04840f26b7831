"""Tokens by how much of them both responses of a pair have in common.

Source: OTPO, arXiv:2505.18720 (read): unbalanced optimal transport between the states of both
responses, as POT's `sinkhorn_unbalanced` solves it. Ours: the stored reference's states as the
other source, and a number of iterations that is fixed by the options instead of a test of
convergence, so that a pair's weights do not depend on the pairs beside it.
"""

import math
from typing import Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import position_in_response, require_feature
from sparsepo.masks.declarations import TRANSPORT_STATES, TransportStates, check_one_of
from sparsepo.masks.frozen import FrozenMask, FrozenOptions
from sparsepo.records import Features, segment_sum

_TOLERANCE, _MOST_ITERATIONS = 1e-7, 1000


class TransportMask(FrozenMask):
    """w_t = the token's marginal of the transport plan between a pair's responses, scaled.

    Every token has the mass 1. The cost of a chosen and a rejected token is the L2 distance of the
    states that predict them, divided by the pair's largest if that is above 1, plus 1e-6. Both
    responses' weights sum to the length of the shorter one. They carry no gradient.

    Args:
        states: "policy" reads the policy's in the step, "reference" the stored ones.
        entropic_reg: weight of the plan's KL to the product of the masses, > 0.
        marginal_penalty: weight of the KL of the plan's marginals to the masses, > 0.
        Others: see FrozenMask.
    """

    reads_both = True

    def __init__(
        self,
        states: TransportStates = "policy",
        entropic_reg: float = 0.1,
        marginal_penalty: float = 0.2,
        **options: Unpack[FrozenOptions],
    ) -> None:
        super().__init__(**options)
        check_one_of("states", states, tuple(TRANSPORT_STATES))
        for name, value in (
            ("entropic_reg", entropic_reg),
            ("marginal_penalty", marginal_penalty),
        ):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: must be finite and > 0")
        self.feature = TRANSPORT_STATES[states]
        self.requires = frozenset({self.feature})
        self.entropic_reg, self.marginal_penalty = entropic_reg, marginal_penalty

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        states = require_feature(features, self.feature)
        states = states if states.dtype == torch.float64 else states.float()
        if len(states) == 0:
            return states.new_zeros(0)
        ones = torch.ones_like(response_index)
        lengths = segment_sum(ones, response_index, num_responses).view(-1, 2)
        place = position_in_response(response_index, num_responses)
        # One wait for the device: how wide the pairs are.
        widest = int(lengths.max())
        padded = states.new_zeros(num_responses, widest, states.shape[1])
        padded[response_index, place] = states
        is_token = torch.arange(widest, device=states.device) < lengths[..., None]
        marginals = transport_marginals(
            padded[::2], padded[1::2], is_token, self.entropic_reg, self.marginal_penalty
        )
        total = marginals[:, 0].sum(-1).clamp(min=torch.finfo(states.dtype).tiny)
        scale = lengths.amin(1) / total
        return (marginals * scale[:, None, None]).flatten(0, 1)[response_index, place]


def transport_marginals(
    chosen: Tensor, rejected: Tensor, is_token: Tensor, entropic_reg: float, marginal_penalty: float
) -> Tensor:
    """Row and column sums of the unbalanced transport plan of each pair.

    Args:
        chosen, rejected: states [num_pairs, T, d]. is_token: bool [num_pairs, 2, T], which rows of
            either are tokens; the others are not read.
    Returns: [num_pairs, 2, T] >= 0, 0 outside is_token; both sides have the same sum.
    """
    rows, columns = is_token[:, 0], is_token[:, 1]
    both = rows[:, :, None] & columns[:, None, :]
    # Not by a matrix product: states that are the same, as of a common beginning, would be apart.
    mode = "donot_use_mm_for_euclid_dist"
    cost = torch.cdist(chosen, rejected, compute_mode=mode).masked_fill(~both, 0.0)
    cost = cost / cost.amax((1, 2), keepdim=True).clamp(min=1.0) + 1e-6
    kernel = (-cost / entropic_reg).exp().masked_fill(~both, 0.0)
    power = marginal_penalty / (marginal_penalty + entropic_reg)
    u, v = rows.to(kernel.dtype), columns.to(kernel.dtype)
    for _ in range(_num_iterations(entropic_reg, power)):
        u = _scaling((kernel * v[:, None, :]).sum(2), rows, power)
        v = _scaling((kernel * u[:, :, None]).sum(1), columns, power)
    plan = u[:, :, None] * kernel * v[:, None, :]
    return torch.stack([plan.sum(2), plan.sum(1)], dim=1)


def _scaling(mass: Tensor, is_token: Tensor, power: float) -> Tensor:
    """(1 / mass)^power where there is a token and something reaches it."""
    reached = is_token & (mass > 0)
    return torch.where(reached, mass.where(reached, 1.0).pow(-power), 0.0)


def _num_iterations(entropic_reg: float, power: float) -> int:
    """Iterations after which the logarithms of the scalings are known to the tolerance.

    One contracts their error by power^2; at first it is at most the kernel's span and the logarithm
    of the number of tokens.
    """
    first, rate = 1.0 / entropic_reg + 10.0, -2 * math.log(power)
    if rate * _MOST_ITERATIONS <= math.log(first / _TOLERANCE):
        return _MOST_ITERATIONS
    return math.ceil(math.log(first / _TOLERANCE) / rate)
