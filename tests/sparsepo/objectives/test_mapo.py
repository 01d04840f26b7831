"""MaPO: SparsePO's equation with frozen weights and no penalty."""

import math
from dataclasses import replace

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

from sparsepo import TDPO1, MaPO


def test_by_hand() -> None:
    """The masked sums of by_hand give the logit -0.65, times beta 0.5."""
    assert MaPO(0.5)(by_hand()).losses.item() == pytest.approx(loss_of(-0.325), abs=1e-12)


def test_limits() -> None:
    record = random_scores([4, 2, 1, 6], seed=3)
    ones = torch.ones_like(record.reward_mask)
    torch.testing.assert_close(
        MaPO(0.3)(at_reference(record)).losses, torch.full((2,), math.log(2), dtype=torch.float64)
    )
    torch.testing.assert_close(
        MaPO(0.2)(replace(record, reward_mask=ones, kl_mask=ones)).losses, TDPO1(0.2)(record).losses
    )
    output = MaPO(0.3)(record)
    torch.testing.assert_close(output.losses, torch.nn.functional.softplus(-margin(output)))
    torch.testing.assert_close(margin(MaPO(0.3)(swapped(record))), -margin(output))


def test_gradients() -> None:
    assert_gradcheck(MaPO(0.3, 0.1, 0.2), random_scores([2, 3, 1, 2]), "policy_logps", "token_kl")
