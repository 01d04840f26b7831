"""beta-DPO: a beta of the batch, pairs that are dropped, statistics that move."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pair_records import assert_gradcheck, at_reference, loss_of, margin, random_scores

from sparsepo import DPO, BetaDPO, CoupledBatch, TokenScores


def pairs_with(gaps: list[float]) -> TokenScores:
    """One token per response; the chosen one's log ratio is the gap."""
    logps = torch.tensor([[[gap], [0.0]] for gap in gaps], dtype=torch.float64)
    return TokenScores.from_padded(
        torch.ones(len(gaps), 2, 1, dtype=torch.bool), logps, torch.zeros_like(logps)
    )


def test_by_hand() -> None:
    """Gaps 1 and 3, nothing dropped: the average goes from 0 to 0.1 * 2 = 0.2, then to 0.9 * 0.2 +
    0.1 * 2 = 0.38. beta 0.5 * (1 + 0.6 * (2 - 0.2)) = 1.04, then 0.5 * (1 + 0.6 * 1.62) = 0.986.
    """
    record, objective = pairs_with([1.0, 3.0]), BetaDPO(0.5, drop_fraction=0.0)
    for beta in (1.04, 0.986):
        output = objective(record)
        expected = [loss_of(beta), loss_of(3 * beta)]
        assert output.losses.tolist() == pytest.approx(expected, abs=1e-12)
        assert margin(output).tolist() == pytest.approx([0.5, 1.5], abs=1e-12)
        assert float(output.metrics["beta/batch"][0]) == pytest.approx(2 * beta)
        objective.observe(objective.shared_values(record))
    assert objective.state() == pytest.approx(
        {"average": 0.38, "deviation": 0.19 * math.sqrt(2), "batches": 2}
    )


def test_beta_has_a_floor() -> None:
    """0.5 * (1 + 0.6 * (-4 + 0.4)) is below 0."""
    losses = BetaDPO(0.5, drop_fraction=0.0)(pairs_with([-4.0, -4.0])).losses
    assert losses.tolist() == pytest.approx([loss_of(-0.004)] * 2, abs=1e-12)


def test_a_fifth_is_dropped_and_the_others_make_up_for_it() -> None:
    """Of ten pairs 8 weigh 10 / 8; beta is that of the kept ones' mean gap."""
    gaps = [0.1 * i for i in range(10)]
    record, objective = pairs_with(gaps), BetaDPO(0.5)
    values = objective.batch_values(objective.shared_values(record))
    kept = values[:, 0] > 0
    assert int(kept.sum()) == 8
    assert values[kept, 0].tolist() == [1.25] * 8
    mean = sum(gap for gap, keeps in zip(gaps, kept.tolist(), strict=True) if keeps) / 8
    beta = 0.5 * (1 + 0.6 * (mean - 0.1 * 0.45))
    assert values[:, 1].tolist() == pytest.approx([beta] * 10)
    expected = [float(keeps) * 1.25 * loss_of(beta * gap) for gap, keeps in zip(gaps, kept)]  # noqa: B905
    assert objective(record).losses.tolist() == pytest.approx(expected, abs=1e-12)
    assert float(objective(record).metrics["beta/kept_fraction"][0]) == 8


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (5, 4), (15, 12), (128, 102)])
def test_how_many_are_kept(count: int, kept: int) -> None:
    record, objective = pairs_with([0.01 * i for i in range(count)]), BetaDPO()
    values = objective.batch_values(objective.shared_values(record))
    assert int((values[:, 0] > 0).sum()) == kept
    assert float(values[:, 0].sum()) == pytest.approx(count)


@pytest.mark.slow
def test_pairs_are_drawn_by_their_distance_from_the_average() -> None:
    """Of two pairs one is kept, with probability w_1 / (w_1 + w_2): over 4,000 seeds within three
    standard errors. Average 0, deviation 1 after a batch whose statistics are that.
    """
    record = pairs_with([0.5, 1.5])
    gaps = torch.tensor([0.5, 1.5], dtype=torch.float64)
    first = 0
    for seed in range(4000):
        objective = BetaDPO(drop_fraction=0.5, momentum=0.9, seed=seed)
        # So that this batch makes them 0 and 1.
        average, deviation = -0.1 * 1.0 / 0.9, (1 - 0.1 * float(gaps.std())) / 0.9
        objective.restore({"average": average, "deviation": deviation, "batches": 0})
        first += int(objective.batch_values(objective.shared_values(record))[0, 0] > 0)
    weights = [math.exp(-0.125), math.exp(-1.125)]
    share = weights[0] / sum(weights)
    assert first / 4000 == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / 4000))


