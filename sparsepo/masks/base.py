"""The interface of every token mask."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsepo.features import FEATURES
from sparsepo.records import Features, Metrics, segment_sum


class MaskWeights(NamedTuple):
    """reward and kl: float [S], the weights of log ratios and KL.

    statistics: of the mask itself, as (sum, count).
    """

    reward: Tensor
    kl: Tensor
    statistics: Metrics


class TokenMasks(nn.Module, ABC):
    """Maps features to the two token masks.

    Attributes:
        requires: names of the features the mask reads.
        l1_shares: factors of the (reward, kl) masks' L1 norms, see TokenScores.
        signed: weights may be negative.
        may_be_empty: all weights of a response may be 0.
        reads_both: a response's weights depend on the pair's other response.
    """

    requires: frozenset[str] = frozenset()
    l1_shares: tuple[float, float] = (1.0, 1.0)
    signed: bool = False
    may_be_empty: bool = False
    reads_both: bool = False

    @abstractmethod
    def forward(self, features: Features, response_index: Tensor, num_pairs: int) -> MaskWeights:
        """Weights of the scored tokens, finite and >= 0 unless `signed`.

        Args:
            features: of the same tokens. response_index: int64 [S], non-decreasing, as in
                TokenScores.
        Raises: ValueError naming the feature that is missing.
        """

    def segments(self, features: Features, response_index: Tensor) -> Tensor | None:
        """int64 [S], non-decreasing: the segment of every token; None of a mask without any.

        Args: as of `forward`.
        """
        return None


class UniformMask(TokenMasks):
    """Every response token weighs 1: with a KL term this is TDPO v1, without one DPO."""

    def forward(self, features: Features, response_index: Tensor, num_pairs: int) -> MaskWeights:
        ones = unit_weights(response_index)
        return MaskWeights(ones, ones, {})


def unit_weights(response_index: Tensor) -> Tensor:
    return torch.ones(response_index.shape, device=response_index.device)


def require_feature(features: Features, name: str) -> Tensor:
    value: Tensor | None = getattr(features, name)
    if value is None:
        raise ValueError(
            f"the mask needs the feature {name!r}, which is not in this batch; it comes from "
            f"{FEATURES[name].made_by}"
        )
    return value


def position_in_response(response_index: Tensor, num_responses: int) -> Tensor:
    """int64 [S]: 0, 1, ... within each response of a non-decreasing index."""
    lengths = segment_sum(torch.ones_like(response_index), response_index, num_responses)
    starts = lengths.cumsum(0) - lengths
    return torch.arange(len(response_index), device=response_index.device) - starts[response_index]


def response_means(values: Tensor, response_index: Tensor, num_responses: int) -> Tensor:
    """Each token's mean of the values [S] of its response."""
    counts = segment_sum(torch.ones_like(values), response_index, num_responses).clamp(min=1)
    return (segment_sum(values, response_index, num_responses) / counts)[response_index]


def rounded_log_ratios(features: Features) -> Tensor:
    """[S] policy minus reference to 1e-4 nats, without gradient.

    Layouts and batch sizes differ by less in float32, so they choose no other tokens.
    """
    policy = require_feature(features, "policy_logps").detach()
    return ((policy - require_feature(features, "reference_logps")) * 1e4).round() / 1e4


def rescale_per_response(values: Tensor, response_index: Tensor, num_responses: int) -> Tensor:
    """Min-max rescale [S, ...] to [0, 1] within each response; a constant response becomes 1.

    Smallest and largest value are constants to autograd, as in the released code.
    """
    index = response_index.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
    shape = (num_responses, *values.shape[1:])
    fixed = values.detach()
    low = fixed.new_full(shape, torch.inf).scatter_reduce(0, index, fixed, "amin").gather(0, index)
    high = (
        fixed.new_full(shape, -torch.inf).scatter_reduce(0, index, fixed, "amax").gather(0, index)
    )
    span = high - low
    return torch.where(span > 0, (values - low) / span.where(span > 0, 1.0), 1.0)
