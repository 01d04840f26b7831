"""ODPO: an offset of alpha * log(score difference)."""

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

from sparsepo import DPO, ODPO


def scored(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_by_hand() -> None:
    """Gap e^2: 0.5 * 0.1 - 0.5 * 2 = -0.95."""
    record = by_hand(preference_scores=scored(math.exp(2) + 1, 1.0))
    assert ODPO(0.5, alpha=0.5)(record).losses.item() == pytest.approx(loss_of(-0.95), abs=1e-12)


def test_limits() -> None:
    """At the reference: -log sigmoid(-alpha log gap), gap 0.8. A gap of 1 or alpha 0 is DPO."""
    record = random_scores([3, 5, 2, 2])
    expected = torch.full((2,), loss_of(-0.7 * math.log(0.8)), dtype=torch.float64)
    torch.testing.assert_close(ODPO(0.3, 0.7)(at_reference(record)).losses, expected)
    torch.testing.assert_close(ODPO(0.3, 0.0)(record).losses, DPO(0.3)(record).losses)
    output = ODPO(0.3, 0.7)(record)
    torch.testing.assert_close(
        output.losses, torch.nn.functional.softplus(-(margin(output) - 0.7 * math.log(0.8)))
    )
    torch.testing.assert_close(margin(ODPO(0.3)(swapped(record))), -margin(output))


@pytest.mark.parametrize("values", [(0.2, 0.5), (0.5, 0.5), (0.5, 0.495), (math.nan, 0.1)])
def test_scores_that_are_not_ordered_are_refused(values: tuple[float, float]) -> None:
    with pytest.raises(
        ValueError, match=r"preference_scores of pair 0: chosen .*, rejected .*min_gap=0.01"
    ):
        ODPO(min_gap=0.01)(by_hand(preference_scores=scored(*values)))


def test_missing_scores_say_where_they_come_from() -> None:
    with pytest.raises(ValueError, match="preference_scores is missing.*comes from the data"):
        ODPO()(by_hand())


def test_gradients() -> None:
    assert_gradcheck(ODPO(0.3, 0.5, 0.01, 0.1, 0.2), random_scores([2, 3, 1, 2]), "policy_logps")
