"""A mask of the tokens at which the reference is least decided."""

import math

import pytest
import torch
from producers import INDEX, assert_weighted_loss, by_response, drawn, weights_of

from sparsepo import EntropyMask, Features


def test_by_hand() -> None:
    """Five tokens keep ceil(0.4 * 5) = 2, one of a single one: entropies 1.2 and 0.9, 0.3."""
    features = Features(reference_entropy=torch.tensor([0.1, 1.2, 0.5, 0.9, 0.2, 0.3]))
    found = weights_of(EntropyMask(0.4), features, [5, 1])
    assert found.tolist() == [0, 1, 0, 1, 0, 1]
    tied = Features(reference_entropy=torch.ones(6))
    found = weights_of(EntropyMask(0.4), tied, [5, 1])
    assert found.tolist() == [1, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_the_least_decided_tokens_of_each_response_are_kept(fraction: float) -> None:
    features = drawn("reference_entropy")
    assert features.reference_entropy is not None

    def dense(values: list[float], is_rejected: bool) -> list[float]:
        kept = sorted(values, reverse=True)[: math.ceil(round(fraction * len(values), 6))]
        return [float(value in kept) for value in values]

    found = weights_of(EntropyMask(fraction), features)
    assert torch.equal(found.double(), by_response(features.reference_entropy, dense))
    assert all(float(found[response == INDEX].sum()) >= 1 for response in range(8))
    assert_weighted_loss(found)


def test_a_fraction_out_of_range_and_a_missing_feature_are_named() -> None:
    for fraction in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"fraction={fraction}"):
            EntropyMask(fraction)
    with pytest.raises(ValueError, match=r"'reference_entropy'.*sparsepo.ReferenceModel.features"):
        weights_of(EntropyMask(), Features())
