"""SimPO: by_hand's mean log-probabilities are -1.55 (chosen) and -0.7 (rejected)."""

from dataclasses import replace

import pytest
import torch
from pair_records import assert_gradcheck, by_hand, loss_of, margin, random_scores, swapped

from sparsepo import SimPO


def test_by_hand() -> None:
    """beta 2, gamma 2 * 0.25 = 0.5: 2 * (-1.55 + 0.7) - 0.5 = -2.2."""
    output = SimPO()(by_hand())
    assert output.losses.item() == pytest.approx(loss_of(-2.2), abs=1e-12)
    assert margin(output).item() == pytest.approx(-1.7, abs=1e-12)


def test_limits() -> None:
    """No reference is read; the margin is the logit + gamma; exchanging the responses negates
    it.
    """
    record = replace(random_scores([3, 5, 2, 2]), reference_logps=None, token_kl=None)
    output = SimPO(2.0, 0.4)(record)
    torch.testing.assert_close(output.losses, torch.nn.functional.softplus(-(margin(output) - 0.8)))
    torch.testing.assert_close(margin(SimPO(2.0, 0.4)(swapped(record))), -margin(output))
    assert SimPO.requires == frozenset()


def test_gradients() -> None:
    assert_gradcheck(SimPO(1.5, 0.3, 0.1, 0.2), random_scores([2, 3, 1, 2]), "policy_logps")
