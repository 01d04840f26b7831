"""Selective DPO's tokens: what the policy lacks of the reference."""

from dataclasses import replace

import pytest
import torch
from producers import random_features, weights_by_response

from sparsepo import Features, SurpriseMask


def test_by_hand() -> None:
    """Reference minus policy 1, -1, 0, 2, 3: the 0.6 quantile is 1.4, above are the last two.

    Rejected, policy minus reference -1, 1, 0: 0.6 of two steps is between 0 and 1, one is above.
    """
    policy = torch.tensor([-2.0, -1.0, -2.0, -4.0, -4.0, -2.0, -1.0, -2.0])
    reference = torch.tensor([-1.0, -2.0, -2.0, -2.0, -1.0, -1.0, -2.0, -2.0])
    features = Features(policy_logps=policy, reference_logps=reference)
    assert weights_by_response(SurpriseMask(), features, [5, 3]) == [
        [0.0, 0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0],
    ]  # fmt: skip


@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.6, 0.7, 0.99])
def test_the_tokens_are_those_of_torchs_quantile(quantile: float) -> None:
    lengths = [7, 5, 1, 11, 3, 3, 30, 2]
    features = random_features(lengths, seed=2)
    rounded = ((features.policy_logps - features.reference_logps) * 1e4).round() / 1e4
    expected = []
    for response, part in enumerate(rounded.split(lengths)):
        scores = part if response % 2 else -part
        expected.append((scores >= scores.quantile(quantile)).float().tolist())
    assert weights_by_response(SurpriseMask(quantile), features, lengths) == expected


def test_rounding_chooses_no_tokens() -> None:
    """At the reference all tie and are kept, whatever float32 leaves of the difference."""
    lengths = [9, 6]
    features = random_features(lengths)
    noise = 3e-6 * torch.randn(15, generator=torch.Generator().manual_seed(0))
    started = replace(features, policy_logps=features.reference_logps + noise)
    assert weights_by_response(SurpriseMask(), started, lengths) == [[1.0] * 9, [1.0] * 6]


def test_the_seventh_of_a_hundred_steps_is_the_seventh() -> None:
    """0.07 * 100 is 7.000000000000001 in floating point, which would lose the token itself."""
    policy = torch.zeros(102, dtype=torch.float64)
    reference = torch.arange(102, dtype=torch.float64)
    features = Features(policy_logps=policy, reference_logps=reference)
    assert sum(weights_by_response(SurpriseMask(0.07), features, [101, 1])[0]) == 101 - 7


@pytest.mark.parametrize("quantile", [-0.1, 1.0])
def test_bad_options_are_named(quantile: float) -> None:
    with pytest.raises(ValueError, match=rf"quantile={quantile}: must be in \[0, 1\)"):
        SurpriseMask(quantile)
