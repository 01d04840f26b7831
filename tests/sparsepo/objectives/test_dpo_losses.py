"""The losses and divergences of `dpo`: by_hand's R are 0.4 (chosen, two tokens) and 0.3 (rejected,
one).
"""

import math
from dataclasses import replace
from typing import Any, get_args

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

from sparsepo import DPO, LOSSES, TokenScores
from sparsepo.objectives.equations import DIVERGENCES, EQUATIONS
from sparsepo.objectives.losses import Divergence, SequenceLoss


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# beta 0.5: z = 0.05, rewards 0.2 and 0.15; e is 0.1 where one is read.
BY_HAND: dict[str, float] = {
    "sigmoid": 0.9 * loss_of(0.05) + 0.1 * loss_of(-0.05),
    # Means per token 0.2 and 0.3.
    "sigmoid_norm": 0.9 * loss_of(-0.05) + 0.1 * loss_of(0.05),
    "hinge": 0.95,
    "robust": (0.9 * loss_of(0.05) - 0.1 * loss_of(-0.05)) / 0.8,
    "exo": s(0.05) * math.log(s(0.05) / 0.9) + s(-0.05) * math.log(s(-0.05) / 0.1),
    "apo_zero": 1 - s(0.2) + s(0.15),
    "apo_down": s(0.2) + 1 - s(0.05),
    "bco_pair": loss_of(0.2) + loss_of(-0.15),
    "nca": loss_of(0.2) + 0.5 * loss_of(-0.2) + 0.5 * loss_of(-0.15),
    "sppo": (0.4 - 1) ** 2 + (0.3 + 1) ** 2,
    "discopop": (1 - s(1.0)) * loss_of(0.05) + s(1.0) * math.exp(-0.05),
}
AT_REFERENCE: dict[str, float] = {
    "sigmoid": math.log(2),
    "sigmoid_norm": math.log(2),
    "hinge": 1.0,
    "robust": math.log(2),
    "exo": -math.log(2) - 0.5 * math.log(0.9 * 0.1),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "bco_pair": 2 * math.log(2),
    "nca": 2 * math.log(2),
    "sppo": 2.0,
    "discopop": 0.5 * math.log(2) + 0.5,
}
DIVERGENCE_BY_HAND = {
    "reverse": (0.4, 0.3),
    "forward": (1 - math.exp(-0.4), 1 - math.exp(-0.3)),
    "js": (math.log(2 * s(0.4)), math.log(2 * s(0.3))),
    "alpha": ((math.exp(-0.2) - 1) / -0.5, (math.exp(-0.15) - 1) / -0.5),
}


def options(loss: str) -> dict[str, Any]:
    return {"loss": loss} | (
        {} if LOSSES[loss].label_smoothing == "unread" else {"label_smoothing": 0.1}
    )


