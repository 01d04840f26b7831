"""Saliency mixed with a Gaussian over positions."""

import math

import pytest
import torch
from producers import INDEX, assert_weighted_loss, by_response, drawn, weights_of

from sparsepo import Features, SaliencyMask


def test_by_hand() -> None:
    """Saliency 1, 3 of two tokens: 0.5, 1.5 of the mean. The Gaussian is 1 and 1 there.

    With shares 0.7 and 0.3: 0.35 + 0.3 and 1.05 + 0.3. A token alone weighs 1, saliency 0 too.
    """
    for rejected in (5.0, 0.0):
        features = Features(saliency=torch.tensor([1.0, 3.0, rejected]))
        found = weights_of(SaliencyMask(), features, [2, 1])
        assert found.tolist() == pytest.approx([0.65, 1.35, 1.0])


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_both_parts_of_each_response(share: float) -> None:
    drawn_features = drawn("saliency")
    assert drawn_features.saliency is not None
    saliency = drawn_features.saliency.abs()

    def dense(values: list[float], is_rejected: bool) -> list[float]:
        n = len(values)
        prior = [math.exp(-(((t - (n - 1) / 2) / (n / 4)) ** 2) / 2) for t in range(n)]
        return [
            share * value * n / sum(values) + (1 - share) * weight * n / sum(prior)
            for value, weight in zip(values, prior, strict=True)
        ]

    found = weights_of(SaliencyMask(share), Features(saliency=saliency))
    torch.testing.assert_close(found, by_response(saliency, dense))
    for response in range(8):
        assert float(found[response == INDEX].mean()) == pytest.approx(1)
    assert_weighted_loss(found)


def test_a_share_out_of_range_is_named() -> None:
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"share={share}"):
            SaliencyMask(share)
