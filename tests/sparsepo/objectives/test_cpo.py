"""CPO: by_hand's log-probabilities sum to -3.1 (chosen, two tokens) and -0.7 (rejected)."""

from dataclasses import replace

import pytest
import torch
from pair_records import assert_gradcheck, at_reference, by_hand, loss_of, margin, random_scores

from sparsepo import CPO, DPO


def test_by_hand() -> None:
    """beta 0.5: 0.5 * (-3.1 + 0.7) = -1.2, and 1.55 nats of NLL."""
    output = CPO(0.5)(by_hand())
    assert output.losses.item() == pytest.approx(loss_of(-1.2) + 1.55, abs=1e-12)
    assert margin(output).item() == pytest.approx(-1.2, abs=1e-12)
    smoothed = CPO(0.5, label_smoothing=0.2, nll_coef=0)(by_hand()).losses.item()
    assert smoothed == pytest.approx(0.8 * loss_of(-1.2) + 0.2 * loss_of(1.2), abs=1e-12)


def test_limits() -> None:
    """Without NLL it is DPO whose reference finds every token certain."""
    record = random_scores([3, 5, 2, 2])
    certain = replace(record, reference_logps=torch.zeros_like(record.policy_logps))
    found = CPO(0.3, nll_coef=0)(replace(record, reference_logps=None, token_kl=None))
    torch.testing.assert_close(found.losses, DPO(0.3)(certain).losses)
    torch.testing.assert_close(margin(found), margin(DPO(0.3)(certain)))
    assert CPO.requires == frozenset()
    assert not torch.allclose(found.losses, DPO(0.3)(at_reference(record)).losses)


def test_gradients() -> None:
    assert_gradcheck(CPO(0.7, 0.1, 0.5), random_scores([2, 3, 1, 2]), "policy_logps")
