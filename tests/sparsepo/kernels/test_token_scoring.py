"""The fused primitive against its readable definition: values and gradients."""

import math

import pytest
import torch

from sparsepo.kernels.token_scoring import (
    LMHead,
    score_tokens,
    score_tokens_and_moments,
    score_tokens_eager,
)

VARIANTS = {
    "plain": {},
    "bias": {"with_bias": True},
    "softcap": {"softcap": 5.0},
    "scale": {"scale": 0.3},
    "everything": {"with_bias": True, "softcap": 3.0, "scale": 1.7},
}


def build(
    tokens: int,
    vocab: int,
    width: int,
    with_bias: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
):
    generator = torch.Generator().manual_seed(tokens * 1000 + vocab)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight = draw(tokens, width).requires_grad_(), draw(vocab, width).requires_grad_()
    bias = draw(vocab).requires_grad_() if with_bias else None
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    reference = (
        draw(tokens, width + 2),
        LMHead(draw(vocab, width + 2), draw(vocab) if with_bias else None, softcap, scale),
    )
    return hidden, LMHead(weight, bias, softcap, scale), labels, *reference


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("tokens", "chunk"), [(1, 1), (7, 3), (64, 64), (65, 16)])
def test_fused_equals_eager_in_values_and_gradients(variant: str, tokens: int, chunk: int) -> None:
    results = []
    for fused in (True, False):
        hidden, head, labels, ref_hidden, ref_head = build(tokens, 11, 5, **VARIANTS[variant])
        logps, kl = (
            score_tokens(hidden, head, labels, ref_hidden, ref_head, chunk)
            if fused
            else score_tokens_eager(hidden, head, labels, ref_hidden, ref_head)
        )
        assert kl is not None
        upstream = torch.linspace(-1, 2, tokens, dtype=torch.float64)
        (logps @ upstream + kl @ upstream.flip(0)).backward()
        grads = [hidden.grad, head.weight.grad] + (
            [head.bias.grad] if head.bias is not None else []
        )
        results.append([logps, kl, *grads])
    for fused_value, eager_value in zip(*results, strict=True):
        torch.testing.assert_close(fused_value, eager_value, atol=1e-12, rtol=1e-10)


def test_gradcheck_float64() -> None:
    hidden, head, labels, ref_hidden, ref_head = build(3, 5, 4, with_bias=True, softcap=4.0)
    assert torch.autograd.gradcheck(
        lambda h, w, b: score_tokens(
            h, LMHead(w, b, head.softcap), labels, ref_hidden, ref_head, 2
        ),
        (hidden, head.weight, head.bias),
    )


def test_tied_head_accumulates_both_uses() -> None:
    """d/dW of sum(logps) with hidden = E[ids] W-tied: the gradient through the input and through
    the head add up.
    """
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    ids, labels = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 1])
    score_tokens(table[ids] * 2, LMHead(table), labels)[0].sum().backward()
    fused = table.grad.clone()
    table.grad = None
    score_tokens_eager(table[ids] * 2, LMHead(table), labels)[0].sum().backward()
    torch.testing.assert_close(fused, table.grad)


def test_kl_by_hand_and_its_direction() -> None:
    """Two tokens of vocabulary: reference (3/4, 1/4), policy (1/2, 1/2).

    KL(reference || policy) = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812; the other direction is 0.143841.
    """
    policy, reference = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    head = LMHead(torch.eye(2))
    _, kl = score_tokens(policy, head, torch.tensor([0]), reference, head)
    assert kl is not None
    assert kl.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-7)
    _, other = score_tokens(reference, head, torch.tensor([0]), policy, head)
    assert other is not None
    assert other.item() == pytest.approx(
        0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25), abs=1e-7
    )


def test_kl_of_a_model_with_itself_is_zero() -> None:
    hidden, head, labels, _, _ = build(20, 50, 8)
    _, kl = score_tokens(hidden, head, labels, hidden.detach(), head.detached())
    assert kl is not None
    torch.testing.assert_close(kl, torch.zeros_like(kl), atol=1e-14, rtol=0)


