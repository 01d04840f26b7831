"""RPO: contrasts over all pairs of the batch, cut into any micro-batches."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pair_records import (
    TOKEN_FIELDS,
    assert_gradcheck,
    at_reference,
    by_hand,
    loss_of,
    margin,
    random_scores,
)

from sparsepo import DPO, RPO, CoupledBatch, TokenScores


def test_by_hand() -> None:
    """Two pairs, one token each: R_chosen 0.4, -0.2; R_rejected 0.1, 0.3; orthogonal prompts, tau
    0.5.

    omega: softmax of (0, -2) = (0.8808, 0.1192) by row. beta 0.5. Row 1: omega * (0.3, 0.1), row 2:
    omega mirrored * (-0.3, -0.5).
    """
    record = TokenScores.from_padded(
        torch.ones(2, 2, 1, dtype=torch.bool),
        policy_logps=torch.tensor([[[0.4], [0.1]], [[-0.2], [0.3]]], dtype=torch.float64),
        reference_logps=torch.zeros(2, 2, 1, dtype=torch.float64),
        prompt_embedding=torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64),
    )
    near = 1 / (1 + math.exp(-2))
    far = 1 - near
    first = (loss_of(0.5 * near * 0.3) + loss_of(0.5 * far * 0.1)) / 2
    second = (loss_of(0.5 * far * -0.3) + loss_of(0.5 * near * -0.5)) / 2
    assert RPO(0.5)(record).losses.tolist() == pytest.approx([first, second], abs=1e-12)


def test_limits() -> None:
    """One pair is DPO; at the reference ln 2; rows of the weights sum to 1 and peak on the
    diagonal.
    """
    record = random_scores([3, 5, 2, 2, 4, 1])
    torch.testing.assert_close(
        RPO(0.3)(at_reference(record)).losses, torch.full((3,), math.log(2), dtype=torch.float64)
    )
    single = by_hand(prompt_embedding=torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    torch.testing.assert_close(RPO(0.3)(single).losses, DPO(0.3)(single).losses)
    torch.testing.assert_close(margin(RPO(0.3)(single)), margin(DPO(0.3)(single)))
    omega = RPO().weights(record.prompt_embedding)
    torch.testing.assert_close(omega.sum(1), torch.ones(3, dtype=torch.float64))
    assert omega.argmax(1).tolist() == [0, 1, 2]


def test_gradients() -> None:
    assert_gradcheck(RPO(0.7, 0.3, 0.1, 0.2), random_scores([2, 3, 1, 2, 2, 1]), "policy_logps")


def cut(record: TokenScores, pairs: list[int]) -> TokenScores:
    """The micro-batch of these pairs, in this order."""
    keep = torch.cat([(record.response_index // 2 == p).nonzero().flatten() for p in pairs])
    index = torch.cat(
        [
            record.response_index[record.response_index // 2 == p] - 2 * p + 2 * at
            for at, p in enumerate(pairs)
        ]
    )
    moved = {name: getattr(record, name)[keep] for name in TOKEN_FIELDS}
    per_pair = {
        name: getattr(record, name)[pairs] for name in ("prompt_embedding", "preference_scores")
    }
    return replace(record, response_index=index, num_pairs=len(pairs), **moved, **per_pair)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_cut_into_micro_batches_equals_the_whole_batch(data: st.DataObject) -> None:
    """Losses and the policy's gradient of 1 micro-batch equal those of up to 7, in any order."""
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=14, max_size=14))
    order = data.draw(st.permutations(range(7)))
    ends = sorted({*data.draw(st.lists(st.integers(1, 6), max_size=6)), 7})
    parts = [list(order[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    record, objective = random_scores(lengths, seed=4), RPO(0.9, 0.4, 0.05, 0.1)

    policy = record.policy_logps.clone().requires_grad_()
    whole = objective(replace(record, policy_logps=policy)).losses
    whole.sum().backward()

    again = record.policy_logps.clone().requires_grad_()
    full = replace(record, policy_logps=again)
    values = torch.empty(7, 2 + record.prompt_embedding.shape[1], dtype=torch.float64)
    for part in parts:
        values[part] = objective.shared_values(cut(record, part))
    for part in parts:
        losses = objective(cut(full, part), CoupledBatch(values, torch.tensor(part))).losses
        torch.testing.assert_close(losses, whole[part])
        losses.sum().backward()
    torch.testing.assert_close(again.grad, policy.grad)


def test_without_the_second_pass_the_cut_shows() -> None:
    """Negative control: micro-batches that do not know of each other give another loss."""
    record = random_scores([2, 3, 1, 2], seed=4)
    alone = torch.cat([RPO(0.9)(cut(record, [p])).losses for p in range(2)])
    assert (alone - RPO(0.9)(record).losses).abs().max() > 1e-2
