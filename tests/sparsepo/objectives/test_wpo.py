"""WPO: by_hand with R 0.4 and 0.3, log-probabilities -1, -2.1 (chosen) and -0.7 (rejected)."""

import math
from dataclasses import replace

import pytest
import torch
from pair_records import (
    at_reference,
    by_hand,
    gradient_of,
    loss_of,
    margin,
    random_scores,
)

from sparsepo import DPO, WPO, TokenScores
from sparsepo.objectives.losses import LOSSES


def with_sums(*sums: float) -> TokenScores:
    return by_hand(policy_square_sum=torch.tensor(sums, dtype=torch.float64))


def test_by_hand() -> None:
    """Sums of squares 0.5, 0.2, 0.9: mean surplus of chosen (-1 + 0.693 - 2.1 + 1.609) / 2, of
    rejected -0.7 + 0.105; beta 0.5.
    """
    weight = math.exp((-1 - math.log(0.5) - 2.1 - math.log(0.2)) / 2 + (-0.7 - math.log(0.9)))
    output = WPO(0.5, nll_coef=0.2)(with_sums(0.5, 0.2, 0.9))
    assert weight < 1
    assert output.losses.item() == pytest.approx(weight * loss_of(0.05) + 0.31, abs=1e-12)
    assert margin(output).item() == pytest.approx(0.05, abs=1e-12)
    assert float(output.metrics["weights/pair"][0]) == pytest.approx(weight, abs=1e-12)


def test_the_product_is_clamped_and_not_its_factors() -> None:
    """A chosen response of weight e^0.3 and a rejected one of e^-0.2: 1; with e^-0.4: e^-0.1."""
    for surplus, weight in ((-0.2, 1.0), (-0.4, math.exp(-0.1))):
        sums = [math.exp(-1 - 0.3), math.exp(-2.1 - 0.3), math.exp(-0.7 - surplus)]
        found = WPO(0.5)(with_sums(*sums)).losses.item()
        assert found == pytest.approx(weight * loss_of(0.05), abs=1e-12)


def test_against_the_distributions_themselves() -> None:
    """Sums over a vocabulary of 7, one response after the other, in another form: the ratio of a
    token's probability to its expectation under the policy, geometric mean.
    """
    lengths = [3, 5, 2, 2]
    logits = torch.randn(12, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    labels = torch.arange(12) % 7
    chosen = p[torch.arange(12), labels]
    record = replace(
        random_scores(lengths),
        policy_logps=chosen.log(),
        policy_square_sum=p.square().sum(1),
    )
    ratios = (chosen / (p * p).sum(1)).split(lengths)
    weights = [float(ratio.prod()) ** (1 / len(ratio)) for ratio in ratios]
    expected = [min(1.0, weights[0] * weights[1]), min(1.0, weights[2] * weights[3])]
    assert WPO().pair_weights(record).tolist() == pytest.approx(expected, abs=1e-12)


def test_limits() -> None:
    """Where each token has its expected probability it is DPO, whatever the loss; at the reference
    ln 2 times the weight.
    """
    record = random_scores([3, 5, 2, 2])
    even = replace(record, policy_square_sum=record.policy_logps.exp())
    for loss in LOSSES:
        smoothing = 0.1 if loss == "exo" else 0.0
        torch.testing.assert_close(
            WPO(loss=loss, label_smoothing=smoothing)(even).losses,
            DPO(loss=loss, label_smoothing=smoothing)(even).losses,
        )
    still = at_reference(record)
    torch.testing.assert_close(WPO()(still).losses, math.log(2) * WPO().pair_weights(still))


def test_weights_carry_no_gradient() -> None:
    """The gradient is DPO's times the weight."""
    record = random_scores([2, 3, 1, 2])
    weights = WPO(0.7).pair_weights(record)
    assert float((weights < 1).sum()) > 0
    expected = gradient_of(DPO(0.7), record, "policy_logps")
    torch.testing.assert_close(
        gradient_of(WPO(0.7), record, "policy_logps"),
        weights[record.response_index // 2] * expected,
    )
