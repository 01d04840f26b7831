"""Unbalanced optimal transport between a pair's responses, against a slow solver."""

import math

import numpy as np
import pytest
import torch
from producers import INDEX, LENGTHS, assert_weighted_loss, weights_of

from sparsepo import Features, TransportMask


def states(width: int = 6, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(len(INDEX), width, generator=g, dtype=torch.float64)


def slow_plan(cost: np.ndarray, reg: float, penalty: float) -> np.ndarray:
    """The formulas of POT's sinkhorn_unbalanced with masses of one and the KL form, in loops.

    u = (a / K v)^fi, v = (b / K' u)^fi, fi = reg_m / (reg_m + reg), K = a b' exp(-M / reg), until
    nothing changes any more.
    """
    rows, columns = cost.shape
    u, v = [1.0] * rows, [1.0] * columns
    fi = penalty / (penalty + reg)
    kernel = [[math.exp(-cost[i, j] / reg) for j in range(columns)] for i in range(rows)]
    for _ in range(20_000):
        before = [*u, *v]
        u = [
            (1.0 / math.fsum(kernel[i][j] * v[j] for j in range(columns))) ** fi
            for i in range(rows)
        ]
        v = [
            (1.0 / math.fsum(kernel[i][j] * u[i] for i in range(rows))) ** fi
            for j in range(columns)
        ]
        if max(abs(x / y - 1) for x, y in zip([*u, *v], before, strict=True)) < 1e-14:
            break
    return np.array([[u[i] * kernel[i][j] * v[j] for j in range(columns)] for i in range(rows)])


def slow_weights(values: torch.Tensor, reg: float, penalty: float) -> torch.Tensor:
    """One pair after the other: cost, plan, marginals and scale written out."""
    found = []
    for pair in range(len(LENGTHS) // 2):
        chosen, rejected = (values[2 * pair + side == INDEX].numpy() for side in (0, 1))
        cost = np.array([[math.dist(one, other) for other in rejected] for one in chosen])
        if cost.max() > 1:
            cost = cost / cost.max()
        plan = slow_plan(cost + 1e-6, reg, penalty)
        scale = min(len(chosen), len(rejected)) / plan.sum()
        found += [plan.sum(1) * scale, plan.sum(0) * scale]
    return torch.from_numpy(np.concatenate(found))


@pytest.mark.parametrize(("reg", "penalty"), [(0.1, 0.2), (0.5, 0.2), (0.1, 2.0)])
@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_weights_are_those_of_a_slow_solver(reg: float, penalty: float, scale: float) -> None:
    """Distances below 1, about 1 and far above; either source of states."""
    values = states(scale=scale)
    expected = slow_weights(values, reg, penalty)
    for source, feature in (("policy", "policy_hidden"), ("reference", "reference_hidden")):
        mask = TransportMask(source, reg, penalty)
        assert mask.requires == {feature}
        found = weights_of(mask, Features(**{feature: values}))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    single = weights_of(mask, Features(reference_hidden=values.float()))
    torch.testing.assert_close(single.double(), expected, atol=2e-5, rtol=2e-4)
    assert_weighted_loss(found)


def test_by_hand() -> None:
    """One token against two at the distances 0 and 1, reg = penalty = 1, so fi = 1/2.

    With K = (1, e^-1) the fixed point is u = (v1 + v2/e)^-1/2, v1 = u^-1/2, v2 = (u/e)^-1/2:
    u^-2 = u^-1/2 (1 + e^-1/2), so u = (1 + e^-1/2)^-2/3, and the parts of the plan are
    u v1 = u^1/2 and u v2 / e = (u/e)^1/2. The single token weighs 1, the others share 1 in the
    ratio 1 to e^-1/2.
    """
    values = torch.tensor([[0.0], [0.0], [1.0]]).double()
    found = weights_of(
        TransportMask(entropic_reg=1.0, marginal_penalty=1.0),
        Features(policy_hidden=values),
        [1, 2],
    )
    share = 1 / (1 + math.exp(-0.5))
    assert found.tolist() == pytest.approx([1.0, share, 1 - share], abs=1e-6)


def test_both_sides_sum_to_the_shorter_length_and_equal_states_weigh_alike() -> None:
    found = weights_of(TransportMask(), Features(policy_hidden=states()))
    sums = torch.zeros(len(LENGTHS), dtype=torch.float64).index_add(0, INDEX, found).view(-1, 2)
    shorter = torch.tensor(LENGTHS).view(-1, 2).amin(1).double()
    torch.testing.assert_close(sums, shorter[:, None].expand(-1, 2))
    alike = weights_of(TransportMask(), Features(policy_hidden=torch.ones(len(INDEX), 3)))
    lengths = torch.tensor(LENGTHS)
    expected = (lengths.view(-1, 2).amin(1, keepdim=True) / lengths.view(-1, 2)).flatten()[INDEX]
    torch.testing.assert_close(alike, expected)


def test_a_pairs_weights_do_not_depend_on_the_pairs_beside_it() -> None:
    """Nor on tokens whose states are far away: the cost is scaled within a pair."""
    values = states()
    values[INDEX == 4] *= 1e3
    whole = weights_of(TransportMask(), Features(policy_hidden=values))
    for pair in range(len(LENGTHS) // 2):
        own = pair == INDEX // 2
        alone = weights_of(
            TransportMask(), Features(policy_hidden=values[own]), LENGTHS[2 * pair : 2 * pair + 2]
        )
        torch.testing.assert_close(alone, whole[own], atol=1e-12, rtol=1e-12)


def test_options_out_of_range_are_named() -> None:
    for options, said in (
        ({"states": "both"}, "states='both' is not one of policy, reference"),
        ({"entropic_reg": 0.0}, "entropic_reg=0.0"),
        ({"marginal_penalty": math.inf}, "marginal_penalty=inf"),
    ):
        with pytest.raises(ValueError, match=said):
            TransportMask(**options)
    far = weights_of(
        TransportMask(marginal_penalty=1e18), Features(policy_hidden=states()[:2]), [1, 1]
    )
    assert far.tolist() == pytest.approx([1, 1])
