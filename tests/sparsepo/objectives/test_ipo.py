"""IPO: by_hand's mean log ratios are 0.2 (two chosen tokens) and 0.3 (one rejected)."""

import pytest
import torch
from pair_records import assert_gradcheck, at_reference, by_hand, margin, random_scores, swapped

from sparsepo import IPO


def test_by_hand() -> None:
    """beta 0.5, 1 / (2 beta) = 1: averaged h = -0.1, (-1.1)^2 = 1.21; summed h = 0.1, (-0.9)^2 =
    0.81.
    """
    assert IPO(0.5)(by_hand()).losses.item() == pytest.approx(1.21, abs=1e-12)
    summed = IPO(0.5, length_average=False)(by_hand())
    assert summed.losses.item() == pytest.approx(0.81, abs=1e-12)
    assert margin(summed).item() == pytest.approx(0.5 * 0.1, abs=1e-12)


@pytest.mark.parametrize("length_average", [True, False])
def test_limits(length_average: bool) -> None:
    """At the reference h = 0 and the loss is 1 / (4 beta^2): 25 / 9 for beta 0.3."""
    objective, record = IPO(0.3, length_average), random_scores([3, 5, 2, 2])
    torch.testing.assert_close(
        objective(at_reference(record)).losses, torch.full((2,), 25 / 9, dtype=torch.float64)
    )
    torch.testing.assert_close(margin(objective(swapped(record))), -margin(objective(record)))
    # (h - c)^2 - (-h - c)^2 = -4 h c: exchanging the responses turns h around.
    sums = record.per_response(record.log_ratios())
    values = sums / torch.tensor([[3, 5], [2, 2]]) if length_average else sums
    h = values[:, 0] - values[:, 1]
    torch.testing.assert_close(
        objective(record).losses - objective(swapped(record)).losses, -4 * h / 0.6
    )


def test_gradients() -> None:
    for length_average in (True, False):
        assert_gradcheck(
            IPO(0.3, length_average, nll_coef=0.1), random_scores([2, 3, 1, 2]), "policy_logps"
        )
