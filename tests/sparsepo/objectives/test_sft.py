"""SFT on chosen responses."""

import pytest
import torch

from sparsepo import SFT, TokenScores


def test_it_is_the_mean_nll_per_token_of_chosen() -> None:
    """Chosen logps -1.0, -2.1: 1.55 per token."""
    single = TokenScores(
        torch.tensor([-1.0, -2.1]),
        None,
        None,
        torch.ones(2),
        torch.ones(2),
        torch.tensor([0, 0]),
        1,
    )
    assert SFT()(single).losses.item() == pytest.approx(1.55, abs=1e-6)
