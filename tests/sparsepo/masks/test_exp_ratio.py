"""TIS-DPO's weights as a producer, from scorers or from the data."""

import math

import pytest
import torch
from producers import weights_by_response

from sparsepo import ExpRatioMask, Features


def test_by_hand_and_from_the_data() -> None:
    """d = 1, -3 | 2, clamped to 1, -0.5 | 1.5, mu 2: e^2, e^-1 | e^-3; the data's stay."""
    features = Features(
        scorer_log_ratios=torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64),
        external_weights=torch.tensor([0.25, 0.0, 7.0]),
    )
    found = weights_by_response(ExpRatioMask(2.0), features, [2, 1])
    assert found[0] == pytest.approx([math.exp(2), math.exp(-1)], abs=1e-12)
    assert found[1] == pytest.approx([math.exp(-3)], abs=1e-12)
    assert weights_by_response(ExpRatioMask(source="external"), features, [2, 1]) == [
        [0.25, 0.0],
        [7.0],
    ]
    agreed = Features(scorer_log_ratios=torch.zeros(3))
    assert weights_by_response(ExpRatioMask(), agreed, [2, 1]) == [[1.0, 1.0], [1.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": 0.0}, "mu=0.0: must be finite and > 0"),
        ({"low": 2.0}, "low=2.0, high=1.5: must be finite with low < high"),
        ({"source": "data"}, "source='data' is not one of scorers, external"),
        ({"high": 1.0, "source": "external"}, "taken as they are; leave the three out"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpRatioMask(**options)


def test_what_is_missing_is_named_with_what_gives_it() -> None:
    with pytest.raises(ValueError, match=r"'scorer_log_ratios'.*from sparsepo.scorer_log_ratios"):
        ExpRatioMask()(Features(), torch.tensor([0, 1]), 1)
    with pytest.raises(ValueError, match="'external_weights'.*from the data"):
        ExpRatioMask(source="external")(Features(), torch.tensor([0, 1]), 1)