def test_tables_are_complete() -> None:
    assert list(LOSSES) == list(EQUATIONS) == list(get_args(SequenceLoss)) == list(BY_HAND)
    assert list(DIVERGENCES) == list(get_args(Divergence)) == list(DIVERGENCE_BY_HAND)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_by_hand(loss: str) -> None:
    output = DPO(0.5, **options(loss))(by_hand())
    assert output.losses.item() == pytest.approx(BY_HAND[loss], abs=1e-12)
    rewards = (0.1, 0.15) if loss == "sigmoid_norm" else (0.2, 0.15)
    assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == pytest.approx(
        rewards, abs=1e-12
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_at_the_reference(loss: str) -> None:
    output = DPO(0.5, **options(loss))(at_reference(random_scores([3, 5, 2, 2])))
    assert output.losses.tolist() == pytest.approx([AT_REFERENCE[loss]] * 2, abs=1e-12)
    assert margin(output).tolist() == [0, 0]


def dense(loss: str, record: TokenScores, beta: float, e: float) -> torch.Tensor:
    """The formulas over a padded tensor of log ratios, written out without any stable form."""
    longest = int(record.lengths().max())
    padded = torch.zeros(record.num_pairs, 2, longest, dtype=torch.float64)
    mask = torch.zeros_like(padded, dtype=torch.bool)
    for pair in range(record.num_pairs):
        for side in range(2):
            mask[pair, side, : int(record.lengths()[pair, side])] = True
    padded = padded.masked_scatter(mask, record.policy_logps - record.reference_logps)
    chosen, rejected = (padded * mask).sum(2).unbind(1)
    if loss == "sigmoid_norm":
        chosen, rejected = ((padded * mask).sum(2) / mask.sum(2)).unbind(1)

    def p(x: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + torch.exp(-x))

    z, w, r = beta * (chosen - rejected), beta * chosen, beta * rejected
    mix = p(z / 0.05)
    return {
        "sigmoid": lambda: -(1 - e) * p(z).log() - e * p(-z).log(),
        "sigmoid_norm": lambda: -(1 - e) * p(z).log() - e * p(-z).log(),
        "hinge": lambda: torch.relu(1 - z),
        "robust": lambda: (-(1 - e) * p(z).log() + e * p(-z).log()) / (1 - 2 * e),
        "exo": lambda: p(z) * (p(z) / (1 - e)).log() + p(-z) * (p(-z) / e).log(),
        "apo_zero": lambda: 1 - p(w) + p(r),
        "apo_down": lambda: p(w) + 1 - p(z),
        "bco_pair": lambda: -p(w).log() - p(-r).log(),
        "nca": lambda: -p(w).log() - 0.5 * p(-w).log() - 0.5 * p(-r).log(),
        "sppo": lambda: (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2,
        "discopop": lambda: -(1 - mix) * p(z).log() + mix * torch.exp(-z),
    }[loss]()


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_are_those_of_the_dense_formulas(loss: str) -> None:
    record = random_scores([3, 5, 2, 2, 7, 1], seed=2)
    e = options(loss).get("label_smoothing", 0.0)
    objective = DPO(0.3, **options(loss))
    torch.testing.assert_close(objective(record).losses, dense(loss, record, 0.3, e))
    policy = record.policy_logps.clone().requires_grad_()
    dense(loss, replace(record, policy_logps=policy), 0.3, e).sum().backward()
    torch.testing.assert_close(gradient_of(objective, record, "policy_logps"), policy.grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss: str) -> None:
    """Numerically; exchanging chosen and rejected negates the margin of every loss."""
    record = random_scores([2, 3, 1, 2])
    assert_gradcheck(DPO(0.7, nll_coef=0.5, **options(loss)), record, "policy_logps")
    objective = DPO(0.7, **options(loss))
    torch.testing.assert_close(margin(objective(swapped(record))), -margin(objective(record)))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergences_by_hand(divergence: str) -> None:
    output = DPO(0.5, divergence=divergence)(by_hand())
    chosen, rejected = DIVERGENCE_BY_HAND[divergence]
    assert output.losses.item() == pytest.approx(loss_of(0.5 * (chosen - rejected)), abs=1e-12)
    assert output.chosen_rewards.item() == pytest.approx(0.5 * chosen, abs=1e-12)
    assert output.rejected_rewards.item() == pytest.approx(0.5 * rejected, abs=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("loss", [name for name in LOSSES if LOSSES[name].is_of_difference])
def test_divergences_with_every_loss_that_takes_one(loss: str, divergence: str) -> None:
    """At the reference as with R; gradients numerically; the margin negates."""
    objective = DPO(0.7, divergence=divergence, **options(loss))
    record = random_scores([2, 3, 1, 2])
    found = objective(at_reference(record)).losses.tolist()
    assert found == pytest.approx([AT_REFERENCE[loss]] * 2, abs=1e-12)
    assert_gradcheck(objective, record, "policy_logps")
    torch.testing.assert_close(margin(objective(swapped(record))), -margin(objective(record)))


def test_the_alpha_divergence_is_between_forward_and_reverse() -> None:
    record = random_scores([2, 3, 1, 2])
    for alpha, divergence in ((1e-7, "forward"), (1 - 1e-7, "reverse")):
        near = DPO(0.7, divergence="alpha", divergence_alpha=alpha)(record)
        torch.testing.assert_close(
            near.losses, DPO(0.7, divergence=divergence)(record).losses, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_far_from_the_reference_losses_and_gradients_are_finite(loss: str, divergence: str) -> None:
    """In float32, where e^100 is infinite."""
    if divergence != "reverse" and not LOSSES[loss].is_of_difference:
        return
    record = random_scores([2, 2, 2, 2], dtype=torch.float32)
    far = torch.tensor([-90.0, -90, -1, -1, -1, -1, -90, -90])
    record = replace(record, policy_logps=far, reference_logps=torch.full_like(far, -1))
    objective = DPO(0.1, divergence=divergence, **options(loss))
    assert objective(record).losses.isfinite().all()
    assert gradient_of(objective, record, "policy_logps").isfinite().all()


def test_betas_are_the_losses_own() -> None:
    """Per-token means hardly feel 0.1."""
    assert (DPO().beta, DPO(loss="hinge").beta, DPO(loss="sigmoid_norm").beta) == (0.1, 0.1, 5.0)
    assert DPO(0.1, loss="sigmoid_norm").beta == 0.1


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"loss": "hinges"}, "loss='hinges': allowed are sigmoid, sigmoid_norm, hinge, robust"),
        ({"divergence": "kl"}, "divergence='kl': allowed are reverse, forward, js, alpha"),
        (
            {"loss": "hinge", "label_smoothing": 0.1},
            "label_smoothing=0.1 with loss=hinge, which reads none: leave it out; sigmoid, "
            "sigmoid_norm, robust, exo read it",
        ),
        ({"loss": "exo"}, "loss=exo needs label_smoothing > 0; its paper's is 0.001"),
        (
            {"loss": "nca", "divergence": "js"},
            "divergence=js with loss=nca, which reads more than the difference of both responses: "
            "allowed with sigmoid, sigmoid_norm, hinge, robust, exo, discopop",
        ),
        (
            {"divergence": "js", "divergence_alpha": 0.3},
            "divergence_alpha=0.3 with divergence=js, which reads none",
        ),
        (
            {"divergence": "alpha", "divergence_alpha": 1.0},
            r"divergence_alpha=1.0: must be above 0 \(divergence=forward\) and below 1",
        ),
        ({"divergence": "alpha", "divergence_alpha": 0.0}, "divergence_alpha=0.0: must be above 0"),
        ({"divergence": "alpha", "divergence_alpha": math.nan}, "divergence_alpha=nan: must be"),
    ],
)
def test_options_that_a_loss_would_ignore_are_refused(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        DPO(**wrong)
