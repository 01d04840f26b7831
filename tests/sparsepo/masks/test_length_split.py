"""LD-DPO's weights beyond the shorter response's length."""

import pytest
from producers import weights_by_response

from sparsepo import Features, LengthSplitMask


def test_by_hand_and_without_a_split() -> None:
    """Four tokens against two: the last two weigh alpha, whichever side they are on."""
    lengths = [4, 2, 1, 3, 2, 2]
    assert weights_by_response(LengthSplitMask(0.25), Features(), lengths) == [
        [1.0, 1.0, 0.25, 0.25], [1.0, 1.0], [1.0], [1.0, 0.25, 0.25], [1.0, 1.0], [1.0, 1.0],
    ]  # fmt: skip
    plain = weights_by_response(LengthSplitMask(1.0), Features(), lengths)
    assert plain == [[1.0] * n for n in lengths]
    assert weights_by_response(LengthSplitMask(), Features(), [3, 1])[0] == [1.0, 0.5, 0.5]


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_bad_options_are_named(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha={alpha}: must be in \[0, 1\]"):
        LengthSplitMask(alpha)
