"""ConfPO's tokens, and its loss as a setting of the weighted one."""

import math
from dataclasses import replace

import pytest
import torch
from pair_records import random_scores
from producers import index_of, random_features, weights_by_response

from sparsepo import ConfidenceMask, Features, SimPO, Weighted


def test_by_hand() -> None:
    """Probabilities 0.5, 0.1, 0.3: mean 0.3, strictly below it is 0.1 alone. One token keeps none.

    The mean is of probabilities: that of logarithms would be exp(-1.4) = 0.247.
    """
    policy = torch.tensor([0.5, 0.1, 0.3, 0.2, 0.9, 0.25, 0.2]).double().log()
    found = weights_by_response(ConfidenceMask(), Features(policy_logps=policy), [3, 1, 1, 2])
    assert found == [[0.0, 1.0, 0.0], [0.0], [0.0], [0.0, 1.0]]


def test_the_tokens_are_the_dense_ones() -> None:
    lengths = [7, 5, 1, 9, 3, 3]
    features = random_features(lengths, seed=3)
    expected = []
    for part in features.policy_logps.split(lengths):
        probabilities = [math.exp(value) for value in part.tolist()]
        mean = sum(probabilities) / len(probabilities)
        expected.append([float(p < mean) for p in probabilities])
    assert weights_by_response(ConfidenceMask(), features, lengths) == expected


def test_the_papers_loss_by_hand_and_its_limit() -> None:
    """beta 2, gamma 1: means over kept tokens alone; an empty side makes the loss 0.

    Chosen ln 0.1 is kept (ln 0.5 not), rejected ln 0.2 (ln 0.25 not). With all tokens kept it is
    SimPO.
    """
    values = torch.tensor([0.5, 0.1, 0.25, 0.2, 0.4, 0.3]).double().log().requires_grad_()
    index = index_of([2, 2, 1, 1])
    record = replace(random_scores([2, 2, 1, 1]), policy_logps=values, response_index=index)
    mask = ConfidenceMask()
    weights = mask(Features(policy_logps=values), index, 2).reward
    given = replace(record, reward_mask=weights, empty_sides=mask.may_be_empty)
    objective = Weighted(2.0, reference_free=True, reduction="mean_kept", gamma=1.0)
    losses = objective(given).losses
    logit = 2 * (math.log(0.1) - math.log(0.2)) - 1
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-logit)), 0.0], abs=1e-12)
    losses.sum().backward()
    slope = -2 / (1 + math.exp(logit))
    assert values.grad.tolist() == pytest.approx([0, slope, 0, -slope, 0, 0], abs=1e-12)
    kept = replace(given, reward_mask=torch.ones_like(weights))
    torch.testing.assert_close(objective(kept).losses, SimPO(2.0, 0.5)(kept).losses)
