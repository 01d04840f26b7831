"""D2PO's weights fall with a token's place."""

import pytest
from producers import weights_by_response

from sparsepo import Features, PositionDecayMask


def test_by_hand_and_without_decay() -> None:
    """0.5, 0.25, 0.125; a second response begins anew. g = 1 weighs all alike."""
    found = weights_by_response(PositionDecayMask(0.5), Features(), [3, 1, 1, 2])
    expected = [[0.5, 0.25, 0.125], [0.5], [0.5], [0.5, 0.25]]
    assert [pytest.approx(part) for part in expected] == found
    assert weights_by_response(PositionDecayMask(1.0), Features(), [3, 1]) == [[1.0] * 3, [1.0]]
    long = weights_by_response(PositionDecayMask(), Features(), [500, 1])[0]
    assert long == pytest.approx([0.98**t for t in range(1, 501)], rel=1e-4)


@pytest.mark.parametrize("g", [0.0, 1.01, float("nan")])
def test_bad_options_are_named(g: float) -> None:
    with pytest.raises(ValueError, match=rf"g={g}: must be in \(0, 1\]"):
        PositionDecayMask(g)
