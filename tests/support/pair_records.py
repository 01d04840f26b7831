"""Records that the objectives' tests share."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from sparsepo import TokenScores
from sparsepo.objectives import Objective

TOKEN_FIELDS = (
    "policy_logps",
    "reference_logps",
    "token_kl",
    "reward_mask",
    "kl_mask",
    "scorer_log_ratios",
    "external_weights",
    "policy_square_sum",
)


def random_scores(
    lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float64
) -> TokenScores:
    """Random records with every field; lengths alternate chosen, rejected."""
    g = torch.Generator().manual_seed(seed)
    total, pairs = sum(lengths), len(lengths) // 2

    def draw() -> torch.Tensor:
        return torch.rand(total, generator=g, dtype=dtype)

    index = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    record = TokenScores(
        -3 * draw(),
        -3 * draw(),
        draw(),
        draw(),
        draw(),
        index,
        pairs,
        scorer_log_ratios=4 * draw() - 2,
        prompt_embedding=torch.randn(pairs, 3, generator=g, dtype=dtype),
        preference_scores=torch.tensor([[0.9, 0.1]], dtype=torch.float64).repeat(pairs, 1),
    )
    return replace(record, external_weights=2 * draw(), policy_square_sum=draw())


def by_hand(**fields: Any) -> TokenScores:
    """One pair: chosen two tokens with log ratios 0.5, -0.1 and KL 0.2, 0.4; rejected one token,
    log ratio 0.3, KL 0.6.
    """
    record = TokenScores(
        policy_logps=torch.tensor([-1.0, -2.1, -0.7], dtype=torch.float64),
        reference_logps=torch.tensor([-1.5, -2.0, -1.0], dtype=torch.float64),
        token_kl=torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64),
        reward_mask=torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64),
        kl_mask=torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64),
        response_index=torch.tensor([0, 0, 1]),
        num_pairs=1,
    )
    return replace(record, **fields)


def loss_of(logit: float) -> float:
    """-log sigmoid, by hand."""
    return math.log(1 + math.exp(-logit))


def swapped(record: TokenScores) -> TokenScores:
    """Chosen and rejected exchanged, canonical order restored."""
    index = record.response_index ^ 1
    order = torch.argsort(index, stable=True)
    moved = {
        name: value[order] for name in TOKEN_FIELDS if (value := getattr(record, name)) is not None
    }
    return replace(record, response_index=index[order], **moved)


def at_reference(record: TokenScores) -> TokenScores:
    """The same pairs while the policy still is the reference."""
    return replace(
        record, policy_logps=record.reference_logps, token_kl=torch.zeros_like(record.policy_logps)
    )


def margin(output: Any) -> torch.Tensor:
    return output.chosen_rewards - output.rejected_rewards


def assert_gradcheck(objective: Objective, record: TokenScores, *names: str) -> None:
    """Numerical against analytical gradients of the losses, in float64, for the named per-token
    fields.
    """

    def losses(*values: torch.Tensor) -> torch.Tensor:
        return objective(replace(record, **dict(zip(names, values, strict=True)))).losses

    assert torch.autograd.gradcheck(
        losses, [getattr(record, n).clone().requires_grad_() for n in names]
    )


def gradient_of(
    objective: Objective | Callable[[TokenScores], Any], record: TokenScores, name: str
) -> torch.Tensor:
    value = getattr(record, name).clone().requires_grad_()
    objective(replace(record, **{name: value})).losses.sum().backward()
    assert value.grad is not None
    return value.grad
