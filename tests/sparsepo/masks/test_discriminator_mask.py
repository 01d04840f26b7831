"""Weights from a discriminator of tokens."""

import math
from dataclasses import replace

import pytest
import torch
from pair_records import random_scores
from producers import assert_weighted_loss, by_response, drawn, weights_of

from sparsepo import DPO, DiscriminatorMask, Features, Weighted


def test_by_hand() -> None:
    """mu 2, hi 1.5. Chosen D = 1, 0.6, 0.1: v = 1, 0.2, -0.8 give 3 -> 1.5, 1.4, -0.6 -> 0.

    Rejected D = 0.6, 0: v = 0.2, -1 give 0.6 and 3 -> 1.5.
    """
    features = Features(discriminator_values=torch.tensor([1.0, 0.6, 0.1, 0.6, 0.0]).double())
    found = weights_of(DiscriminatorMask(2.0, 1.5), features, [3, 2])
    assert found.tolist() == pytest.approx([1.5, 1.4, 0, 0.6, 1.5])


def test_every_response_has_its_own_sign() -> None:
    made = drawn("discriminator_values").discriminator_values
    assert made is not None
    probabilities = made.sigmoid()

    def dense(values: list[float], is_rejected: bool) -> list[float]:
        sign = -1 if is_rejected else 1
        return [min(1.2, max(0.0, 1 + sign * 3 * (2 * value - 1))) for value in values]

    found = weights_of(DiscriminatorMask(3.0, 1.2), Features(discriminator_values=probabilities))
    torch.testing.assert_close(found, by_response(probabilities, dense))
    assert {0.0, 1.2} <= set(found.tolist())
    assert_weighted_loss(found)


def test_without_strength_or_knowledge_it_is_dpo() -> None:
    record = random_scores([3, 4])
    for mask, probability in (
        (DiscriminatorMask(0.0), torch.rand(7)),
        (DiscriminatorMask(), torch.full((7,), 0.5)),
    ):
        ones = weights_of(mask, Features(discriminator_values=probability), [3, 4])
        found = Weighted(0.4)(replace(record, reward_mask=ones)).losses
        torch.testing.assert_close(found, DPO(0.4)(record).losses)


def test_a_response_without_weight_is_allowed_and_options_out_of_range_are_named() -> None:
    assert DiscriminatorMask.may_be_empty
    for options, said in (
        ({"mu": -1.0}, "mu=-1.0"),
        ({"mu": math.nan}, "mu=nan"),
        ({"hi": 0.5}, "hi=0.5"),
        ({"hi": math.inf}, "hi=inf"),
    ):
        with pytest.raises(ValueError, match=said):
            DiscriminatorMask(**options)
