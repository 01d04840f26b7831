"""SePO's choice of tokens."""

import math

import pytest
import torch
from producers import assert_weighted_loss, by_response, drawn, weights_of

from sparsepo import Features, SelectiveMask


def test_by_hand() -> None:
    """floor(0.5 * 5) = 2 of the chosen with the largest q, 1 of 3 rejected with the smallest."""
    q = torch.tensor([0.1, 1.2, -0.5, 0.9, 0.2, 0.3, -0.7, 0.8])
    found = weights_of(SelectiveMask(0.5), Features(scorer_log_ratios=q), [5, 3])
    assert found.tolist() == [0, 1, 0, 1, 0, 0, 1, 0]
    # 0.29 of 100 are 29, though 0.29 * 100 is 28.999999999999996.
    many = Features(scorer_log_ratios=torch.arange(101.0))
    found = weights_of(SelectiveMask(0.29), many, [100, 1])
    assert found.tolist() == [0] * 71 + [1] * 29 + [0]


@pytest.mark.parametrize("k", [0.3, 0.7, 1.0])
def test_each_side_keeps_its_own_end(k: float) -> None:
    """A response of one token keeps none below k = 1; 0.3 of ten are three, 0.7 are seven."""
    features = drawn("scorer_log_ratios")
    assert features.scorer_log_ratios is not None

    def dense(values: list[float], is_rejected: bool) -> list[float]:
        count = {0.3: {5: 1, 7: 2, 12: 3, 10: 3}, 0.7: {5: 3, 3: 2, 7: 4, 12: 8, 10: 7, 2: 1}}
        number = len(values) if k == 1 else count[k].get(len(values), 0)
        kept = sorted(values, reverse=not is_rejected)[:number]
        return [float(value in kept) for value in values]

    found = weights_of(SelectiveMask(k), features)
    assert torch.equal(found.double(), by_response(features.scorer_log_ratios, dense))
    assert_weighted_loss(found)


def test_a_fraction_out_of_range_and_a_missing_scorer_are_named() -> None:
    for k in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"k={k}"):
            SelectiveMask(k)
    with pytest.raises(ValueError, match=r"'scorer_log_ratios'.*scorer_logps"):
        weights_of(SelectiveMask(), Features())
