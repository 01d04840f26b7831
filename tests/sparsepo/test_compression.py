"""Compact features: what they keep, what they bound, and the top-k KL's gradient."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sparsepo.compression import (
    pack_states,
    pack_topk,
    topk_of,
    unpack_states,
    unpack_topk,
)
from sparsepo.kernels.token_scoring import LMHead, score_tokens, score_tokens_eager
from sparsepo.packed_sizes import state_bytes, topk_bytes


def case(
    seed: int, tokens: int = 9, vocabulary: int = 23
) -> tuple[torch.Tensor, LMHead, torch.Tensor, torch.Tensor, LMHead]:
    generator = torch.Generator().manual_seed(seed)
    hidden, reference = torch.randn(2, tokens, 6, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, vocabulary, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden, LMHead(weights[0], softcap=4.0), labels, reference, LMHead(weights[1])


def test_topk_keeps_the_likeliest_tokens_and_the_mass_of_the_rest() -> None:
    _, _, _, reference, head = case(0)
    found = topk_of(reference, head, 5)
    probabilities = head.logits(reference).softmax(-1)
    for token in range(9):
        order = sorted(range(23), key=lambda v: -float(probabilities[token, v]))
        assert found.ids[token].tolist() == order[:5]
        assert float(found.tail_logps[token].exp()) == pytest.approx(
            sum(float(probabilities[token, v]) for v in order[5:]), rel=1e-5
        )
    packed = pack_topk(found)
    assert packed.shape == (9, topk_bytes(5)) and packed.dtype == torch.uint8
    back = unpack_topk(packed)
    assert torch.equal(back.ids, found.ids)
    torch.testing.assert_close(back.logps, found.logps, atol=3e-3, rtol=0)
    torch.testing.assert_close(back.logps.exp().sum(1) + back.tail_logps.exp(), torch.ones(9))
    with pytest.raises(
        ValueError, match="k = 23: must be above 0 and below the vocabulary's 23 tokens"
    ):
        topk_of(reference, head, 23)


@given(st.integers(0, 10_000), st.integers(1, 21))
@settings(max_examples=30, deadline=None)
def test_topk_divergence_bounds_the_exact_one_and_grows_with_k(seed: int, k: int) -> None:
    hidden, head, labels, reference, reference_head = case(seed)
    exact = score_tokens_eager(hidden, head, labels, reference, reference_head)[1]
    small, large = (
        score_tokens(
            hidden,
            head,
            labels,
            reference_topk=topk_of(reference, reference_head, size),
            chunk_tokens=4,
        )[1]
        for size in (k, k + 1)
    )
    assert exact is not None and small is not None and large is not None
    assert (
        bool((small >= -1e-6).all())
        and bool((small <= large + 1e-6).all())
        and bool((large <= exact + 1e-6).all())
    )


def test_topk_of_all_but_one_token_is_the_exact_divergence() -> None:
    """k = V - 1: the tail is one token, so nothing is lost."""
    hidden, head, labels, reference, reference_head = case(3)
    exact = score_tokens_eager(hidden, head, labels, reference, reference_head)[1]
    found = score_tokens(
        hidden, head, labels, reference_topk=topk_of(reference, reference_head, 22)
    )[1]
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-6)


def test_topk_divergence_has_the_gradient_of_its_definition() -> None:
    """Against autograd through -sum p log q - p_tail log(sum of the other q), plain torch."""
    hidden, head, labels, reference, reference_head = case(4)
    topk = topk_of(reference, reference_head, 4)
    # Double precision parts that sum to one exactly, as the formula of the gradient assumes.
    parts = torch.cat([topk.logps.double(), topk.tail_logps.double()[:, None]], 1).log_softmax(-1)
    topk = type(topk)(topk.ids, parts[:, :-1], parts[:, -1])
    upstream = torch.linspace(-1, 2, 9, dtype=torch.float64)
    gradients = []
    for fused in (True, False):
        states, weight = hidden.clone().requires_grad_(), head.weight.clone().requires_grad_()
        own = LMHead(weight, softcap=head.softcap)
        if fused:
            kl = score_tokens(states, own, labels, reference_topk=topk, chunk_tokens=4)[1]
        else:
            q = own.logits(states).softmax(-1)
            kept = q.gather(1, topk.ids)
            kl = (
                parts.exp() * (parts - torch.cat([kept, 1 - kept.sum(1, keepdim=True)], 1).log())
            ).sum(1)
        assert kl is not None
        (kl @ upstream).backward()
        gradients.append((kl, states.grad, weight.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-7)


@given(st.integers(0, 10_000), st.integers(1, 200), st.floats(1e-3, 1e4))
@settings(max_examples=40, deadline=None)
def test_int8_states_err_by_at_most_a_252nd_of_their_blocks_largest(
    seed: int, width: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = size * torch.randn(3, 2, width, generator=generator)
    states[0, 0, 0] = 300 * size  # a huge activation
    states[2, 1] = 0
    packed = pack_states(states)
    assert packed.shape == (3, state_bytes(2, width)) and packed.dtype == torch.uint8
    back = unpack_states(packed, 2, width, torch.float32)
    for start in range(0, width, 64):
        block, found = states[..., start : start + 64], back[..., start : start + 64]
        allowed = block.abs().amax(-1, keepdim=True) / 252 * 1.0001
        assert bool(((block - found).abs() <= allowed).all())
    assert torch.equal(back[2, 1], states[2, 1])


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="10 bytes per token: 2 layers of 64 take 132"):
        unpack_states(torch.zeros(3, 10, dtype=torch.uint8), 2, 64, torch.float32)
