"""Masks without parameters.

The weights are the reference's activations, seeded random numbers, or came with the data.
"""

from abc import abstractmethod
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from sparsepo.masks.base import (
    MaskWeights,
    TokenMasks,
    position_in_response,
    require_feature,
    unit_weights,
)
from sparsepo.masks.declarations import (
    MASKED_SIDES,
    MASKED_TERMS,
    MASKS,
    NORMALISATIONS,
    MaskedSides,
    MaskedTerms,
    Normalisation,
    check_one_of,
)
from sparsepo.records import Features, segment_sum


class FrozenOptions(TypedDict, total=False):
    """The options of every frozen mask."""

    terms: MaskedTerms
    sides: MaskedSides
    keep_fraction: float | None
    normalise: Normalisation


class FrozenMask(TokenMasks):
    """One weight per token without gradient, for both terms; subclasses write `weights`.

    A subclass that reads the policy names features of origin "step" in `requires`; one whose
    weights may be negative sets `signed`. The options act in the order in which they stand here.

    Args:
        terms: which terms are masked; the other keeps weight 1.
        keep_fraction: keep the ceil(keep_fraction * n) tokens of a response of n tokens that are
            heaviest by absolute value and zero the others (ties: the earlier token stays), in
            (0, 1]; None keeps all.
        sides: which responses are weighed; every token of the other one weighs 1.
        normalise: "mean_one" scales a response's weights so that those that are not 0 have the mean
            1, "sum_length" so that all sum to its number of tokens; by absolute value both. Weights
            that are all 0 stay so.
    """

    def __init__(
        self,
        terms: MaskedTerms = "both",
        keep_fraction: float | None = None,
        sides: MaskedSides = "both",
        normalise: Normalisation = "none",
    ) -> None:
        super().__init__()
        if keep_fraction is not None and not 0 < keep_fraction <= 1:
            raise ValueError(f"keep_fraction={keep_fraction}: must be in (0, 1]")
        check_one_of("terms", terms, MASKED_TERMS)
        check_one_of("sides", sides, MASKED_SIDES)
        check_one_of("normalise", normalise, NORMALISATIONS)
        self.terms, self.keep_fraction = terms, keep_fraction
        self.sides, self.normalise = sides, normalise
        self.l1_shares = (
            (0.5, 0.5) if terms == "both" else (float(terms == "reward"), float(terms == "kl"))
        )

    @abstractmethod
    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        """float [S], >= 0 unless the mask is `signed`; before the options that all masks have."""

    @torch.no_grad()
    def forward(self, features: Features, response_index: Tensor, num_pairs: int) -> MaskWeights:
        ones, num_responses = unit_weights(response_index), 2 * num_pairs
        weights = self.weights(features, response_index, num_responses)
        if self.keep_fraction is not None:
            weights = keep_heaviest(weights, response_index, num_responses, self.keep_fraction)
        weights = normalised(weights, response_index, num_responses, self.normalise)
        if self.sides != "both":
            is_weighed = response_index % 2 == (self.sides == "rejected")
            weights = torch.where(is_weighed, weights, 1.0)
        return MaskWeights(
            weights if self.terms != "kl" else ones, weights if self.terms != "reward" else ones, {}
        )


class ActivationMask(FrozenMask):
    """MaPO: the weights that ReferenceModel.features made of the reference's activations.

    Args:
        signed: they may be negative, as raw activations are (mapping "none"). terms, keep_fraction,
            sides, normalise: see FrozenMask.
    """

    requires = MASKS["activation"].requires

    def __init__(
        self,
        terms: MaskedTerms = "both",
        keep_fraction: float | None = None,
        signed: bool = False,
        sides: MaskedSides = "both",
        normalise: Normalisation = "none",
    ) -> None:
        super().__init__(terms, keep_fraction, sides, normalise)
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

    def __init__(self, seed: int = 0, **options: Unpack[FrozenOptions]) -> None:
        super().__init__(**options)
        self.seed = seed

    def weights(self, features: Features, response_index: Tensor, num_responses: int) -> Tensor:
        keys = require_feature(features, "pair_keys")
        bits = token_hash(keys, response_index, num_responses, self.seed)
        return bits.float() / 2**24


def keep_heaviest(
    weights: Tensor, response_index: Tensor, num_responses: int, fraction: float
) -> Tensor:
    """Zero all but the ceil(fraction * n) largest of each response's weights, by absolute value.

    Ties keep the earlier token.
    """
    kept = are_largest(weights.abs(), response_index, num_responses, fraction)
    return torch.where(kept, weights, 0.0)


def are_largest(
    values: Tensor, response_index: Tensor, num_responses: int, fraction: float
) -> Tensor:
    """bool [S]: the ceil(fraction * n) largest of each response's n values; ties: the earlier."""
    order = order_within(values, response_index, descending=True)
    rank = torch.empty_like(order)
    rank[order] = position_in_response(response_index[order], num_responses)
    lengths = segment_sum(torch.ones_like(response_index), response_index, num_responses)
    # In float64 and with a guard, so that 0.2 * 15 keeps 3 tokens and not 4.
    kept = (fraction * lengths.double() - 1e-9).ceil()
    return rank < kept[response_index]


def order_within(values: Tensor, response_index: Tensor, descending: bool = False) -> Tensor:
    """int64 [S] that sorts values within each response, ties by place."""
    by_value = torch.argsort(values, descending=descending, stable=True)
    return by_value[torch.argsort(response_index[by_value], stable=True)]


def normalised(
    weights: Tensor, response_index: Tensor, num_responses: int, how: Normalisation
) -> Tensor:
    """Weights [S] scaled per response, see FrozenMask."""
    if how == "none":
        return weights
    counted = torch.ones_like(weights) if how == "sum_length" else (weights != 0).to(weights.dtype)
    wanted = segment_sum(counted, response_index, num_responses)
    sums = segment_sum(weights.abs(), response_index, num_responses)
    return weights * (wanted / sums.where(sums != 0, 1.0))[response_index]


def token_hash(keys: Tensor, response_index: Tensor, num_responses: int, seed: int) -> Tensor:
    """int64 [S] in [0, 2**24), of seed, the pair's key, the side and the token's place alone."""
    place = position_in_response(response_index, num_responses)
    state = _mixed(keys[response_index // 2] ^ _mixed(torch.full_like(place, seed)))
    return _shifted(_mixed(state ^ _mixed(2 * place + response_index % 2)), 40)


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
