"""One objective, many weights: its options, its limits, and what it is under other names."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pair_records import (
    assert_gradcheck,
    at_reference,
    by_hand,
    gradient_of,
    loss_of,
    margin,
    random_scores,
    swapped,
)
from torch import Tensor

from sparsepo import (
    DPO,
    OBJECTIVES,
    TDPO1,
    TISDPO,
    ExpRatioMask,
    Features,
    MaPO,
    SimPO,
    SparsePO,
    TokenScores,
    Weighted,
)
from sparsepo.objectives import Objective


def test_by_hand() -> None:
    """U 0.45 and 0.6, K 0.1 and 0.6, beta 0.5, alpha 0.5, gamma 0.1: 0.5 * (-0.15 - 0.25) - 0.1.

    Means over kept tokens: U 0.45 / 2 and 0.6; the chosen KL mask keeps one token, K 0.1 and 0.6.
    Ratios 0.5, -0.1 and 0.3 within [-0.05, 0.4]: U 0.4 - 0.025 and 0.6. Log-probabilities -1, -2.1
    and -0.7: U -1 - 1.05 and -1.4.
    """
    for options, expected in (
        ({"alpha": 0.5}, 0.5 * (-0.15 - 0.5 * 0.5)),
        ({"alpha": 0.5, "reduction": "mean_kept"}, 0.5 * (0.225 - 0.6 - 0.5 * 0.5)),
        ({}, 0.5 * -0.15),
        ({"log_ratio_clamp": (-0.05, 0.4)}, 0.5 * (0.375 - 0.6)),
        ({"reference_free": True}, 0.5 * (-2.05 + 1.4)),
        ({"reference_free": True, "alpha": 2.0}, 0.5 * (-2.05 + 1.4 - 2.0 * 0.5)),
    ):
        output = Weighted(0.5, gamma=0.1, **options)(by_hand())
        assert margin(output).item() == pytest.approx(expected, abs=1e-12), options
        assert output.losses.item() == pytest.approx(loss_of(expected - 0.1), abs=1e-12), options
    penalised = Weighted(0.5, alpha=1, l1_reward=0.1, l1_kl=0.2)(by_hand(l1_shares=(1.0, 0.5)))
    expected = loss_of(0.5 * -0.65) + 0.1 * 3.5 + 0.5 * 0.2 * 1.5
    assert penalised.losses.item() == pytest.approx(expected, abs=1e-12)


def dense(record: TokenScores, policy: Tensor, **options: Any) -> Tensor:
    """Losses pair by pair and token by token, from the equation."""
    beta, alpha = options.get("beta", 0.1), options.get("alpha", 0.0)
    losses = []
    for pair in range(record.num_pairs):
        sides = []
        for side in (0, 1):
            of_reward, of_kl, kept, kept_kl = 0.0, 0.0, 0, 0
            for t in (record.response_index == 2 * pair + side).nonzero()[:, 0].tolist():
                r = policy[t]
                if not options.get("reference_free"):
                    r = r - record.reference_logps[t]
                if bounds := options.get("log_ratio_clamp"):
                    r = torch.minimum(
                        torch.maximum(r, r.new_tensor(bounds[0])), r.new_tensor(bounds[1])
                    )
                of_reward = of_reward + record.reward_mask[t] * r
                of_kl = of_kl + record.kl_mask[t] * record.token_kl[t]
                kept += int(record.reward_mask[t] != 0)
                kept_kl += int(record.kl_mask[t] != 0)
            if options.get("reduction") == "mean_kept":
                of_reward, of_kl = of_reward / max(kept, 1), of_kl / max(kept_kl, 1)
            sides.append((of_reward, of_kl, kept))
        (u_w, k_w, n_w), (u_l, k_l, n_l) = sides
        logit = beta * ((u_w - u_l) - alpha * (k_l - k_w)) - options.get("gamma", 0.0)
        loss = torch.log1p(torch.exp(-logit))
        if options.get("reduction") == "mean_kept" and not (n_w and n_l):
            loss = loss * 0.0
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize(("alpha", "free"), itertools.product((0.0, 0.3, 1.0), (False, True)))
def test_values_and_gradients_are_the_dense_ones(alpha: float, free: bool) -> None:
    record = random_scores([4, 2, 1, 6, 3, 3], seed=5)
    is_kept = torch.rand(19, generator=torch.Generator().manual_seed(1)) < 0.6
    record = replace(
        record,
        reward_mask=record.reward_mask * is_kept,
        kl_mask=record.kl_mask * is_kept.flip(0),
        empty_sides=True,
    )
    for reduction, gamma, bounds in itertools.product(
        ("sum", "mean_kept"), (0.0, 0.2), (None, (-0.5, 0.7))
    ):
        if free and bounds:
            continue
        options = {
            "beta": 0.4, "alpha": alpha, "reference_free": free, "reduction": reduction,
            "gamma": gamma, "log_ratio_clamp": bounds,
        }  # fmt: skip
        ours, theirs = (record.policy_logps.clone().requires_grad_() for _ in range(2))
        losses = Weighted(**options)(replace(record, policy_logps=ours)).losses
        expected = dense(record, theirs, **options)
        torch.testing.assert_close(losses, expected, atol=1e-12, rtol=1e-12)
        losses.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=1e-12)


def test_limits() -> None:
    """Constant weights are DPO, with the KL TDPO 1; means without a reference are SimPO."""
    record = random_scores([4, 2, 1, 6], seed=3)
    ones = torch.ones_like(record.reward_mask)
    flat = replace(record, reward_mask=ones, kl_mask=ones)

    def same(ours: Objective, theirs: Objective, given: TokenScores = flat) -> None:
        torch.testing.assert_close(ours(given).losses, theirs(given).losses)
        torch.testing.assert_close(margin(ours(given)), margin(theirs(given)))
        torch.testing.assert_close(
            gradient_of(ours, given, "policy_logps"), gradient_of(theirs, given, "policy_logps")
        )

    same(Weighted(0.3, label_smoothing=0.1, nll_coef=0.2), DPO(0.3, 0.1, 0.2))
    same(Weighted(0.3, alpha=1), TDPO1(0.3))
    same(Weighted(0.3, log_ratio_clamp=(-99, 99)), DPO(0.3))
    simpo = Weighted(2.0, reference_free=True, reduction="mean_kept", gamma=0.5)
    same(simpo, SimPO(2.0, gamma_beta_ratio=0.25))
    doubled = replace(record, reward_mask=2 * ones)
    torch.testing.assert_close(Weighted(0.3)(doubled).losses, DPO(0.6)(record).losses)
    started = Weighted(0.3, alpha=0.7)(at_reference(record))
    torch.testing.assert_close(started.losses, torch.full((2,), math.log(2), dtype=torch.float64))
    for alpha in (0.0, 0.7):
        both = Weighted(0.3, alpha=alpha)(swapped(record)), Weighted(0.3, alpha=alpha)(record)
        torch.testing.assert_close(margin(both[0]), -margin(both[1]))
    assert not torch.allclose(Weighted(0.3)(record).losses, DPO(0.3)(record).losses, atol=1e-3)


def test_named_objectives_equal_their_spelling_bit_for_bit() -> None:
    """And what they computed before there was one objective, written out here."""
    record = random_scores([4, 2, 1, 6], seed=4)
    scorers = Features(scorer_log_ratios=record.scorer_log_ratios)
    given = {"label_smoothing": 0.1, "nll_coef": 0.2}
    penalties = {"l1_reward": 0.05, "l1_kl": 0.02}
    mask = ExpRatioMask(0.8, -0.4, 1.0)(scorers, record.response_index, 2).reward
    weighed = replace(record, reward_mask=mask)
    external = replace(record, reward_mask=record.external_weights)

    def written(weights: Tensor, with_kl: bool) -> Any:
        def losses(scores: TokenScores) -> Any:
            values = weights * (scores.policy_logps - record.reference_logps)
            if with_kl:
                values = values + scores.kl_mask * scores.token_kl
            sums = torch.zeros(4, dtype=torch.float64).index_add(0, record.response_index, values)
            rewards = 0.3 * sums.view(2, 2)
            found = rewards[:, 0] - rewards[:, 1]
            return type("Losses", (), {"losses": -torch.nn.functional.logsigmoid(found)})

        return losses

    for named, spelled, scores, old in (
        (SparsePO(0.3, **penalties, **given), Weighted(0.3, 1, **penalties, **given), record, None),
        (SparsePO(0.3), Weighted(0.3, 1), record, written(record.reward_mask, True)),
        (MaPO(0.3, **given), Weighted(0.3, 1, **given), record, None),
        (MaPO(0.3), Weighted(0.3, 1), record, written(record.reward_mask, True)),
        (TISDPO(0.3, 0.8, -0.4, 1.0, **given), Weighted(0.3, **given), weighed, None),
        (TISDPO(0.3, 0.8, -0.4, 1.0), Weighted(0.3), weighed, written(mask, False)),
        (
            TISDPO(0.3, source="external"),
            Weighted(0.3),
            external,
            written(record.external_weights, False),
        ),
    ):
        assert torch.equal(named(record).losses, spelled(scores).losses)
        fields = ["policy_logps"]
        if isinstance(named, SparsePO | MaPO):
            fields += ["token_kl", "kl_mask", *([] if old else ["reward_mask"])]
        for field in fields:
            found = gradient_of(named, record, field)
            assert torch.equal(found, gradient_of(spelled, scores, field))
            if old is not None:
                assert torch.equal(found, gradient_of(old, record, field))
        if old is not None:
            assert torch.equal(named(record).losses, old(record).losses)


def test_gradients() -> None:
    record = random_scores([2, 3, 1, 2])
    record = replace(record, reward_mask=record.reward_mask + 0.1, kl_mask=record.kl_mask + 0.1)
    named = ("policy_logps", "token_kl", "reward_mask", "kl_mask")
    for reduction in ("sum", "mean_kept"):
        objective = Weighted(0.3, 0.7, False, reduction, 0.1, (-2.0, 2.0), 0.05, 0.02, 0.1, 0.2)
        assert_gradcheck(objective, record, *named)


def test_a_pair_with_an_empty_side_counts_for_nothing_or_is_refused() -> None:
    """Where the mask may leave none: loss 0, no gradient, and a share that says so."""
    record = random_scores([3, 2, 2, 2], seed=2)
    weights = torch.where(record.response_index == 1, 0.0, record.reward_mask)
    objective = Weighted(0.3, reduction="mean_kept", gamma=0.2)
    empty = replace(record, reward_mask=weights, empty_sides=True)
    output = objective(empty)
    assert output.losses[0] == 0 and output.losses[1] > 0
    assert (gradient_of(objective, empty, "policy_logps")[:5] == 0).all()
    total, count = output.metrics["masks/empty_pairs"]
    assert (float(total), float(count)) == (1, 2)
    with pytest.raises(ValueError, match="weight other than 0 in every response: pair 0, rejected"):
        objective(replace(empty, empty_sides=False))
    assert Weighted(0.3)(replace(empty, empty_sides=False)).losses.isfinite().all()


def test_without_alpha_no_kl_is_read_or_reported() -> None:
    """And it says so before it is built; without a reference its log-probabilities are not read."""
    record = replace(random_scores([3, 2]), token_kl=None)
    metrics = Weighted(0.3)(record).metrics
    assert {key.split("_")[0] for key in metrics if key.startswith("masks/")} == {
        "masks/reward",
        "masks/effective",
    }
    for options in ({}, {"alpha": 1.0}, {"reference_free": True}):
        objective = Weighted(**options)
        assert objective.requires == OBJECTIVES["weighted"].requires_for(options)
    assert Weighted(reference_free=True).requires == frozenset()
    assert Weighted(alpha=0.5).requires == {"reference_logps", "reference_hidden"}
    bare = replace(record, reference_logps=None)
    assert Weighted(reference_free=True)(bare).losses.isfinite().all()
    with pytest.raises(ValueError, match="token_kl is missing.*'reference_hidden'"):
        Weighted(alpha=0.5)(record)
    external = replace(bare, reference_logps=record.reference_logps, external_weights=None)
    assert TISDPO(source="external").requires == {"reference_logps", "external_weights"}
    with pytest.raises(ValueError, match="external_weights is missing.*comes from the data"):
        TISDPO(source="external")(external)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, "alpha=-1: must be finite and >= 0"),
        ({"gamma": math.nan}, "gamma=nan: must be finite and >= 0"),
        ({"reduction": "mean"}, "reduction='mean' is not one of sum, mean_kept"),
        ({"log_ratio_clamp": (1, 1)}, r"log_ratio_clamp=\[1, 1\]: must be finite with low < high"),
        (
            {"log_ratio_clamp": (-1, 1.5), "reference_free": True},
            "with reference_free: there are no log ratios to clamp",
        ),
        ({"l1_kl": 0.1}, "l1_kl=0.1 with alpha=0: there is no KL"),
        ({"l1_reward": -0.1}, "l1_reward=-0.1: must be finite and >= 0"),
    ],
)
def test_options_that_are_wrong_or_would_be_ignored_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Weighted(**options)


def test_options_of_an_external_source_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mu=2.0, .* weights from the data are taken as they are"):
        TISDPO(mu=2.0, source="external")
    with pytest.raises(ValueError, match="source='data' is not one of scorers, external"):
        TISDPO(source="data")
