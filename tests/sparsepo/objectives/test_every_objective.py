"""What holds for every preference objective: raggedness, padding, independence of pairs, bad
input.
"""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pair_records import TOKEN_FIELDS, by_hand, random_scores

from sparsepo import FEATURES, OBJECTIVES, TokenScores
from sparsepo.objectives import Objective

PREFERENCE = {name: kind() for name, kind in OBJECTIVES.items() if kind.uses_rejected}
PAIRWISE = {
    name: objective for name, objective in PREFERENCE.items() if not objective.couples_pairs
}
ragged = st.lists(st.integers(1, 9), min_size=2, max_size=10).filter(
    lambda lengths: len(lengths) % 2 == 0
)


def test_the_list_is_complete() -> None:
    names = {
        "dpo",
        "ipo",
        "simpo",
        "dpop",
        "odpo",
        "tdpo1",
        "tdpo2",
        "sparsepo",
        "mapo",
        "weighted",
        "tis_dpo",
        "rpo",
        "sft",
    }
    assert set(OBJECTIVES) == names
    assert all(kind.name == name for name, kind in OBJECTIVES.items())


@settings(max_examples=25, deadline=None)
@given(lengths=ragged, seed=st.integers(0, 99))
@pytest.mark.parametrize("name", PAIRWISE)
def test_pairs_do_not_see_each_other(name: str, lengths: list[int], seed: int) -> None:
    """Losses and rewards of a ragged batch equal those of its pairs alone."""
    record, objective = random_scores(lengths, seed), PAIRWISE[name]
    whole = objective(record)
    for pair in range(record.num_pairs):
        keep = (record.response_index // 2) == pair
        part = replace(
            record,
            **{n: getattr(record, n)[keep] for n in TOKEN_FIELDS},
            response_index=record.response_index[keep] - 2 * pair,
            num_pairs=1,
            prompt_embedding=record.prompt_embedding[pair : pair + 1],
            preference_scores=record.preference_scores[pair : pair + 1],
        )
        alone = objective(part)
        for field in ("losses", "chosen_rewards", "rejected_rewards"):
            torch.testing.assert_close(getattr(alone, field)[0], getattr(whole, field)[pair])


@settings(max_examples=25, deadline=None)
@given(
    lengths=ragged,
    seed=st.integers(0, 99),
    left=st.integers(0, 3),
    filler=st.sampled_from([math.nan, math.inf, 1e9]),
)
@pytest.mark.parametrize("name", PREFERENCE)
def test_unscored_positions_change_nothing(
    name: str, lengths: list[int], seed: int, left: int, filler: float
) -> None:
    """Padded on any side with NaN, infinity or nonsense: same losses, same gradient, none where
    nothing is scored.
    """
    record, objective = random_scores(lengths, seed), PREFERENCE[name]
    pairs, width = record.num_pairs, left + max(lengths) + 2
    mask = torch.zeros(pairs, 2, width, dtype=torch.bool)
    for i, n in enumerate(lengths):
        mask[i // 2, i % 2, left : left + n] = True
    padded = {}
    for field in TOKEN_FIELDS:
        padded[field] = torch.full(mask.shape, filler, dtype=torch.float64)
        padded[field][mask] = getattr(record, field)
    policy = padded.pop("policy_logps").requires_grad_()
    per_pair = {n: getattr(record, n) for n in ("prompt_embedding", "preference_scores")}
    losses = objective(TokenScores.from_padded(mask, policy, **padded, **per_pair)).losses
    losses.sum().backward()

    flat = record.policy_logps.clone().requires_grad_()
    expected = objective(replace(record, policy_logps=flat)).losses
    expected.sum().backward()
    torch.testing.assert_close(losses, expected)
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad[mask], flat.grad)
    assert float(policy.grad[~mask].abs().sum()) == 0


@pytest.mark.parametrize("name", PREFERENCE)
def test_float32_agrees_with_float64(name: str) -> None:
    record = random_scores([3, 5, 2, 2])
    single = replace(
        record, **{n: getattr(record, n).float() for n in (*TOKEN_FIELDS, "prompt_embedding")}
    )
    torch.testing.assert_close(
        PREFERENCE[name](single).losses.double(),
        PREFERENCE[name](record).losses,
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", PREFERENCE)
def test_what_is_missing_is_named_with_what_gives_it(name: str) -> None:
    record = random_scores([3, 2])
    for feature in PREFERENCE[name].requires:
        field = "token_kl" if feature == "reference_hidden" else feature
        with pytest.raises(
            ValueError,
            match=f"{field} is missing: it needs the feature '{feature}', which comes "
            f"from {FEATURES[feature].made_by}",
        ):
            PREFERENCE[name](replace(record, **{field: None}))


@pytest.mark.parametrize("name", PREFERENCE)
def test_bad_records_are_named(name: str) -> None:
    record = random_scores([3, 2, 1, 2])
    objective = PREFERENCE[name]
    with pytest.raises(ValueError, match="pair 1, chosen"):
        objective(replace(record, response_index=torch.tensor([0, 0, 0, 1, 1, 3, 3, 3])))
    for value in (-0.5, math.nan, math.inf):
        for mask in ("reward_mask", "kl_mask"):
            weights = getattr(record, mask).clone()
            weights[4] = value
            with pytest.raises(
                ValueError, match=rf"{mask}\[4\]={value}: weights must be finite and >= 0"
            ):
                objective(replace(record, **{mask: weights}))
    signed = record.reward_mask.clone()
    signed[4] = -0.5
    assert objective(replace(record, reward_mask=signed, signed_masks=True)).losses.isfinite().all()
    signed[4] = math.inf
    with pytest.raises(ValueError, match=r"reward_mask\[4\]=inf: weights must be finite$"):
        objective(replace(record, reward_mask=signed, signed_masks=True))


@pytest.mark.parametrize("name", PREFERENCE)
def test_bad_options_are_named(name: str) -> None:
    kind: type[Objective] = OBJECTIVES[name]
    for value in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"beta={value}: must be finite and > 0"):
            kind(beta=value)
    with pytest.raises(ValueError, match=r"nll_coef=-1: must be finite and >= 0"):
        kind(nll_coef=-1)
    if name != "ipo":
        with pytest.raises(ValueError, match=r"label_smoothing=0.5: must be in \[0, 0.5\)"):
            kind(label_smoothing=0.5)


def test_shapes_that_disagree_are_both_named() -> None:
    record = random_scores([3, 2])
    for field in fields(TokenScores):
        if field.name in (*TOKEN_FIELDS, "response_index") and field.name != "policy_logps":
            with pytest.raises(
                ValueError, match=rf"{field.name} has shape \(2,\), policy_logps has \(5,\)"
            ):
                replace(record, **{field.name: torch.zeros(2)})
    with pytest.raises(
        ValueError, match=r"preference_scores has shape \(1, 3\), 1 pairs want \(1, 2\)"
    ):
        replace(record, preference_scores=torch.zeros(1, 3))
    with pytest.raises(
        ValueError, match=r"reference_logps has shape \(1, 2, 4\), response_mask has \(1, 2, 3\)"
    ):
        TokenScores.from_padded(
            torch.ones(1, 2, 3, dtype=torch.bool), torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)
        )
    with pytest.raises(ValueError, match="no pair at all"):
        OBJECTIVES["dpo"]()(
            replace(
                by_hand(),
                **{n: torch.zeros(0) for n in TOKEN_FIELDS[:5]},
                response_index=torch.zeros(0, dtype=torch.long),
                num_pairs=0,
            )
        )
