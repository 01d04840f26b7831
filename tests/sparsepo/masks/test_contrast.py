"""Weights from two contrastive scorers."""

import math

import pytest
import torch
from producers import INDEX, assert_weighted_loss, drawn, weights_of

from sparsepo import ContrastMask, Features


def test_by_hand() -> None:
    """Chosen p+ = 1/4, 1/2; rejected 1 - p- = 1 - 0.9; 1e-8 below certainty stays 1e-8.

    A log-probability that rounding left above 0 is certainty: no weight is negative.
    """
    features = Features(
        positive_logps=torch.tensor([0.25, 0.5, 0.7, 0.3]).log(),
        negative_logps=torch.tensor([0.1, 0.1, 0.9, 1.0]).log() - 1e-8,
    )
    found = weights_of(ContrastMask(), features, [2, 2])
    assert found.tolist() == pytest.approx([0.25, 0.5, 0.1, 1e-8], rel=1e-6)
    above = torch.tensor([-1.0, 1e-7])
    found = weights_of(ContrastMask(), Features(positive_logps=above, negative_logps=above), [1, 1])
    assert found[0].item() == pytest.approx(math.exp(-1))
    assert found[1].item() == 0


def test_each_side_reads_its_own_scorer() -> None:
    good, bad = (drawn(name, seed=seed) for seed, name in enumerate(("positive_logps",) * 2))
    logps = [-value.positive_logps.abs() for value in (good, bad)]
    found = weights_of(ContrastMask(), Features(positive_logps=logps[0], negative_logps=logps[1]))
    expected = [
        1 - math.exp(bad) if int(index) % 2 else math.exp(good)
        for index, good, bad in zip(INDEX, logps[0].tolist(), logps[1].tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert_weighted_loss(found)


def test_a_missing_scorer_is_named() -> None:
    with pytest.raises(ValueError, match=r"'negative_logps'.*scorer_logps"):
        weights_of(ContrastMask(), drawn("positive_logps"))
