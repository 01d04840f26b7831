"""DPOP: DPO with a penalty for falling below the reference on chosen responses."""

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

from sparsepo import DPO, DPOP


def test_by_hand() -> None:
    """R_chosen = 0.4 > 0: DPO's logit.

    With the chosen log ratios lowered by 1 each, R_chosen = -1.6: 0.5 * (-1.6 - 0.3 - 3 * 1.6) =
    -3.35.
    """
    assert DPOP(0.5, 3.0)(by_hand()).losses.item() == pytest.approx(loss_of(0.05), abs=1e-12)
    lowered = by_hand(policy_logps=torch.tensor([-2.0, -3.1, -0.7], dtype=torch.float64))
    output = DPOP(0.5, 3.0)(lowered)
    assert output.losses.item() == pytest.approx(loss_of(-3.35), abs=1e-12)
    assert output.chosen_rewards.item() == pytest.approx(0.5 * (-1.6 - 4.8), abs=1e-12)


def test_the_loss_grows_when_the_policy_falls_below_the_reference_on_chosen() -> None:
    """Both responses fall alike: DPO does not notice, DPOP must."""
    record = random_scores([3, 3], seed=1)
    base = at_reference(record)
    fallen = replace(base, policy_logps=base.policy_logps - 0.1)
    assert DPOP()(fallen).losses.item() > DPOP()(base).losses.item() + 1
    torch.testing.assert_close(DPO()(fallen).losses, DPO()(base).losses)


def test_limits() -> None:
    record = random_scores([3, 5, 2, 2])
    torch.testing.assert_close(
        DPOP(0.3)(at_reference(record)).losses, torch.full((2,), math.log(2), dtype=torch.float64)
    )
    torch.testing.assert_close(DPOP(0.3, 0.0)(record).losses, DPO(0.3)(record).losses)
    output = DPOP(0.3)(record)
    torch.testing.assert_close(output.losses, torch.nn.functional.softplus(-margin(output)))
    # Exchanging does not negate the margin: the penalty follows whichever response is called
    # chosen.
    sums = record.per_response(record.log_ratios())
    difference = -0.3 * 50 * (-sums).clamp(min=0).sum(1)
    torch.testing.assert_close(margin(DPOP(0.3)(swapped(record))) + margin(output), difference)
    assert difference.abs().max() > 1


def test_gradients() -> None:
    assert_gradcheck(DPOP(0.3, 5.0, 0.1, 0.2), random_scores([2, 3, 1, 2]), "policy_logps")
