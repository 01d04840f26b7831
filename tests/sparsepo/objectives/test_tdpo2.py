"""TDPO v2: the chosen response's KL carries no gradient."""

import math
from dataclasses import replace

import pytest
import torch
from pair_records import (
    assert_gradcheck,
    at_reference,
    by_hand,
    gradient_of,
    loss_of,
    margin,
    random_scores,
    swapped,
)

from sparsepo import DPO, TDPO1, TDPO2


def test_by_hand() -> None:
    """With KLs 0.2, 0.4 and 1.6: beta 0.5 * [0.1 - 0.5 * (1.6 - 0.6)] = -0.2; rewards 0.5 * (0.4
    + 0.3), 0.5 * (0.3 + 0.8).
    """
    record = by_hand(token_kl=torch.tensor([0.2, 0.4, 1.6], dtype=torch.float64))
    output = TDPO2(0.5)(record)
    assert output.losses.item() == pytest.approx(loss_of(-0.2), abs=1e-12)
    assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == pytest.approx(
        (0.35, 0.55), abs=1e-12
    )


def test_limits() -> None:
    record = random_scores([3, 5, 2, 2])
    torch.testing.assert_close(
        TDPO2(0.3)(at_reference(record)).losses, torch.full((2,), math.log(2), dtype=torch.float64)
    )
    torch.testing.assert_close(TDPO2(0.3, 0.0)(record).losses, DPO(0.3)(record).losses)
    torch.testing.assert_close(TDPO2(0.3, 1.0)(record).losses, TDPO1(0.3)(record).losses)
    output = TDPO2(0.3, 0.7)(record)
    torch.testing.assert_close(output.losses, torch.nn.functional.softplus(-margin(output)))
    torch.testing.assert_close(margin(TDPO2(0.3, 0.7)(swapped(record))), -margin(output))


def test_gradients() -> None:
    """The KL's gradient is TDPO v1's on rejected tokens and zero on chosen ones; the policy's is
    checked numerically.
    """
    record = random_scores([2, 3, 1, 2])
    assert_gradcheck(TDPO2(0.3, 0.7, 0.1, 0.2), record, "policy_logps")
    found, full = (
        gradient_of(TDPO2(0.3, 1.0), record, "token_kl"),
        gradient_of(TDPO1(0.3), record, "token_kl"),
    )
    is_rejected = record.response_index % 2 == 1
    torch.testing.assert_close(found, torch.where(is_rejected, full, 0.0))
    assert full[~is_rejected].abs().min() > 0
    # Numerically: with the chosen KL held fixed, the rejected KL's gradient is the function's own.
    chosen_kl = replace(record, token_kl=record.token_kl.clone())

    def losses(kl: torch.Tensor) -> torch.Tensor:
        return TDPO2(0.3, 0.7)(
            replace(chosen_kl, token_kl=torch.where(is_rejected, kl, record.token_kl))
        ).losses

    assert torch.autograd.gradcheck(losses, [record.token_kl.clone().requires_grad_()])
