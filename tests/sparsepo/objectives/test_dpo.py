"""DPO: log ratios of by_hand sum to 0.4 (chosen) and 0.3 (rejected)."""

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

from sparsepo import DPO


def test_by_hand() -> None:
    """beta 0.5: logit 0.5 * 0.1 = 0.05; rewards 0.2 and 0.15.

    Smoothing 0.2: 0.8 * loss(0.05) + 0.2 * loss(-0.05).
    """
    output = DPO(0.5)(by_hand())
    assert output.losses.item() == pytest.approx(loss_of(0.05), abs=1e-12)
    assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == pytest.approx(
        (0.2, 0.15), abs=1e-12
    )
    smoothed = DPO(0.5, label_smoothing=0.2)(by_hand())
    assert smoothed.losses.item() == pytest.approx(
        0.8 * loss_of(0.05) + 0.2 * loss_of(-0.05), abs=1e-12
    )


def test_nll_term_is_the_chosen_responses_mean() -> None:
    """Chosen logps -1.0, -2.1: 1.55 nats per token, times 0.2."""
    assert DPO(0.5, nll_coef=0.2)(by_hand()).losses.item() == pytest.approx(
        loss_of(0.05) + 0.31, abs=1e-12
    )
    assert DPO(0.5)(by_hand()).metrics["nll/chosen"][0].item() == pytest.approx(1.55, abs=1e-12)


def test_limits() -> None:
    record = random_scores([3, 5, 2, 2])
    torch.testing.assert_close(
        DPO(0.3)(at_reference(record)).losses, torch.full((2,), math.log(2), dtype=torch.float64)
    )
    output = DPO(0.3)(record)
    torch.testing.assert_close(output.losses, torch.nn.functional.softplus(-margin(output)))
    torch.testing.assert_close(margin(DPO(0.3)(swapped(record))), -margin(output))


def test_gradients() -> None:
    assert_gradcheck(DPO(0.3, 0.1, 0.5), random_scores([2, 3, 1, 2]), "policy_logps")
