"""SparsePO: U and K weigh log ratios and KLs."""

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

from sparsepo import DPO, TDPO1, SparsePO


def test_by_hand() -> None:
    """U_chosen = 0.5 - 0.05 = 0.45, K_chosen = 0.1, U_rejected = 0.6, K_rejected = 0.6: logit (0.45
    - 0.6) - (0.6 - 0.1) = -0.65.

    L1: reward mask sums to 3.5, KL mask to 1.5. Separate masks: 0.1 * 3.5 + 0.2 * 1.5 = 0.65; one
    shared mask: half.
    """
    plain = SparsePO(0.5)(by_hand())
    assert plain.losses.item() == pytest.approx(loss_of(-0.325), abs=1e-12)
    assert margin(plain).item() == pytest.approx(-0.325, abs=1e-12)
    penalised = SparsePO(0.5, l1_reward=0.1, l1_kl=0.2)
    assert penalised(by_hand()).losses.item() == pytest.approx(loss_of(-0.325) + 0.65, abs=1e-12)
    assert penalised(by_hand(l1_shares=(0.5, 0.5))).losses.item() == pytest.approx(
        loss_of(-0.325) + 0.325, abs=1e-12
    )
    assert penalised(by_hand(l1_shares=(1.0, 0.0))).losses.item() == pytest.approx(
        loss_of(-0.325) + 0.35, abs=1e-12
    )


def test_limits() -> None:
    """All-one masks are TDPO v1; an all-one reward mask with a zero KL mask is DPO."""
    record = random_scores([4, 2, 1, 6], seed=3)
    torch.testing.assert_close(
        SparsePO(0.3)(at_reference(record)).losses,
        torch.full((2,), math.log(2), dtype=torch.float64),
    )
    ones, zeros = torch.ones_like(record.reward_mask), torch.zeros_like(record.reward_mask)
    torch.testing.assert_close(
        SparsePO(0.2)(replace(record, reward_mask=ones, kl_mask=ones)).losses,
        TDPO1(0.2)(record).losses,
    )
    torch.testing.assert_close(
        SparsePO(0.2)(replace(record, reward_mask=ones, kl_mask=zeros)).losses,
        DPO(0.2)(record).losses,
    )
    assert not torch.allclose(
        SparsePO(0.2)(record).losses, DPO(0.2)(record).losses, atol=1e-3
    )  # negative control
    output = SparsePO(0.3)(record)
    torch.testing.assert_close(output.losses, torch.nn.functional.softplus(-margin(output)))
    torch.testing.assert_close(margin(SparsePO(0.3)(swapped(record))), -margin(output))


def test_gradients() -> None:
    record = random_scores([2, 3, 1, 2])
    record = replace(record, reward_mask=record.reward_mask + 0.1, kl_mask=record.kl_mask + 0.1)
    assert_gradcheck(
        SparsePO(0.3, 0.05, 0.02, 0.1, 0.2),
        record,
        "policy_logps",
        "token_kl",
        "reward_mask",
        "kl_mask",
    )


def test_mask_statistics_by_hand() -> None:
    """Reward weights 1, 0.5 | 2: mean 3.5 / 3, largest (1 + 2) / 2, spread (0.5 + 0) / 2, L1 (1.5 +
    2) / 2, beta * mean.

    KL weights 0.5, 0 | 1: one zero of three tokens. Correlation with the KLs 0.2, 0.4 is -1 in the
    chosen response; the rejected one has a single token and does not count.
    """
    metrics = {
        name: float(total / count)
        for name, (total, count) in SparsePO(0.5)(by_hand()).metrics.items()
        if count > 0
    }
    assert metrics["masks/reward_mean"] == pytest.approx(3.5 / 3)
    assert metrics["masks/effective_beta"] == pytest.approx(0.5 * 3.5 / 3)
    assert metrics["masks/reward_max"] == pytest.approx(1.5)
    assert metrics["masks/reward_spread"] == pytest.approx(0.25)
    assert metrics["masks/reward_l1"] == pytest.approx(1.75)
    assert metrics["masks/reward_zero_fraction"] == 0
    assert metrics["masks/kl_zero_fraction"] == pytest.approx(1 / 3)
    assert metrics["masks/reward_kl_correlation"] == pytest.approx(-1)
    assert metrics["kl/reference_policy"] == pytest.approx(0.6)
    assert metrics["kl/reference_policy_per_token"] == pytest.approx(0.4)


def test_correlation_is_numpys_mean_over_responses() -> None:
    import numpy as np

    record = random_scores([5, 7, 4, 9], seed=8)
    total, count = SparsePO()(record).metrics["masks/kl_kl_correlation"]
    parts = [
        np.corrcoef(
            record.kl_mask[record.response_index == i], record.token_kl[record.response_index == i]
        )[0, 1]
        for i in range(4)
    ]
    assert float(count) == 4
    assert float(total) == pytest.approx(sum(parts), abs=1e-9)
