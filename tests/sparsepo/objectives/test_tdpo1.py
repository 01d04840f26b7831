"""TDPO v1: by_hand's KLs sum to 0.6 and 0.6."""

import math

import pytest
import torch
from pair_records import (
    assert_gradcheck,
    at_reference,
    by_hand,
    loss_of,
    margin,
    random_scores,
    swapped,
)

from sparsepo import TDPO1


def test_by_hand() -> None:
    """(0.4 - 0.3) - (0.6 - 0.6) = 0.1, beta 0.5: logit 0.05, reward chosen 0.5 * (0.4 + 0.6)."""
    output = TDPO1(0.5)(by_hand())
    assert output.losses.item() == pytest.approx(loss_of(0.05), abs=1e-12)
    assert output.chosen_rewards.item() == pytest.approx(0.5, abs=1e-12)


def test_limits() -> None:
    record = random_scores([3, 5, 2, 2])
    torch.testing.assert_close(
        TDPO1(0.3)(at_reference(record)).losses, torch.full((2,), math.log(2), dtype=torch.float64)
    )
    output = TDPO1(0.3)(record)
    torch.testing.assert_close(output.losses, torch.nn.functional.softplus(-margin(output)))
    torch.testing.assert_close(margin(TDPO1(0.3)(swapped(record))), -margin(output))


def test_gradients() -> None:
    assert_gradcheck(TDPO1(0.3, 0.1, 0.2), random_scores([2, 3, 1, 2]), "policy_logps", "token_kl")
