"""AlphaPO: by_hand's mean log-probabilities are -1.55 (chosen) and -0.7 (rejected)."""

import math
from dataclasses import replace

import pytest
import torch
from pair_records import assert_gradcheck, by_hand, loss_of, margin, random_scores, swapped

from sparsepo import AlphaPO, SimPO


def test_by_hand() -> None:
    """beta 2, gamma 0.3, alpha 0.5: p is 0.21225 and 0.49659, r (1 - p^-0.5) / 0.5."""
    chosen, rejected = ((1 - math.exp(-x) ** -0.5) / 0.5 for x in (1.55, 0.7))
    output = AlphaPO(2.0, 0.3, 0.5)(by_hand())
    assert output.losses.item() == pytest.approx(loss_of(2 * (chosen - rejected) - 0.3), abs=1e-12)
    assert output.chosen_rewards.item() == pytest.approx(2 * chosen, abs=1e-12)
    assert margin(output).item() == pytest.approx(2 * (chosen - rejected), abs=1e-12)


def test_limits() -> None:
    """alpha 0, and near it, is SimPO; exchanging the responses negates the margin."""
    record = replace(random_scores([3, 5, 2, 2]), reference_logps=None, token_kl=None)
    simpo = SimPO(2.0, 0.4)(record)
    for alpha, within in ((0.0, 1e-12), (1e-8, 1e-6), (-1e-8, 1e-6)):
        near = AlphaPO(2.0, 0.8, alpha)(record)
        torch.testing.assert_close(near.losses, simpo.losses, atol=within, rtol=0)
    output = AlphaPO()(record)
    torch.testing.assert_close(margin(AlphaPO()(swapped(record))), -margin(output))
    torch.testing.assert_close(output.losses, torch.nn.functional.softplus(0.1 - margin(output)))
    assert AlphaPO.requires == frozenset()


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.25])
def test_gradients(alpha: float) -> None:
    record = random_scores([2, 3, 1, 2])
    assert_gradcheck(AlphaPO(1.5, 0.3, alpha, 0.1, 0.2), record, "policy_logps")


def test_a_shape_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match="alpha=nan: must be finite"):
        AlphaPO(alpha=math.nan)
