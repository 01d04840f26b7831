"""KTO: rows with labels against the mean log ratio of responses to other prompts."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pair_records import (
    TOKEN_FIELDS,
    assert_gradcheck,
    at_reference,
    gradient_of,
    part_of,
    random_scores,
)

from sparsepo import KTO, CoupledBatch, Sum, TokenScores
from sparsepo.checks import checks_read_later

LENGTHS = [3, 5, 2, 2, 4, 1, 1, 3, 6, 2, 2, 2, 5, 4]


def rows(labels: list[bool], seed: int = 0) -> TokenScores:
    record = random_scores(LENGTHS[: 2 * len(labels)], seed)
    return replace(record, desirable=torch.tensor(labels))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def of_one_token(own: list[float], others: list[float], labels: list[bool]) -> TokenScores:
    """Rows with these log ratios of their own and of the other prompts' responses."""
    values = [[[a], [b]] for a, b in zip(own, others, strict=True)]
    ratios = torch.tensor(values, dtype=torch.float64)
    return TokenScores.from_padded(
        torch.ones_like(ratios, dtype=torch.bool),
        policy_logps=ratios - 3,
        reference_logps=torch.full_like(ratios, -3),
        desirable=torch.tensor(labels),
    )


def test_by_hand() -> None:
    """The other responses' log ratios are 0.5 and -0.1: KL 0.2. beta 0.5, weights 1 and 2.

    Desirable at 0.6: 1 - s(0.5 * 0.4). Undesirable at -0.3: 2 * (1 - s(0.5 * 0.5)).
    """
    record = of_one_token([0.6, -0.3], [0.5, -0.1], [True, False])
    output = KTO(0.5, undesirable_weight=2.0)(record)
    expected = [1 - sigmoid(0.2), 2 * (1 - sigmoid(0.25))]
    assert output.losses.tolist() == pytest.approx(expected, abs=1e-12)
    assert output.chosen_rewards.tolist() == pytest.approx([0.3, -0.15])
    means = {key: float(total / count) for key, (total, count) in output.metrics.items()}
    assert means == pytest.approx(
        {
            "loss": sum(expected) / 2,
            "rewards/margins": (0.2 + 0.25) / 2,
            "rewards/accuracies": 1.0,
            "kl/mismatched": 0.2,
            "rewards/chosen": 0.3,
            "rewards/rejected": -0.15,
            "logps/chosen": -2.4,
            "logps/rejected": -3.3,
        },
        abs=1e-6,
    )


def test_a_negative_estimate_counts_as_none() -> None:
    """Mean -0.4 is clamped: the desirable row's loss is 1 - s(0.5 * 0.6)."""
    record = of_one_token([0.6, 0.1], [-0.5, -0.3], [True, True])
    assert float(KTO(0.5)(record).losses[0]) == pytest.approx(1 - sigmoid(0.3), abs=1e-12)


def test_at_the_reference_every_loss_is_half_its_weight() -> None:
    losses = KTO(0.3, 1.5, 0.5)(at_reference(rows([True, False, True]))).losses
    assert losses.tolist() == pytest.approx([0.75, 0.25, 0.75])


def test_gradients_reach_the_rows_own_responses_alone() -> None:
    """The estimate is a constant: numerically against the same record with the others fixed."""
    record = rows([True, False, False, True])
    record = replace(record, policy_logps=record.reference_logps + torch.rand_like(record.token_kl))
    own = record.response_index % 2 == 0
    gradient = gradient_of(KTO(0.7), record, "policy_logps")
    assert (gradient[own] != 0).all() and (gradient[~own] == 0).all()
    values = KTO(0.7).shared_values(record)
    fixed = CoupledBatch(values, torch.arange(4))

    class AtFixedEstimate(KTO):
        def __call__(self, scores: TokenScores, batch: CoupledBatch | None = fixed):  # type: ignore
            return super().__call__(scores, batch)

    assert_gradcheck(AtFixedEstimate(0.7), record, "policy_logps")
    assert float(values.mean()) > 0


