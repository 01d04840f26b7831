"""Checks that are read later: what a training loop gives a device waits for none of its values."""

from dataclasses import replace

import pytest
import torch
from pair_records import PLAIN, TOKEN_FIELDS, random_scores

from sparsepo import OBJECTIVES, TokenScores
from sparsepo.checks import checks_read_later
from sparsepo.masks.frozen import keep_heaviest

# beta-DPO reads the whole batch's values between its passes, on the CPU.
READING_NOTHING = [name for name in PLAIN if name != "beta_dpo"]
PER_PAIR = ("prompt_embedding", "preference_scores", "response_index")


def on_meta(record: TokenScores) -> TokenScores:
    """A record of tensors without values: whoever looks at one fails."""
    moved = {name: getattr(record, name).to("meta") for name in (*TOKEN_FIELDS, *PER_PAIR)}
    return replace(record, **moved)


@pytest.mark.parametrize("name", READING_NOTHING)
def test_no_objective_looks_at_a_value(name: str) -> None:
    """The negative control is a call whose checks are read at once."""
    objective, record = OBJECTIVES[name](), on_meta(random_scores([3, 5, 2, 2]))
    with checks_read_later() as checks:
        output = objective(record)
    assert output.losses.shape == (2,) and checks
    assert all(value.ndim == 0 for pair in output.metrics.values() for value in pair)
    with pytest.raises((RuntimeError, NotImplementedError)):
        objective(record)


def test_no_mask_by_weight_looks_at_a_value() -> None:
    """And it keeps three of 15 tokens for a fifth of them, however floats round."""
    index = torch.arange(2).repeat_interleave(15)
    weights = torch.rand(30, generator=torch.Generator().manual_seed(0))
    assert keep_heaviest(weights.to("meta"), index.to("meta"), 2, 0.2).shape == (30,)
    kept = keep_heaviest(weights, index, 2, 0.2)
    assert [int((part > 0).sum()) for part in kept.split(15)] == [3, 3]


@pytest.mark.parametrize("name", [name for name in READING_NOTHING if name != "sft"])
def test_what_is_read_later_says_what_a_call_would(name: str) -> None:
    objective, record = OBJECTIVES[name](), random_scores([3, 5, 2, 2])
    reward_mask = record.reward_mask.clone()
    reward_mask[4] = -torch.inf
    bad = replace(record, reward_mask=reward_mask, signed_masks=False)
    with pytest.raises(ValueError, match=r"reward_mask\[4\]=-inf") as at_once:
        objective(bad)
    with checks_read_later() as checks:
        objective(bad)
        with checks_read_later() as good:
            objective(record)
    assert all(bool(check.holds) for check in good)
    assert [check.message() for check in checks if not check.holds] == [str(at_once.value)]
