"""TIS-DPO: token weights from two scorers."""

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

from sparsepo import DPO, TISDPO


def test_by_hand() -> None:
    """d = 1, -3 | 2, clamped to 1, -0.5 | 1.5, mu 2: weights e^2, e^-1 | e^-3. beta 0.5: 0.5 *
    (0.5 e^2 - 0.1 e^-1 - 0.3 e^-3).
    """
    record = by_hand(scorer_log_ratios=torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64))
    expected = 0.5 * (0.5 * math.exp(2) - 0.1 * math.exp(-1) - 0.3 * math.exp(-3))
    output = TISDPO(0.5, mu=2.0)(record)
    assert output.losses.item() == pytest.approx(loss_of(expected), abs=1e-12)
    assert margin(output).item() == pytest.approx(expected, abs=1e-12)


def test_limits() -> None:
    """Scorers that agree weigh every token 1, which is DPO.

    Exchanging the responses inverts the weights, not only the sign.
    """
    record = random_scores([3, 5, 2, 2])
    torch.testing.assert_close(
        TISDPO(0.3)(at_reference(record)).losses, torch.full((2,), math.log(2), dtype=torch.float64)
    )
    agreed = replace(record, scorer_log_ratios=torch.zeros_like(record.policy_logps))
    torch.testing.assert_close(TISDPO(0.3)(agreed).losses, DPO(0.3)(record).losses)
    output = TISDPO(0.3)(record)
    torch.testing.assert_close(output.losses, torch.nn.functional.softplus(-margin(output)))
    other = replace(swapped(record), scorer_log_ratios=-swapped(record).scorer_log_ratios)
    torch.testing.assert_close(
        margin(TISDPO(0.3, low=-1.0, high=1.0)(other)),
        -margin(TISDPO(0.3, low=-1.0, high=1.0)(record)),
    )
    assert not torch.allclose(margin(TISDPO(0.3)(swapped(record))), -margin(output), atol=1e-2)


def test_gradients() -> None:
    """The scorers get none, even if they could."""
    record = random_scores([2, 3, 1, 2])
    assert_gradcheck(TISDPO(0.3, 0.8, -0.5, 1.5, 0.1, 0.2), record, "policy_logps")
    with pytest.raises(AssertionError):  # no gradient at all
        gradient_of(
            TISDPO(0.3),
            replace(record, policy_logps=record.policy_logps.clone().requires_grad_()),
            "scorer_log_ratios",
        )


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"low=2, high=1.5: must be finite with low < high"):
        TISDPO(low=2)
    with pytest.raises(
        ValueError, match="scorer_log_ratios is missing.*sparsepo.scorer_log_ratios"
    ):
        TISDPO()(by_hand())
