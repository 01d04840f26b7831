"""Merged distributions against the formula in numpy's float64, and what weights are taken."""

import math

import numpy as np
import pytest
import torch

from sparsepo.merging import (
    Form,
    WeightMap,
    checked_weights,
    merge_logps,
    mixed_label_logps,
    product_label_logps,
)

K, N, V = 3, 5, 41


def policies(seed: int = 0) -> torch.Tensor:
    """[K, N, V] normalised log-probabilities, far apart."""
    chance = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(K, N, V, generator=chance, dtype=torch.float64)).log_softmax(-1)


def row_weights() -> torch.Tensor:
    chance = torch.Generator().manual_seed(1)
    return torch.rand(N, K, generator=chance, dtype=torch.float64).softmax(-1)


def by_formula(logps: torch.Tensor, weights: torch.Tensor, form: Form) -> np.ndarray:
    """Probabilities [N, V], token by token out of the definition."""
    p, w = np.exp(logps.double().numpy()), weights.double().numpy()
    found = np.zeros((p.shape[1], p.shape[2]))
    for n in range(found.shape[0]):
        for v in range(found.shape[1]):
            terms = [(w[n, k], p[k, n, v]) for k in range(p.shape[0])]
            found[n, v] = (
                sum(own * q for own, q in terms)
                if form == "mixture"
                else math.prod(q**own for own, q in terms if own != 0)
            )
    return found / (1 if form == "mixture" else found.sum(-1, keepdims=True))


@pytest.mark.parametrize("form", ["mixture", "product"])
def test_the_merged_distribution_is_the_formula(form: Form) -> None:
    logps, weights = policies(), row_weights()
    found = merge_logps(logps, weights, form)
    np.testing.assert_allclose(found.exp().numpy(), by_formula(logps, weights, form), rtol=1e-12)
    in_float32 = merge_logps(logps.float(), weights.float(), form)
    np.testing.assert_allclose(in_float32.exp(), by_formula(logps, weights, form), rtol=2e-5)
    assert in_float32.dtype == torch.float32


def test_a_product_moves_away_from_a_policy_of_negative_weight() -> None:
    logps = policies()
    weights = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64).expand(N, K)
    found = merge_logps(logps, weights, "product").exp().numpy()
    np.testing.assert_allclose(found, by_formula(logps, weights, "product"), rtol=1e-12)


@pytest.mark.parametrize("form", ["mixture", "product"])
def test_a_one_hot_row_is_that_policy_bit_for_bit_among_others(form: Form) -> None:
    logps = policies().float()
    weights = row_weights().float()
    weights[1], weights[3] = torch.eye(K)[2], torch.eye(K)[0]
    found = merge_logps(logps, weights, form)
    assert torch.equal(found[1], logps[2, 1]) and torch.equal(found[3], logps[0, 3])
    assert not torch.equal(found[0], logps[0, 0])


@pytest.mark.parametrize("form", ["mixture", "product"])
def test_a_policy_without_weight_is_not_heard_even_of_impossible_tokens(form: Form) -> None:
    logps = policies()
    logps[2, :, :20] = -math.inf
    logps = logps.log_softmax(-1)
    weights = torch.tensor([0.3, 0.7, 0.0], dtype=torch.float64).expand(N, K)
    found = merge_logps(logps, weights, form)
    assert torch.equal(found, merge_logps(logps[:2], weights[:, :2], form))
    heard = torch.tensor([0.3, 0.6, 0.1], dtype=torch.float64).expand(N, K)
    found = merge_logps(logps, heard, form)
    assert bool(found[:, :20].isneginf().all()) == (form == "product")
    np.testing.assert_allclose(found.exp().sum(-1), 1, rtol=1e-12)


def test_shapes_and_forms_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\(3, 5, 41\), weights \(3, 5\): must be"):
        merge_logps(policies(), row_weights().T, "mixture")
    with pytest.raises(ValueError, match="form = 'sum': must be mixture or product"):
        merge_logps(policies(), row_weights(), "sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be \[K, n\] and \[n, K\]"):
        mixed_label_logps(policies()[..., 0], row_weights().T)


@pytest.mark.parametrize("form", ["mixture", "product"])
def test_likelihoods_of_labels_and_their_gradients_are_those_of_the_whole(form: Form) -> None:
    """Against autograd through the normalised distribution over the whole vocabulary."""
    logps = policies()
    labels = torch.tensor([0, 7, 40, 3, 3])
    own = logps.gather(-1, labels.expand(K, N)[..., None])[..., 0]
    scores = torch.randn(N, K, dtype=torch.float64, requires_grad=True)
    outer = torch.arange(1.0, N + 1, dtype=torch.float64)

    def gradient(values: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((values * outer).sum(), scores, retain_graph=True)[0]

    weights = scores.softmax(-1)
    whole = merge_logps(logps, weights, form)[torch.arange(N), labels]
    found = (
        mixed_label_logps(own, weights)
        if form == "mixture"
        else product_label_logps(own, weights, lambda: logps)
    )
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(found), gradient(whole), rtol=1e-10, atol=1e-12)
    assert float(gradient(whole).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("weights", "form", "said"),
    [
        ((0.5, 0.5, 0.0), "mixture", "must be 2, one per model"),
        ((0.5, math.nan), "mixture", "must be finite"),
        ((0.5, math.inf), "product", "must be finite"),
        ((1.5, -0.5), "mixture", "a mixture takes none below 0"),
        ((0.0, 0.0), "mixture", "their sum must be above 0"),
        ((0.5, -0.5), "product", "their sum must be above 0"),
        ((-1.0, -1.0), "product", "their sum must be above 0"),
    ],
)
def test_weights_that_are_refused(weights: tuple[float, ...], form: Form, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked_weights(weights, 2, form)


def test_weights_are_divided_by_their_sum() -> None:
    assert checked_weights((3, 1), 2, "mixture") == ((0.75, 0.25), True)
    assert checked_weights((0.25, 0.75), 2, "mixture") == ((0.25, 0.75), False)
    assert checked_weights((3.0, -1.0), 2, "product") == ((1.5, -0.5), True)
    assert checked_weights((0.0, 1 + 1e-9), 2, "product") == ((0.0, 1.0), False)


def test_a_map_begins_with_equal_weights_and_does_not_see_the_scale_of_states() -> None:
    """softmax(W h / |h| + b), written out."""
    states = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    weight_map = WeightMap(6, 3)
    assert torch.equal(weight_map(states), torch.full((4, 3), 1 / 3))
    with torch.no_grad():
        weight_map.linear.weight.copy_(torch.arange(18.0).view(3, 6) / 10)
        weight_map.linear.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    h = states.double().numpy()
    h = h / np.sqrt((h**2).sum(-1, keepdims=True))
    logits = h @ (np.arange(18.0).reshape(3, 6) / 10).T + np.array([0.1, -0.2, 0.3])
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(weight_map(states).detach(), expected, atol=1e-5)
    np.testing.assert_allclose(weight_map(100 * states).detach(), expected, atol=1e-5)
