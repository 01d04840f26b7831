"""Ragged responses and features of their tokens, for tests of producers."""

import torch
from torch import Tensor

from sparsepo import Features
from sparsepo.masks import TokenMasks


def index_of(lengths: list[int]) -> Tensor:
    """The response index of responses with so many tokens, chosen and rejected in turn."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def random_features(lengths: list[int], seed: int = 0) -> Features:
    """Log-probabilities in float64 of policy and reference, and keys."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    policy, reference = -3 * torch.rand(2, total, generator=generator, dtype=torch.float64)
    keys = torch.randint(-(2**62), 2**62, (len(lengths) // 2,), generator=generator)
    return Features(policy_logps=policy, reference_logps=reference, pair_keys=keys)


def weights_of(mask: TokenMasks, features: Features, lengths: list[int]) -> list[list[float]]:
    """The reward weights, response by response."""
    found = mask(features, index_of(lengths), len(lengths) // 2).reward
    assert not found.requires_grad
    return [part.tolist() for part in found.split(lengths)]
