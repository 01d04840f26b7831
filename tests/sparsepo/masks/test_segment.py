"""Segments of a response, and whether they agree with its side."""

import math

import pytest
import torch
from producers import assert_weighted_loss, by_response, drawn, weights_of

from sparsepo import Features, SegmentMask, UniformMask
from sparsepo.masks.declarations import SEGMENT_VALUES


def test_by_hand() -> None:
    """theta 1. Chosen 0.5, 0.9 | -1, -0.2, 0.7 | 3: sums 1.4, -0.5, 3. Rejected 0.1, -0.2: -0.1.

    A step of 0.9 does not cut, nor does the border between the responses join.
    """
    q = torch.tensor([0.5, 0.9, -1.0, -0.2, 0.7, 3.0, 0.1, -0.2]).double()
    lengths = [6, 2]
    found = weights_of(SegmentMask(), Features(scorer_log_ratios=q), lengths)
    assert found.tolist() == [1, 1, 0, 0, 0, 1, 1, 1]
    one = weights_of(SegmentMask(9.0), Features(scorer_log_ratios=q), lengths)
    assert one.tolist() == [1] * 8
    none = weights_of(SegmentMask(9.0), Features(scorer_log_ratios=-q), lengths)
    assert none.tolist() == [0] * 8


@pytest.mark.parametrize("theta", [0.0, 0.8, 2.0])
def test_segments_of_each_response(theta: float) -> None:
    features = drawn("scorer_log_ratios")
    assert features.scorer_log_ratios is not None

    def dense(values: list[float], is_rejected: bool) -> list[float]:
        segments: list[list[float]] = []
        for place, value in enumerate(values):
            if place == 0 or abs(value - values[place - 1]) > theta:
                segments.append([])
            segments[-1].append(value)
        return [
            float((math.fsum(one) < 0) if is_rejected else (math.fsum(one) > 0))
            for one in segments
            for _ in one
        ]

    found = weights_of(SegmentMask(theta), features)
    assert torch.equal(found.double(), by_response(features.scorer_log_ratios, dense))
    assert 0 < float(found.mean()) < 1
    assert_weighted_loss(found)


def test_every_value_makes_the_segments_of_what_it_stands_for() -> None:
    """The same numbers as a log ratio, as 2 D - 1, as policy minus reference and from the data."""
    q = torch.tensor([0.5, 0.75, -0.5, -0.25, 0.25, 0.75, 0.25, -0.5]).double()
    lengths = [6, 2]
    index = torch.repeat_interleave(torch.arange(2), torch.tensor(lengths))
    zeros = torch.zeros(8).double()
    # theta 0.4: 0.5 0.75 | -0.5 -0.25 | 0.25 | 0.75 and, rejected, 0.25 | -0.5.
    named = {
        "ratio": Features(scorer_log_ratios=q),
        "discriminator": Features(discriminator_values=(q + 1) / 2),
        "policy_ratio": Features(policy_logps=q - 3, reference_logps=zeros - 3),
        "external": Features(external_weights=q),
    }
    assert set(named) == set(SEGMENT_VALUES)
    for value, features in named.items():
        mask = SegmentMask(0.4, value)
        assert weights_of(mask, features, lengths).tolist() == [1, 1, 0, 0, 1, 1, 0, 1], value
        found = mask.segments(features, index)
        assert found.tolist() == [0, 0, 1, 1, 2, 3, 4, 5]
        read = {name for name in vars(features) if getattr(features, name) is not None}
        assert mask.requires == read
    with pytest.raises(ValueError, match="value='entropy' is not one of ratio, discriminator"):
        SegmentMask(value="entropy")  # type: ignore[arg-type]
    assert UniformMask().segments(named["ratio"], index) is None


def test_a_threshold_out_of_range_is_named() -> None:
    for theta in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"theta={theta}"):
            SegmentMask(theta)
