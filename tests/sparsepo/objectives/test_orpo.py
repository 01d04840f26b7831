"""ORPO: by_hand's mean log-probabilities are -1.55 (chosen) and -0.7 (rejected)."""

import math
from dataclasses import replace

import pytest
import torch
from pair_records import assert_gradcheck, by_hand, loss_of, margin, random_scores, swapped

from sparsepo import ORPO
from sparsepo.objectives.orpo import log1mexp


def log_odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


def test_by_hand() -> None:
    """beta 0.5; 1.55 nats of NLL; odds 0.21225 / 0.78775 and 0.49659 / 0.50341."""
    output = ORPO(0.5)(by_hand())
    ratio = log_odds(-1.55) - log_odds(-0.7)
    assert ratio == pytest.approx(math.log(0.212248 / 0.787752 / (0.496585 / 0.503415)), abs=1e-5)
    assert output.losses.item() == pytest.approx(1.55 + 0.5 * loss_of(ratio), abs=1e-12)
    assert margin(output).item() == pytest.approx(0.5 * -0.85, abs=1e-12)
    assert ORPO(0.5, nll_coef=0)(by_hand()).losses.item() == pytest.approx(
        0.5 * loss_of(ratio), abs=1e-12
    )


def test_limits() -> None:
    """No reference is read; exchanging the responses negates the margin."""
    record = replace(random_scores([3, 5, 2, 2]), reference_logps=None, token_kl=None)
    output = ORPO(0.3)(record)
    torch.testing.assert_close(margin(ORPO(0.3)(swapped(record))), -margin(output))
    same = replace(record, policy_logps=torch.full_like(record.policy_logps, -0.4))
    torch.testing.assert_close(
        ORPO(0.3, nll_coef=0)(same).losses,
        torch.full((2,), 0.3 * math.log(2), dtype=torch.float64),
    )
    assert ORPO.requires == frozenset()


def test_gradients() -> None:
    assert_gradcheck(ORPO(0.7, 0.5), random_scores([2, 3, 1, 2]), "policy_logps")


def test_odds_lose_no_digits_and_certainty_has_a_gradient_too() -> None:
    """In float32 against float64's own logarithm; at log-probability 0 all stays finite."""
    values = -torch.logspace(-7, 2, 200, dtype=torch.float64)
    torch.testing.assert_close(
        log1mexp(values.float()).double(), (-torch.expm1(values.float().double())).log(), atol=1e-6,
        rtol=1e-6,
    )  # fmt: skip
    record = replace(by_hand(), policy_logps=torch.zeros(3, requires_grad=True))
    losses = ORPO()(record).losses
    losses.sum().backward()
    assert losses.isfinite().all()
    assert record.policy_logps.grad is not None
    assert record.policy_logps.grad.isfinite().all()
