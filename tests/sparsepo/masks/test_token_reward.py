"""TGDPO's weights, which may be negative."""

import math
from dataclasses import replace

import pytest
import torch
from pair_records import by_hand, random_scores
from producers import assert_weighted_loss, by_response, drawn, weights_of

from sparsepo import DPO, TDPO1, Features, TokenRewardMask, Weighted


def test_by_hand() -> None:
    """alpha beta = 0.05: q = 2, -30 of the chosen give 1.1, -0.5; q = 4 of the rejected 0.8."""
    features = Features(scorer_log_ratios=torch.tensor([2.0, -30.0, 4.0]))
    found = weights_of(TokenRewardMask(), features, [2, 1])
    assert found.tolist() == pytest.approx([1.1, -0.5, 0.8])
    assert TokenRewardMask.signed


def test_every_response_has_its_own_sign() -> None:
    features = drawn("scorer_log_ratios", scale=4)
    assert features.scorer_log_ratios is not None

    def dense(values: list[float], is_rejected: bool) -> list[float]:
        return [1 + (-1 if is_rejected else 1) * 2.0 * 0.3 * value for value in values]

    found = weights_of(TokenRewardMask(2.0, 0.3), features)
    torch.testing.assert_close(found, by_response(features.scorer_log_ratios, dense))
    assert float(found.min()) < 0
    assert_weighted_loss(found, signed=True)


def test_without_strength_it_is_dpo() -> None:
    record = random_scores([3, 4])
    ones = weights_of(
        TokenRewardMask(0.0), Features(scorer_log_ratios=record.scorer_log_ratios), [3, 4]
    )
    found = Weighted(0.4)(replace(record, reward_mask=ones)).losses
    torch.testing.assert_close(found, DPO(0.4)(record).losses)


def test_a_loss_that_needs_other_weights_refuses_negative_ones() -> None:
    record = by_hand(reward_mask=torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"reward_mask\[1\]=-0.5: weights must be finite and >= 0"):
        TDPO1()(record)
    for options, said in (
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"alpha": math.inf}, "alpha=inf"),
    ):
        with pytest.raises(ValueError, match=said):
            TokenRewardMask(**options)
