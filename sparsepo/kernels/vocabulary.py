"""Triton kernels that walk a row of logits once.

They give what `score_tokens` needs of [n, V] without a second [n, V] tensor. Logits stay in the
dtype of the matrix product; every sum is float32. Used on CUDA; elsewhere token_scoring.py computes
the same with torch. Tests compare both with `score_tokens_eager`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of torch without CUDA brings no Triton
    triton = None

_BLOCK, _WARPS = 4096, 8


class RowStatistics(NamedTuple):
    """float32 [n] each, what one pass over the logits gives.

    In order: log-probability of the label, KL(reference || policy), log-sum-exp of policy and
    reference, entropy of the policy's distribution and the sum of its squared probabilities.
    """

    logps: Tensor
    kl: Tensor
    normalizer: Tensor
    reference_normalizer: Tensor
    entropy: Tensor
    square_sum: Tensor


class Shape(NamedTuple):
    """Linear logits to logits: softcap * tanh(scale * x / softcap), softcap None = no cap."""

    softcap: float | None
    scale: float


def is_available(tensor: Tensor) -> bool:
    """Whether the kernels can take this tensor."""
    return (
        triton is not None
        and tensor.is_cuda
        and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
    )


def row_statistics(
    logits: Tensor,
    shape: Shape,
    labels: Tensor,
    reference: Tensor | None,
    reference_shape: Shape,
    with_moments: bool = False,
) -> RowStatistics:
    """One pass over linear logits [n, V] of the policy and, if given, of the reference.

    kl is 0 without a reference, entropy and square_sum are 0 unless they are asked for.
    """
    out = [
        torch.zeros(len(logits), dtype=torch.float32, device=logits.device)
        for _ in RowStatistics._fields
    ]
    _launch(
        _statistics,
        logits,
        shape,
        reference,
        reference_shape,
        labels,
        *out,
        HAS_MOMENTS=with_moments,
    )
    return RowStatistics(*out)


def logits_gradient_(
    logits: Tensor,
    shape: Shape,
    labels: Tensor,
    reference: Tensor | None,
    reference_shape: Shape,
    normalizer: Tensor,
    reference_normalizer: Tensor,
    grad_logps: Tensor,
    grad_kl: Tensor,
) -> Tensor:
    """Replace linear logits [n, V] by their gradient, in place, through cap and scale.

    The gradient of the logits is g1 * (onehot - p) + g2 * (p - p_reference).
    """
    upstream = (grad_logps.contiguous(), grad_kl.contiguous())
    _launch(
        _gradient,
        logits,
        shape,
        reference,
        reference_shape,
        labels,
        normalizer,
        reference_normalizer,
        *upstream,
    )
    return logits


def _launch(
    kernel: Any,
    logits: Tensor,
    shape: Shape,
    reference: Tensor | None,
    reference_shape: Shape,
    *rows: Tensor,
    **options: bool,
) -> None:
    """One program per row.

    `rows` are the kernel's tensors of one value per row, `options` are its further switches.
    """
    num_rows, vocabulary = logits.shape
    kernel[(num_rows,)](
        logits,
        logits if reference is None else reference,
        *rows,
        vocabulary,
        logits.stride(0),
        0 if reference is None else reference.stride(0),
        shape.scale,
        shape.softcap or 1.0,
        reference_shape.scale,
        reference_shape.softcap or 1.0,
        HAS_REFERENCE=reference is not None,
        HAS_CAP=shape.softcap is not None,
        HAS_REFERENCE_CAP=reference_shape.softcap is not None,
        **options,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


if triton is not None:

    @triton.jit
    def _shaped(x, scale, cap, HAS_CAP: tl.constexpr):
        x = x.to(tl.float32) * scale
        if HAS_CAP:
            # tanh(z) = 1 - 2 / (exp(2z) + 1): exact at both ends.
            x = cap * (1 - 2 / (tl.exp(2 * x / cap) + 1))
        return x

    @triton.jit
    def _statistics(
        logits, reference, labels, logps, kl, normalizer, reference_normalizer, entropy, square_sum,
        vocabulary, stride, reference_stride,
        scale, cap, reference_scale, reference_cap,
        HAS_REFERENCE: tl.constexpr, HAS_CAP: tl.constexpr, HAS_REFERENCE_CAP: tl.constexpr,
        HAS_MOMENTS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        largest, total = -float("inf"), 0.0
        below, squares = 0.0, 0.0
        reference_largest, reference_total, weighted = -float("inf"), 0.0, 0.0
        for start in range(0, vocabulary, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < vocabulary
            x = _shaped(
                tl.load(logits + row * stride + place, mask=inside, other=0.0), scale, cap, HAS_CAP
            )
            bounded = tl.where(inside, x, -float("inf"))
            new = tl.maximum(largest, tl.max(bounded, 0))
            if HAS_MOMENTS:
                # Logits count from the largest so far: a sum of raw ones would cancel.
                shrunk = tl.exp(largest - new)
                moved = tl.where(total > 0, largest - new, 0.0)
                powers = tl.exp(bounded - new)
                depth = tl.where(inside, x - new, 0.0)
                below = (below + total * moved) * shrunk + tl.sum(powers * depth, 0)
                squares = squares * shrunk * shrunk + tl.sum(powers * powers, 0)
            total = total * tl.exp(largest - new) + tl.sum(tl.exp(bounded - new), 0)
            largest = new
            if HAS_REFERENCE:
                y = _shaped(
                    tl.load(reference + row * reference_stride + place, mask=inside, other=0.0),
                    reference_scale, reference_cap, HAS_REFERENCE_CAP,
                )  # fmt: skip
                bounded_y = tl.where(inside, y, -float("inf"))
                new_y = tl.maximum(reference_largest, tl.max(bounded_y, 0))
                shrink = tl.exp(reference_largest - new_y)
                mass = tl.exp(bounded_y - new_y)
                reference_total = reference_total * shrink + tl.sum(mass, 0)
                weighted = weighted * shrink + tl.sum(mass * (y - x), 0)
                reference_largest = new_y
        log_total = largest + tl.log(total)
        label = tl.load(labels + row)
        chosen = _shaped(tl.load(logits + row * stride + label), scale, cap, HAS_CAP)
        tl.store(logps + row, chosen - log_total)
        tl.store(normalizer + row, log_total)
        if HAS_MOMENTS:
            tl.store(entropy + row, tl.log(total) - below / total)
            tl.store(square_sum + row, squares / (total * total))
        if HAS_REFERENCE:
            reference_log_total = reference_largest + tl.log(reference_total)
            tl.store(reference_normalizer + row, reference_log_total)
            tl.store(kl + row, weighted / reference_total - reference_log_total + log_total)

    @triton.jit
    def _gradient(
        logits, reference, labels, normalizer, reference_normalizer, grad_logps, grad_kl,
        vocabulary, stride, reference_stride,
        scale, cap, reference_scale, reference_cap,
        HAS_REFERENCE: tl.constexpr, HAS_CAP: tl.constexpr, HAS_REFERENCE_CAP: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        label = tl.load(labels + row)
        log_total = tl.load(normalizer + row)
        g1 = tl.load(grad_logps + row).to(tl.float32)
        if HAS_REFERENCE:
            g2 = tl.load(grad_kl + row).to(tl.float32)
            reference_log_total = tl.load(reference_normalizer + row)
        for start in range(0, vocabulary, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < vocabulary
            x = _shaped(
                tl.load(logits + row * stride + place, mask=inside, other=0.0), scale, cap, HAS_CAP
            )
            p = tl.exp(x - log_total)
            grad = g1 * (tl.where(place == label, 1.0, 0.0) - p)
            if HAS_REFERENCE:
                y = _shaped(
                    tl.load(reference + row * reference_stride + place, mask=inside, other=0.0),
                    reference_scale, reference_cap, HAS_REFERENCE_CAP,
                )  # fmt: skip
                grad += g2 * (p - tl.exp(y - reference_log_total))
            if HAS_CAP:
                grad *= 1 - (x / cap) * (x / cap)
            tl.store(
                logits + row * stride + place,
                (grad * scale).to(logits.dtype.element_ty),
                mask=inside,
            )