def chosen_alone(record: TokenScores) -> TokenScores:
    keep = record.response_index % 2 == 0
    moved = {name: getattr(record, name)[keep] for name in TOKEN_FIELDS}
    return replace(record, response_index=record.response_index[keep], **moved)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_cut_into_micro_batches_equals_the_whole_batch(data: st.DataObject) -> None:
    order = list(data.draw(st.permutations(range(7))))
    ends = sorted({*data.draw(st.lists(st.integers(1, 6), max_size=6)), 7})
    parts = [order[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    record = rows(data.draw(st.lists(st.booleans(), min_size=7, max_size=7)), seed=4)
    record = replace(record, policy_logps=record.policy_logps + 1)  # the estimate is over 0
    objective = KTO(0.9, 1.3, 0.7)
    whole = objective(record)
    values = torch.cat([objective.shared_values(part_of(record, [p])) for p in range(7)])
    policy = record.policy_logps.clone().requires_grad_()
    full = replace(record, policy_logps=policy)
    sums: dict[str, list[torch.Tensor]] = {}
    leave_out = data.draw(st.booleans())
    for part in parts:
        micro_batch = part_of(full, part)
        if leave_out:  # the second pass does without the other responses
            micro_batch = chosen_alone(micro_batch)
        output = objective(micro_batch, CoupledBatch(values, torch.tensor(part)))
        torch.testing.assert_close(output.losses, whole.losses[part])
        output.losses.sum().backward()
        for key, (total, count) in output.metrics.items():
            sums.setdefault(key, []).append(torch.stack([total.double(), count.double()]))
    torch.testing.assert_close(policy.grad, gradient_of(objective, record, "policy_logps"))
    for key, (total, count) in whole.metrics.items():
        expected = torch.stack([total.double(), count.double()])
        torch.testing.assert_close(sum(sums[key], start=torch.zeros(2).double()), expected)


def test_without_the_second_pass_the_cut_shows() -> None:
    """Negative control."""
    record = rows([True, False, True], seed=2)
    record = replace(record, policy_logps=record.policy_logps + 1)
    alone = torch.cat([KTO(0.9)(part_of(record, [p])).losses for p in range(3)])
    assert float((alone - KTO(0.9)(record).losses).abs().max()) > 1e-2


@pytest.mark.parametrize("label", [True, False])
def test_a_batch_of_one_label_has_no_numbers_of_the_other(label: bool) -> None:
    output = KTO(0.3)(rows([label] * 3))
    assert output.losses.isfinite().all()
    absent = "rejected" if label else "chosen"
    assert float(output.metrics[f"rewards/{absent}"][1]) == 0
    assert float(output.metrics[f"logps/{absent}"][1]) == 0


def test_what_is_wrong_is_named() -> None:
    record = rows([True, False])
    with pytest.raises(ValueError, match="at least one scored token: pair 0, rejected"):
        KTO()(chosen_alone(record))
    with pytest.raises(ValueError, match="desirable is missing: it needs the feature 'desirable'"):
        KTO()(replace(record, desirable=None))
    with pytest.raises(ValueError, match=r"desirable has shape \(3,\), 2 pairs want \(2,\)"):
        replace(record, desirable=torch.ones(3, dtype=torch.bool))
    for options in ({"beta": 0.0}, {"desirable_weight": -1.0}, {"undesirable_weight": math.nan}):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"{name}={value}: must be finite"):
            KTO(**options)
    with pytest.raises(ValueError, match="kto reads rows with labels, the terms of a sum"):
        Sum([(1.0, KTO())])


def test_it_waits_for_no_value_of_the_device() -> None:
    record = rows([True, False])
    names = [*TOKEN_FIELDS, "response_index", "desirable"]
    moved = {name: getattr(record, name).to("meta") for name in names}
    with checks_read_later():
        KTO()(replace(record, prompt_embedding=None, preference_scores=None, **moved))
