"""The tokens that hurt the margin most: no other choice of as many hurts more."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from pair_records import margin, random_scores
from producers import index_of, random_features, weights_by_response

from sparsepo import DPO, AdversarialMask, Features, Weighted


def test_by_hand() -> None:
    """Log ratios 0.3, -0.2, 0.1 keep the two smallest; rejected 0.4, -0.1 the larger one."""
    ratios = torch.tensor([0.3, -0.2, 0.1, 0.4, -0.1])
    features = Features(policy_logps=ratios, reference_logps=torch.zeros(5))
    assert weights_by_response(AdversarialMask(0.5), features, [3, 2]) == [
        [0.0, 1.0, 1.0],
        [1.0, 0.0],
    ]


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8])
def test_no_choice_of_as_many_tokens_has_a_smaller_margin(k: float) -> None:
    lengths = [6, 5]
    features = random_features(lengths, seed=4)
    index, objective = index_of(lengths), Weighted(0.5)
    record = replace(
        random_scores(lengths),
        policy_logps=features.policy_logps,
        reference_logps=features.reference_logps,
    )

    def margin_of(weights: torch.Tensor) -> float:
        return float(margin(objective(replace(record, reward_mask=weights))))

    found = margin_of(AdversarialMask(k)(features, index, 1).reward)
    counts = [math.ceil(k * n - 1e-9) for n in lengths]
    least = math.inf
    for chosen in itertools.combinations(range(6), counts[0]):
        for rejected in itertools.combinations(range(6, 11), counts[1]):
            weights = torch.zeros(11)
            weights[[*chosen, *rejected]] = 1.0
            least = min(least, margin_of(weights))
    assert found == pytest.approx(least, abs=1e-3)  # it rounds to 1e-4 nats


def test_all_tokens_are_dpo_and_rounding_chooses_none() -> None:
    lengths = [9, 6]
    record, features = random_scores(lengths), random_features(lengths)
    weights = AdversarialMask(1.0)(features, index_of(lengths), 1).reward
    kept = replace(record, reward_mask=weights)
    torch.testing.assert_close(Weighted(0.3)(kept).losses, DPO(0.3)(record).losses)
    noise = 3e-6 * torch.randn(15, generator=torch.Generator().manual_seed(0))
    started = replace(features, policy_logps=features.reference_logps + noise)
    assert weights_by_response(AdversarialMask(0.3), started, lengths) == [
        [1.0] * 3 + [0.0] * 6, [1.0] * 2 + [0.0] * 4,
    ]  # fmt: skip


@pytest.mark.parametrize("k", [0.0, 1.5])
def test_bad_options_are_named(k: float) -> None:
    with pytest.raises(ValueError, match=rf"k={k}: must be in \(0, 1\]"):
        AdversarialMask(k)
