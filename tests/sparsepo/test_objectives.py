"""Objectives against hand arithmetic, their limits, their symmetries and numerical gradients."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo import DPO, SFT, TDPO1, MaPO, SparsePO, TokenScores

PAIRWISE = {"dpo": DPO(0.3), "tdpo1": TDPO1(0.3), "mapo": MaPO(0.3), "sparsepo": SparsePO(0.3)}


def scores(lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> TokenScores:
    """Random records; lengths alternate chosen, rejected."""
    g = torch.Generator().manual_seed(seed)
    total = sum(lengths)

    def draw() -> torch.Tensor:
        return torch.rand(total, generator=g, dtype=dtype)

    index = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    return TokenScores(-3 * draw(), -3 * draw(), draw(), draw(), draw(), index, len(lengths) // 2)


def swapped(record: TokenScores) -> TokenScores:
    """Chosen and rejected exchanged, canonical order restored."""
    index = record.response_index ^ 1
    order = torch.argsort(index, stable=True)
    moved = {name: getattr(record, name)[order] for name in ("policy_logps", "reference_logps", "token_kl", "reward_mask", "kl_mask")}
    return replace(record, response_index=index[order], **moved)


def by_hand() -> TokenScores:
    """One pair: chosen two tokens with log ratios 0.5, -0.1 and KL 0.2, 0.4; rejected one token, log ratio 0.3, KL 0.6."""
    return TokenScores(
        policy_logps=torch.tensor([-1.0, -2.1, -0.7]),
        reference_logps=torch.tensor([-1.5, -2.0, -1.0]),
        token_kl=torch.tensor([0.2, 0.4, 0.6]),
        reward_mask=torch.tensor([1.0, 0.5, 2.0]),
        kl_mask=torch.tensor([0.5, 0.0, 1.0]),
        response_index=torch.tensor([0, 0, 1]),
        num_pairs=1,
    )


def loss_of(logit: float) -> float:
    return math.log1p(math.exp(-logit))


def test_dpo_by_hand() -> None:
    """R_chosen = 0.4, R_rejected = 0.3, beta 0.5: logit 0.05; smoothing 0.2 mixes in -log sigmoid(-0.05)."""
    output = DPO(0.5)(by_hand())
    assert output.losses.item() == pytest.approx(loss_of(0.05), abs=1e-6)
    assert output.chosen_rewards.item() == pytest.approx(0.2, abs=1e-6)
    smoothed = DPO(0.5, label_smoothing=0.2)(by_hand())
    assert smoothed.losses.item() == pytest.approx(0.8 * loss_of(0.05) + 0.2 * loss_of(-0.05), abs=1e-6)


def test_tdpo1_by_hand() -> None:
    """(0.4 - 0.3) - (0.6 - 0.6) = 0.1, beta 0.5: logit 0.05, reward chosen 0.5 * (0.4 + 0.6)."""
    output = TDPO1(0.5)(by_hand())
    assert output.losses.item() == pytest.approx(loss_of(0.05), abs=1e-6)
    assert output.chosen_rewards.item() == pytest.approx(0.5, abs=1e-6)


def test_sparsepo_by_hand() -> None:
    """U_chosen = 0.5 - 0.05 = 0.45, K_chosen = 0.1, U_rejected = 0.6, K_rejected = 0.6: logit (0.45 - 0.6) - (0.6 - 0.1) = -0.65.

    L1: reward mask sums to 3.5, KL mask to 1.5. Separate masks: 0.1 * 3.5 + 0.2 * 1.5 = 0.65; one shared mask: half.
    """
    plain = SparsePO(0.5)(by_hand())
    assert plain.losses.item() == pytest.approx(loss_of(-0.325), abs=1e-6)
    assert (plain.chosen_rewards - plain.rejected_rewards).item() == pytest.approx(-0.325, abs=1e-6)
    penalised = SparsePO(0.5, l1_reward=0.1, l1_kl=0.2)
    assert penalised(by_hand()).losses.item() == pytest.approx(loss_of(-0.325) + 0.65, abs=1e-6)
    assert penalised(replace(by_hand(), l1_shares=(0.5, 0.5))).losses.item() == pytest.approx(loss_of(-0.325) + 0.325, abs=1e-6)
    assert penalised(replace(by_hand(), l1_shares=(1.0, 0.0))).losses.item() == pytest.approx(loss_of(-0.325) + 0.35, abs=1e-6)


def test_sft_is_the_mean_nll_per_token_of_chosen() -> None:
    """Chosen logps -1.0, -2.1: 1.55 per token."""
    single = TokenScores(torch.tensor([-1.0, -2.1]), None, None, torch.ones(2), torch.ones(2), torch.tensor([0, 0]), 1)
    assert SFT()(single).losses.item() == pytest.approx(1.55, abs=1e-6)


@pytest.mark.parametrize("name", PAIRWISE)
def test_at_the_reference_every_loss_is_ln2(name: str) -> None:
    record = scores([3, 5, 2, 2], dtype=torch.float32)
    record = replace(record, policy_logps=record.reference_logps, token_kl=torch.zeros_like(record.policy_logps))
    torch.testing.assert_close(PAIRWISE[name](record).losses, torch.full((2,), math.log(2)), atol=1e-5, rtol=0)


def test_limits_of_the_masks() -> None:
    """All-one masks are TDPO v1; an all-one reward mask with a zero KL mask is DPO."""
    record = scores([4, 2, 1, 6], seed=3)
    ones, zeros = torch.ones_like(record.reward_mask), torch.zeros_like(record.reward_mask)
    full = replace(record, reward_mask=ones, kl_mask=ones)
    torch.testing.assert_close(SparsePO(0.2)(full).losses, TDPO1(0.2)(record).losses)
    torch.testing.assert_close(MaPO(0.2)(full).losses, TDPO1(0.2)(record).losses)
    reward_only = replace(record, reward_mask=ones, kl_mask=zeros)
    torch.testing.assert_close(SparsePO(0.2)(reward_only).losses, DPO(0.2)(record).losses)
    assert not torch.allclose(SparsePO(0.2)(record).losses, DPO(0.2)(record).losses, atol=1e-3)  # negative control


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=10).filter(lambda x: len(x) % 2 == 0), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", PAIRWISE)
def test_margin_properties(name: str, lengths: list[int], seed: int) -> None:
    """loss = -log sigmoid(reward margin), and exchanging chosen and rejected negates the margin."""
    record = scores(lengths, seed)
    output = PAIRWISE[name](record)
    margin = output.chosen_rewards - output.rejected_rewards
    torch.testing.assert_close(output.losses, torch.nn.functional.softplus(-margin), atol=1e-9, rtol=0)
    other = PAIRWISE[name](swapped(record))
    torch.testing.assert_close(other.chosen_rewards - other.rejected_rewards, -margin, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", PAIRWISE)
def test_gradcheck(name: str) -> None:
    record = scores([2, 3, 1, 2])
    objective = SparsePO(0.3, 0.05, 0.02) if name == "sparsepo" else PAIRWISE[name]

    def losses(policy: torch.Tensor, kl: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return objective(replace(record, policy_logps=policy, token_kl=kl, reward_mask=a, kl_mask=b)).losses

    inputs = [record.policy_logps, record.token_kl, record.reward_mask + 0.1, record.kl_mask + 0.1]
    assert torch.autograd.gradcheck(losses, [x.clone().requires_grad_() for x in inputs])


def test_pairs_do_not_see_each_other() -> None:
    """Losses of a batch equal the losses of its pairs alone, in any cut."""
    lengths = [4, 2, 1, 6, 3, 3]
    whole = SparsePO(0.3, 0.01, 0.01)(scores(lengths)).losses
    record = scores(lengths)
    for pair in range(3):
        keep = (record.response_index // 2) == pair
        part = replace(
            record,
            **{n: getattr(record, n)[keep] for n in ("policy_logps", "reference_logps", "token_kl", "reward_mask", "kl_mask")},
            response_index=record.response_index[keep] - 2 * pair,
            num_pairs=1,
        )
        torch.testing.assert_close(SparsePO(0.3, 0.01, 0.01)(part).losses[0], whole[pair])


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"beta=0: must be finite and > 0"):
        DPO(0)
    with pytest.raises(ValueError, match=r"beta=nan"):
        SparsePO(float("nan"))
    with pytest.raises(ValueError, match=r"l1_kl=-1"):
        SparsePO(0.1, 0.0, -1)
    with pytest.raises(ValueError, match=r"token_kl has shape \(2,\), policy_logps has \(3,\)"):
        replace(by_hand(), token_kl=torch.zeros(2))
    with pytest.raises(ValueError, match="reference_hidden"):
        TDPO1(0.1)(replace(by_hand(), token_kl=None))
    with pytest.raises(ValueError, match="pair 0, rejected"):
        DPO(0.1)(replace(by_hand(), response_index=torch.tensor([0, 0, 0])))