def test_bfloat16_states_are_scored_in_float32() -> None:
    hidden, head, labels, _, _ = build(40, 30, 8)
    low = LMHead(head.weight.detach().bfloat16())
    logps, _ = score_tokens(hidden.detach().bfloat16(), low, labels)
    exact, _ = score_tokens_eager(
        hidden.detach().bfloat16().double(), LMHead(low.weight.double()), labels
    )
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), exact, atol=0.06, rtol=0)


def test_disagreeing_shapes_are_named() -> None:
    hidden, head, labels, ref_hidden, ref_head = build(4, 6, 3)
    with pytest.raises(ValueError, match=r"hidden \(4, 3\) and labels \(3,\)"):
        score_tokens(hidden, head, labels[:3])
    with pytest.raises(ValueError, match="reference_hidden has 3 tokens, hidden has 4"):
        score_tokens(hidden, head, labels, ref_hidden[:3], ref_head)
    with pytest.raises(ValueError, match=r"vocabulary \(5\) and the policy's \(6\)"):
        score_tokens(hidden, head, labels, ref_hidden, LMHead(ref_head.weight[:5]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels run on GPUs")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize(
    ("tokens", "vocab", "chunk"),
    [(1, 50304, None), (130, 4097, None), (131, 5000, 50), (0, 11, None)],
)
def test_kernels_equal_eager_in_float64(
    variant: str,
    dtype: torch.dtype,
    tolerance: float,
    with_reference: bool,
    tokens: int,
    vocab: int,
    chunk: int | None,
) -> None:
    """Values and gradients of the Triton path, relative to the largest of each; the inputs are
    rounded to the dtype first.
    """
    results = []
    for fused in (True, False):
        hidden, head, labels, ref_hidden, ref_head = build(tokens, vocab, 64, **VARIANTS[variant])
        kind = dtype if fused else torch.float64

        def moved(value: torch.Tensor | None, kind: torch.dtype = kind) -> torch.Tensor | None:
            return (
                None
                if value is None
                else (value.detach() * 0.2).to("cuda", dtype).to(kind).requires_grad_()
            )

        states, weight, bias = moved(hidden), moved(head.weight), moved(head.bias)
        policy = LMHead(weight, bias, head.softcap, head.scale)
        reference = LMHead(
            moved(ref_head.weight).detach(),
            None if ref_head.bias is None else moved(ref_head.bias).detach(),
            ref_head.softcap,
            ref_head.scale,
        )
        other = (moved(ref_hidden).detach(), reference) if with_reference else ()
        call = score_tokens if fused else score_tokens_eager
        logps, kl = call(
            states, policy, labels.cuda(), *other, **({"chunk_tokens": chunk} if fused else {})
        )
        upstream = torch.linspace(-1, 2, tokens, device="cuda", dtype=logps.dtype)
        (logps @ upstream + (kl @ upstream.flip(0) if kl is not None else 0)).backward()
        results.append([logps, kl, states.grad, weight.grad, None if bias is None else bias.grad])
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if expected is not None and expected.numel():
            # A small KL is the difference of two log-sum-exps of about 10, each known to 1e-6.
            allowed = max(
                4e-6 if expected is results[1][1] else 0.0, tolerance * float(expected.abs().max())
            )
            assert float((found.double() - expected).abs().max()) <= allowed


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_gradients_nobody_wants_are_left_out(frozen: str) -> None:
    hidden, head, labels, ref_hidden, ref_head = build(9, 7, 4)
    expected_hidden, expected_weight, *_ = build(9, 7, 4)
    score_tokens_eager(expected_hidden, expected_weight, labels, ref_hidden, ref_head)[
        0
    ].sum().backward()
    states = hidden.detach() if frozen in ("hidden", "both") else hidden
    weight = head.weight.detach() if frozen in ("weight", "both") else head.weight
    logps, _ = score_tokens(states, LMHead(weight), labels, ref_hidden, ref_head, 4)
    if frozen == "both":
        assert not logps.requires_grad
        return
    logps.sum().backward()
    found, wanted = (
        (head.weight.grad, expected_weight.weight.grad)
        if frozen == "hidden"
        else (hidden.grad, expected_hidden.grad)
    )
    torch.testing.assert_close(found, wanted)
    assert (hidden if frozen == "hidden" else head.weight).grad is None


def dense_moments(states: torch.Tensor, head: LMHead) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy and sum of squares from the whole softmax."""
    linear = states @ head.weight.T + (0 if head.bias is None else head.bias)
    linear = linear * head.scale
    logits = linear if head.softcap is None else head.softcap * (linear / head.softcap).tanh()
    probs = logits.softmax(-1)
    return torch.special.entr(probs).sum(-1), (probs * probs).sum(-1)


def test_moments_by_hand() -> None:
    """Probabilities (3/4, 1/4): entropy ln 4 - 3/4 ln 3 = 0.562335, squares 9/16 + 1/16 = 5/8.

    Of equal ones of four tokens: ln 4 and 1/4.
    """
    logits = torch.tensor([[math.log(3.0), 0.0, -1e4, -1e4], [7.0, 7.0, 7.0, 7.0]]).double()
    _, kl, (entropy, square_sum) = score_tokens_and_moments(
        logits, LMHead(torch.eye(4).double()), torch.tensor([0, 1])
    )
    assert kl is None
    assert entropy.tolist() == pytest.approx([math.log(4) - 0.75 * math.log(3), math.log(4)])
    assert square_sum.tolist() == pytest.approx([0.625, 0.25])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("tokens", "chunk"), [(1, 1), (7, 3), (65, 16)])
def test_moments_equal_the_dense_ones_and_change_nothing_else(
    variant: str, tokens: int, chunk: int
) -> None:
    hidden, head, labels, ref_hidden, ref_head = build(tokens, 11, 5, **VARIANTS[variant])
    gradients = []
    for call in (score_tokens, score_tokens_and_moments):
        hidden.grad = head.weight.grad = None
        logps, kl, *moments = call(hidden, head, labels, ref_hidden, ref_head, chunk)
        (logps.sum() + 3 * kl.sum()).backward()
        gradients.append([logps, kl, hidden.grad, head.weight.grad])
    for found, expected in zip(*gradients, strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(moments[0], dense_moments(hidden, head), strict=True):
        assert not found.requires_grad
        torch.testing.assert_close(found, expected.detach(), atol=1e-12, rtol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels run on GPUs")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize(
    ("tokens", "vocab", "chunk"), [(1, 50304, None), (130, 4097, None), (131, 5000, 50), (0, 11, 7)]
)
def test_moments_of_the_kernels_equal_those_in_float64(
    variant: str,
    dtype: torch.dtype,
    tolerance: float,
    with_reference: bool,
    tokens: int,
    vocab: int,
    chunk: int | None,
) -> None:
    """Logits far apart as well as close ones: the largest may come in any block."""
    hidden, head, labels, ref_hidden, ref_head = build(tokens, vocab, 64, **VARIANTS[variant])
    for spread in (0.2, 1.5) if dtype == torch.float32 else (0.2,):

        def moved(value: torch.Tensor, spread: float = spread) -> torch.Tensor:
            return (value.detach() * spread).to("cuda", dtype)

        bias = None if head.bias is None else moved(head.bias)
        policy = LMHead(moved(head.weight), bias, head.softcap, head.scale)
        other = (
            (moved(ref_hidden), LMHead(moved(ref_head.weight), bias, head.softcap, head.scale))
            if with_reference
            else ()
        )
        logps, kl, found = score_tokens_and_moments(
            moved(hidden), policy, labels.cuda(), *other, chunk_tokens=chunk
        )
        alone = score_tokens(moved(hidden), policy, labels.cuda(), *other, chunk_tokens=chunk)
        assert torch.equal(logps, alone[0])
        assert kl is None or torch.equal(kl, alone[1])
        exact = dense_moments(
            moved(hidden).double(),
            LMHead(
                policy.weight.double(),
                None if bias is None else bias.double(),
                head.softcap,
                head.scale,
            ),
        )
        # Logits grow with the square of the spread, and so does what float32 loses of them.
        allowed = tolerance * max(1.0, 10 * spread**2)
        for value, expected in zip(found, exact, strict=True):
            assert value.dtype == torch.float32
            if tokens:
                scale = max(1.0, float(expected.max()))
                assert float((value.double() - expected).abs().max()) <= allowed * scale
