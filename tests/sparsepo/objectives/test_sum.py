"""A sum of objectives: its terms' losses and gradients, one mask, metrics of their own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pair_records import (
    assert_gradcheck,
    by_hand,
    gradient_of,
    loss_of,
    part_of,
    random_scores,
)

from sparsepo import (
    DPO,
    IPO,
    OBJECTIVES,
    RPO,
    SFT,
    BetaDPO,
    CoupledBatch,
    DPOShift,
    MaPO,
    Sum,
    TokenScores,
)
from sparsepo.records import ModelInputs

LENGTHS = [3, 5, 2, 2, 4, 1, 1, 3, 6, 2, 2, 2, 5, 4]


def test_by_hand() -> None:
    """R_w 0.4, R_l 0.3: the logit of DPO is 0.01 at beta 0.1, IPO's loss (0.1 - 5)^2 summed; the
    chosen tokens' log-probabilities are -1.0 and -2.1, so their mean is 1.55 nats.
    """
    objective = Sum([(0.8, DPO(0.1)), (0.2, IPO(0.1, length_average=False)), (1.0, SFT())])
    expected = 0.8 * loss_of(0.01) + 0.2 * (0.1 - 5) ** 2 + 1.55
    output = objective(by_hand())
    assert output.losses.tolist() == pytest.approx([expected], abs=1e-12)
    assert float(output.chosen_rewards) == pytest.approx(0.04)


def test_one_term_of_weight_one_is_that_objective() -> None:
    """Values, gradients, rewards and metrics, to the bit."""
    record = random_scores(LENGTHS)
    alone, wrapped = DPO(0.3, nll_coef=0.1), Sum([(1.0, DPO(0.3, nll_coef=0.1))])
    assert torch.equal(wrapped(record).losses, alone(record).losses)
    assert torch.equal(wrapped(record).chosen_rewards, alone(record).chosen_rewards)
    assert torch.equal(
        gradient_of(wrapped, record, "policy_logps"), gradient_of(alone, record, "policy_logps")
    )
    metrics = wrapped(record).metrics
    assert all(torch.equal(metrics[key][0], v[0]) for key, v in alone(record).metrics.items())
    assert not wrapped.couples_pairs


def test_the_supervised_term_counts_tokens_and_sft_alone_responses() -> None:
    """Chosen responses of 3 and 1 tokens: -(sum of all four) / 4, over two pairs."""
    record = random_scores([3, 2, 1, 2], seed=3)
    tokens = record.policy_logps[[0, 1, 2, 5]]
    both = Sum([(1e-9, DPO()), (1.0, SFT())])(record).losses.sum() / 2
    assert float(both) == pytest.approx(-float(tokens.sum()) / 4, abs=1e-6)
    assert abs(float(SFT()(record).losses.mean()) + float(tokens.sum()) / 4) > 1e-2


def test_gradients() -> None:
    objective = Sum([(0.8, MaPO(0.7)), (0.5, RPO(0.7)), (0.3, SFT())])
    assert_gradcheck(objective, random_scores(LENGTHS), "policy_logps", "token_kl")


def shared(objective: Sum, record: TokenScores) -> torch.Tensor:
    """What a trainer gathers: of the inputs alone where they give it."""
    none = torch.zeros(0, dtype=torch.long)
    inputs = ModelInputs(none, none, none, none, none, record.response_index, record.num_pairs)
    values = objective.values_of_inputs(inputs)
    return objective.shared_values(record) if values is None else values


@settings(max_examples=20, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize(
    "terms",
    [
        [(0.8, DPO(0.5)), (1.0, SFT())],
        [(0.5, SFT()), (0.8, RPO(0.9, 0.4)), (0.4, BetaDPO(0.3)), (0.2, IPO())],
    ],
    ids=["lengths", "scores"],
)
def test_any_cut_into_micro_batches_equals_the_whole_batch(
    terms: list[Any], data: st.DataObject
) -> None:
    order = list(data.draw(st.permutations(range(7))))
    ends = sorted({*data.draw(st.lists(st.integers(1, 6), max_size=6)), 7})
    parts = [order[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    record, objective = random_scores(LENGTHS, seed=4), Sum(terms)
    whole = objective(record).losses
    values = objective.batch_values(
        torch.cat([shared(objective, part_of(record, [p])) for p in range(7)])
    )
    policy = record.policy_logps.clone().requires_grad_()
    full = replace(record, policy_logps=policy)
    for part in parts:
        batch = CoupledBatch(values, torch.tensor(part))
        losses = objective(part_of(full, part), batch).losses
        torch.testing.assert_close(losses, whole[part])
        losses.sum().backward()
    torch.testing.assert_close(policy.grad, gradient_of(objective, record, "policy_logps"))


def test_only_terms_that_couple_ask_for_the_policy_first() -> None:
    record = random_scores(LENGTHS)
    none = torch.zeros(0, dtype=torch.long)
    inputs = ModelInputs(none, none, none, none, none, record.response_index, record.num_pairs)
    lengths = Sum([(1.0, DPO()), (1.0, SFT())]).values_of_inputs(inputs)
    assert lengths is not None and lengths[:, 0].tolist() == LENGTHS[::2]
    assert Sum([(1.0, RPO()), (1.0, SFT())]).values_of_inputs(inputs) is None


def test_metrics_of_the_terms_stand_beside_each_other() -> None:
    """Two DPO of unlike beta: the rewards are the first's, the loss is the sum's."""
    record = random_scores(LENGTHS)
    metrics = Sum([(1.0, SFT()), (0.5, DPO(0.1)), (2.0, DPO(0.4))])(record).metrics
    means = {key: float(total / count) for key, (total, count) in metrics.items()}
    first, second = DPO(0.1)(record), DPO(0.4)(record)
    assert means["of/1_dpo/loss"] == pytest.approx(float(first.losses.mean()))
    assert means["of/2_dpo/loss"] == pytest.approx(float(second.losses.mean()))
    assert means["rewards/margins"] == means["of/1_dpo/rewards/margins"]
    assert means["of/2_dpo/rewards/margins"] == pytest.approx(4 * means["rewards/margins"])
    assert means["loss"] == pytest.approx(
        means["of/0_sft/loss"] + 0.5 * means["of/1_dpo/loss"] + 2 * means["of/2_dpo/loss"]
    )
    assert {"logps/chosen", "nll_per_token", "kl/reference_policy"} <= metrics.keys()
    assert not any("/logps/" in key or "/kl/" in key for key in metrics)


def test_terms_share_the_mask_and_one_that_reads_none_ignores_it() -> None:
    record = random_scores(LENGTHS)
    ones = replace(record, reward_mask=torch.ones_like(record.reward_mask))
    both = Sum([(1.0, DPO(0.2)), (1.0, MaPO(0.2))])
    assert torch.equal(both(record).losses, DPO(0.2)(record).losses + MaPO(0.2)(record).losses)
    assert not torch.equal(both(record).losses, both(ones).losses)
    assert "masks/reward_mean" in both(record).metrics


def test_what_is_no_sum_is_named() -> None:
    for terms, message in (
        ([], "needs a term that reads rejected responses"),
        ([(1.0, SFT())], "needs a term that reads rejected responses"),
        ([(0.0, DPO())], "weight=0.0: must be finite and > 0"),
        ([{"weight": -1, "name": "dpo"}], "weight=-1: must be finite and > 0"),
        ([{"weight": 1, "name": "dpo", "beta": -1}], "beta=-1: must be finite and > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Sum(terms)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no kind of mask serves all terms of the sum: mapo, s"):
        OBJECTIVES["sum"](of=[{"weight": 1, "name": "mapo"}, {"weight": 1, "name": "sparsepo"}])


def test_it_requires_what_its_terms_require() -> None:
    terms = [{"weight": 1, "name": name} for name in ("rpo", "tdpo1", "sft")]
    expected = {"reference_logps", "reference_hidden", "prompt_embedding"}
    assert OBJECTIVES["sum"].requires_for({"of": terms}) == expected
    assert OBJECTIVES["sum"](of=terms).requires == expected


def test_terms_remember_and_advance_as_they_do_alone() -> None:
    """A beta of the batch and a weight of the run: batches one after the other, and a restart."""
    terms: list[Any] = [(0.5, RPO()), (2.0, BetaDPO(0.4)), (1.0, DPOShift())]
    whole, alone = Sum(terms), (RPO(), BetaDPO(0.4), DPOShift())
    for step, progress in enumerate((0.0, 0.5, 1.0)):
        record = random_scores(LENGTHS, seed=step)
        whole.advance(progress)
        alone[2].advance(progress)
        gathered = whole.shared_values(record)
        own = alone[1].shared_values(record)
        rows = torch.arange(7)
        found = whole(record, CoupledBatch(whole.batch_values(gathered), rows)).losses
        expected = (
            0.5 * alone[0](record).losses
            + 2.0 * alone[1](record, CoupledBatch(alone[1].batch_values(own), rows)).losses
            + alone[2](record).losses
        )
        torch.testing.assert_close(found, expected)
        whole.observe(gathered)
        alone[1].observe(own)
        assert set(whole.state()) == {"1"}
        assert whole.state()["1"] == pytest.approx(alone[1].state())
        again = Sum([(0.5, RPO()), (2.0, BetaDPO(0.4)), (1.0, DPOShift())])
        again.restore(whole.state())
        whole = again
