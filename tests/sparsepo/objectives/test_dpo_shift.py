"""DPO-Shift: by_hand's R are 0.4 (chosen) and 0.3 (rejected)."""

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

from sparsepo import DPO, DPOShift


def test_by_hand() -> None:
    """beta 0.5, lambda 0.5 to 1: 0.5 * (0.4 - 0.15), then 0.5 * (0.4 - 0.225), then DPO."""
    objective = DPOShift(0.5)
    for progress, logit in ((None, 0.125), (0.5, 0.0875), (1.0, 0.05)):
        if progress is not None:
            objective.advance(progress)
        output = objective(by_hand())
        assert output.losses.item() == pytest.approx(loss_of(logit), abs=1e-12)
        assert margin(output).item() == pytest.approx(0.05, abs=1e-12)
        total, count = output.metrics["weights/rejected"]
        assert float(total / count) == pytest.approx(0.5 + 0.5 * (progress or 0))


def test_limits() -> None:
    """lambda 1 is DPO at every step, a fixed one stays; ln 2 at the reference."""
    record = random_scores([3, 5, 2, 2])
    same, fixed = DPOShift(0.3, 1.0, 1.0), DPOShift(0.3, 0.7, 0.7)
    before = fixed(record).losses
    for objective in (same, fixed):
        objective.advance(0.4)
    torch.testing.assert_close(same(record).losses, DPO(0.3)(record).losses)
    torch.testing.assert_close(fixed(record).losses, before)
    assert not torch.allclose(before, DPO(0.3)(record).losses)
    torch.testing.assert_close(
        fixed(at_reference(record)).losses, torch.full((2,), math.log(2), dtype=torch.float64)
    )
    torch.testing.assert_close(margin(fixed(swapped(record))), -margin(fixed(record)))


def test_gradients() -> None:
    assert_gradcheck(DPOShift(0.7, 0.4, 0.9, 0.1, 0.2), random_scores([2, 3, 1, 2]), "policy_logps")


def test_a_weight_out_of_range_is_named() -> None:
    for option in ("lambda_start", "lambda_end"):
        for value in (0.0, 1.5, math.nan):
            with pytest.raises(ValueError, match=rf"{option}={value}: must be in \(0, 1\]"):
                DPOShift(**{option: value})
