import pytest
import torch

from sparsepo import TokenScores
from sparsepo.objectives import OBJECTIVES


def test_by_hand() -> None:
    """beta 0.5 * (0.4 - 0.1) = 0.15: loss 0.85."""
    mask = torch.ones(1, 2, 1, dtype=torch.bool)
    scores = TokenScores.from_padded(mask, torch.tensor([[[0.4], [0.1]]]), torch.zeros(1, 2, 1))
    assert OBJECTIVES["hinge"](beta=0.5)(scores).losses.item() == pytest.approx(0.85)
