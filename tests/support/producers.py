"""What the tests of token weights share: responses of unequal length, and one at a time."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from pair_records import random_scores

from sparsepo import Features, TokenScores, Weighted
from sparsepo.masks import TokenMasks


def index_of(lengths: Sequence[int]) -> torch.Tensor:
    """The response index of responses with so many tokens, chosen and rejected in turn."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


LENGTHS = [5, 3, 1, 7, 12, 10, 2, 1]
INDEX = index_of(LENGTHS)


def drawn(*names: str, scale: float = 1.0, seed: int = 0, **more: torch.Tensor) -> Features:
    """Normal numbers in float64 for each of these features, of responses of LENGTHS."""
    g = torch.Generator().manual_seed(seed)
    made = {
        name: scale * torch.randn(len(INDEX), generator=g, dtype=torch.float64) for name in names
    }
    return Features(**made, **more)


def random_features(lengths: list[int], seed: int = 0) -> Features:
    """Log-probabilities in float64 of policy and reference, and keys."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    policy, reference = -3 * torch.rand(2, total, generator=generator, dtype=torch.float64)
    keys = torch.randint(-(2**62), 2**62, (len(lengths) // 2,), generator=generator)
    return Features(policy_logps=policy, reference_logps=reference, pair_keys=keys)


def weights_of(
    mask: TokenMasks, features: Features, lengths: Sequence[int] = LENGTHS
) -> torch.Tensor:
    """The mask's weights of the log ratios; those of the KL are the same."""
    found = mask(features, index_of(lengths), len(lengths) // 2)
    assert torch.equal(found.reward, found.kl)
    assert not found.reward.requires_grad
    return found.reward


def weights_by_response(
    mask: TokenMasks, features: Features, lengths: Sequence[int]
) -> list[list[float]]:
    return [part.tolist() for part in weights_of(mask, features, lengths).split(list(lengths))]


def by_response(
    values: torch.Tensor, rule: Callable[[list[float], bool], Sequence[float]]
) -> torch.Tensor:
    """The rule applied to one response's values at a time, and to whether it is rejected."""
    found: list[float] = []
    for response in range(len(LENGTHS)):
        found += rule(values[response == INDEX].tolist(), response % 2 == 1)
    return torch.tensor(found, dtype=torch.float64)


def assert_weighted_loss(weights: torch.Tensor, signed: bool = False) -> None:
    """Loss and gradient of Weighted with these weights against the sum written out, float64."""
    record = replace(
        random_scores(LENGTHS, seed=3),
        reward_mask=weights.double(),
        kl_mask=weights.double(),
        signed_masks=signed,
    )
    found, expected = [], []
    for losses, into in ((_library, found), (_written_out, expected)):
        logps = record.policy_logps.clone().requires_grad_()
        values = losses(replace(record, policy_logps=logps))
        values.sum().backward()
        assert logps.grad is not None
        into += [values.detach(), logps.grad]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def _library(record: TokenScores) -> torch.Tensor:
    return Weighted(beta=0.7)(record).losses


def _written_out(record: TokenScores) -> torch.Tensor:
    sums = [
        sum(
            record.reward_mask[t] * (record.policy_logps[t] - record.reference_logps[t])
            for t in range(len(INDEX))
            if int(INDEX[t]) == response
        )
        for response in range(len(LENGTHS))
    ]
    margins = [0.7 * (sums[i] - sums[i + 1]) for i in range(0, len(LENGTHS), 2)]
    return torch.stack([torch.log1p(torch.exp(-margin)) for margin in margins])
