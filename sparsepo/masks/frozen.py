"""Masks without parameters.

The weights are the reference's activations, seeded random numbers, or came with the data.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from sparsepo.masks.base import (
    MaskWeights,
    TokenMasks,
    position_in_response,
    require_feature,
    unit_weights,
)
from sparsepo.masks.declarations import MASKS, MaskedTerms
from sparsepo.records import Features, segment_sum


class FrozenMask(TokenMasks):
    """One fixed weight per token for both terms; subclasses write `weights`.

    Args:
        terms: which terms are masked; the other keeps weight 1.
        keep_fraction: keep the heaviest ceil(keep_fraction * n) tokens of a response of n tokens
            and zero the others (ties: the earlier token stays), in (0, 1]; None keeps all.
    """

    def __init__(self, terms: MaskedTerms = "both", keep_fraction: float | None = None) -> None:
        super().__init__()
        if keep_fraction is not None and not 0 < keep_fraction <= 1:
            raise ValueError(f"keep_fraction={keep_fraction}: must be in (0, 1]")
        self.terms, self.keep_fraction = terms, keep_fraction
        self.l1_shares = (
            (0.5, 0.5) if terms == "both" else (float(terms == "reward"), float(terms == "kl"))
        )

    @abstractmethod
    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        """float [S] >= 0."""

    def forward(self, features: Features, response_index: Tensor, num_pairs: int) -> MaskWeights:
        weights = self.weights(features, response_index, 2 * num_pairs)
        if self.keep_fraction is not None:
            weights = keep_heaviest(weights, response_index, 2 * num_pairs, self.keep_fraction)
        ones = unit_weights(response_index)
        return MaskWeights(
            weights if self.terms != "kl" else ones, weights if self.terms != "reward" else ones, {}
        )


class ActivationMask(FrozenMask):
    """MaPO: the weights that ReferenceModel.features made of the reference's activations.

    Args:
        signed: they may be negative, as raw activations are (mapping "none"). terms, keep_fraction:
            see FrozenMask.
    """

    requires = MASKS["activation"].requires

    def __init__(
        self, terms: MaskedTerms = "both", keep_fraction: float | None = None, signed: bool = False
    ) -> None:
        super().__init__(terms, keep_fraction)
        self.signed = signed

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        return require_feature(features, "activation_mask")


class ExternalMask(FrozenMask):
    """Weights given with the data, one per response token."""

    requires = MASKS["external"].requires

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        return require_feature(features, "external_weights")


class RandomMask(FrozenMask):
    """Uniform weights in [0, 1) that depend on the seed, the pair and the token's place alone.

    The same token has the same weight in every batch, epoch, worker count and run: a baseline for
    masks that look at the text.
    """

    requires = MASKS["random"].requires

    def __init__(
        self, seed: int = 0, terms: MaskedTerms = "both", keep_fraction: float | None = None
    ) -> None:
        super().__init__(terms, keep_fraction)
        self.seed = seed

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        keys = require_feature(features, "pair_keys")
        place = position_in_response(response_index, num_responses)
        state = _mixed(keys[response_index // 2] ^ _mixed(torch.full_like(place, self.seed)))
        bits = _shifted(_mixed(state ^ _mixed(2 * place + response_index % 2)), 40)
        return bits.float() / 2**24


def keep_heaviest(
    weights: Tensor, response_index: Tensor, num_responses: int, fraction: float
) -> Tensor:
    """Zero all but the heaviest ceil(fraction * n) of each response's n weights [S].

    Ties keep the earlier token.
    """
    by_weight = torch.argsort(weights, descending=True, stable=True)
    order = by_weight[torch.argsort(response_index[by_weight], stable=True)]
    rank = torch.empty_like(order)
    rank[order] = position_in_response(response_index[order], num_responses)
    lengths = segment_sum(torch.ones_like(response_index), response_index, num_responses)
    # In float64 and with a guard, so that 0.2 * 15 keeps 3 tokens and not 4.
    kept = (fraction * lengths.double() - 1e-9).ceil()
    return torch.where(rank < kept[response_index], weights, 0.0)


def _mixed(x: Tensor) -> Tensor:
    """splitmix64's output function on int64 with wrap-around.

    Source: Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195.
    """
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ _shifted(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shifted(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