def test_draws_follow_the_seed_and_the_batch_and_come_back_with_the_state() -> None:
    record = pairs_with([0.05 * i for i in range(20)])

    def kept(objective: BetaDPO) -> list[bool]:
        return (objective.batch_values(objective.shared_values(record))[:, 0] > 0).tolist()

    wide = {"average": 0.0, "deviation": 9.0, "batches": 3}  # so that chance decides
    one, same, other = BetaDPO(), BetaDPO(), BetaDPO(seed=1)
    for objective in (one, same, other):
        objective.restore(wide)
    assert kept(one) == kept(same) != kept(other)
    before = kept(one)
    one.observe(one.shared_values(record))
    assert kept(one) != before
    again = BetaDPO()
    again.restore(json.loads(json.dumps(one.state())))
    assert torch.equal(
        again.batch_values(again.shared_values(record)), one.batch_values(one.shared_values(record))
    )


def test_limits() -> None:
    """Without sensitivity and drops, and in validation, it is DPO; calls change no state."""
    record = random_scores([3, 5, 2, 2, 4, 1])
    torch.testing.assert_close(
        BetaDPO(0.3, alpha=0.0, drop_fraction=0.0)(record).losses, DPO(0.3)(record).losses
    )
    objective = BetaDPO(0.3)
    values = objective.batch_values(objective.shared_values(record), is_training=False)
    output = objective(record, CoupledBatch(values, torch.arange(3)))
    torch.testing.assert_close(output.losses, DPO(0.3)(record).losses)
    torch.testing.assert_close(margin(output), margin(DPO(0.3)(record)))
    assert objective.state() == {"average": 0.0, "deviation": 0.0, "batches": 0}
    kept = BetaDPO(0.3)(at_reference(record)).losses
    assert sorted(kept.tolist()) == pytest.approx([0, 1.5 * math.log(2), 1.5 * math.log(2)])


def test_rounding_at_the_reference_does_not_choose() -> None:
    """Gaps of 1e-7 and of exactly 0 keep the same pairs."""
    noise = (1e-7 * torch.randn(20, generator=torch.Generator().manual_seed(1))).tolist()
    objective = BetaDPO()
    found = [
        objective.batch_values(objective.shared_values(pairs_with(gaps)))[:, 0]
        for gaps in (noise, [0.0] * 20)
    ]
    assert torch.equal(*found)


def test_gradients() -> None:
    """No gradient reaches beta: the record gives it, numerically and not."""
    record = random_scores([2, 3, 1, 2, 2, 1])
    objective = BetaDPO(0.7, label_smoothing=0.1, nll_coef=0.2)
    values = objective.batch_values(objective.shared_values(record))
    batch = CoupledBatch(values, torch.arange(3))

    def given(scores: TokenScores) -> object:
        return objective(scores, batch)

    assert_gradcheck(given, record, "policy_logps")  # type: ignore[arg-type]
    policy = [record.policy_logps.clone().requires_grad_() for _ in range(2)]
    objective(replace(record, policy_logps=policy[0])).losses.sum().backward()
    objective(replace(record, policy_logps=policy[1]), batch).losses.sum().backward()
    torch.testing.assert_close(policy[0].grad, policy[1].grad)


def cut(record: TokenScores, pairs: list[int]) -> TokenScores:
    """The micro-batch of these pairs, one token per response."""
    keep = torch.tensor([place for pair in pairs for place in (2 * pair, 2 * pair + 1)])
    fields = ("policy_logps", "reference_logps", "reward_mask", "kl_mask")
    return replace(
        record,
        **{name: getattr(record, name)[keep] for name in fields},
        response_index=torch.arange(2 * len(pairs)),
        num_pairs=len(pairs),
    )


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_cut_into_micro_batches_equals_the_whole_batch(data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(7)))
    ends = sorted({*data.draw(st.lists(st.integers(1, 6), max_size=6)), 7})
    parts = [list(order[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    record, objective = pairs_with([0.3, -0.2, 0.9, 0.0, 0.4, -1.0, 0.1]), BetaDPO(0.9)
    policy = record.policy_logps.clone().requires_grad_()
    whole = objective(replace(record, policy_logps=policy)).losses
    whole.sum().backward()
    again = record.policy_logps.clone().requires_grad_()
    full = replace(record, policy_logps=again)
    shared = torch.empty(7, 1, dtype=torch.float64)
    for part in parts:
        shared[part] = objective.shared_values(cut(record, part))
    values = objective.batch_values(shared)
    for part in parts:
        losses = objective(cut(full, part), CoupledBatch(values, torch.tensor(part))).losses
        torch.testing.assert_close(losses, whole[part])
        losses.sum().backward()
    torch.testing.assert_close(again.grad, policy.grad)
    alone = torch.cat([objective(cut(record, [pair])).losses for pair in range(7)])
    assert not torch.allclose(alone, whole)  # a pair that knows of no other one is kept


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"momentum": 1.0}, r"momentum=1.0: must be in \[0, 1\)"),
        ({"drop_fraction": 1.0}, r"drop_fraction=1.0: must be in \[0, 1\)"),
        ({"drop_fraction": -0.1}, r"drop_fraction=-0.1: must be in \[0, 1\)"),
        ({"alpha": -1.0}, "alpha=-1.0: must be finite and >= 0"),
        ({"seed": -1}, "seed=-1: must be >= 0"),
    ],
)
def test_bad_options_are_named(wrong: dict[str, float], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        BetaDPO(**wrong)  # type: ignore[arg-type]
