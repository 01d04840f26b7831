"""One Triton kernel from logits to drawn tokens: softmax, top-p and the draw without a sort.

It gives what `token_draws.py` computes with torch, but where a uniform number lies within a
rounding of a border. The nucleus is found by halving an interval of logits; of equal ones at its
border the last ones stay, as in a sort that keeps their order.
"""

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of torch without CUDA brings no Triton
    triton = None

_BLOCK, _WARPS = 4096, 8
_HALVINGS = 36  # of an interval of _RANGE nats: to a float's own precision
_RANGE = 80.0  # what is less likely than exp(-80) of the likeliest counts for nothing


def is_available(logits: Tensor) -> bool:
    """Whether the kernel can take these logits."""
    return (
        triton is not None
        and logits.is_cuda
        and logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and logits.stride(-1) == 1
    )


def drawn_by_kernel(
    logits: Tensor, uniform: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """See `token_draws.draw_tokens`; temperature > 0."""
    num_rows, vocabulary = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.long, device=logits.device)
    mass = torch.empty(num_rows, dtype=torch.float64, device=logits.device)
    _draw[(num_rows,)](
        logits, uniform, tokens, mass, vocabulary, logits.stride(0), 1 / temperature, top_p,
        HAS_TOP_P=top_p < 1, BLOCK=_BLOCK, HALVINGS=_HALVINGS, RANGE=_RANGE, num_warps=_WARPS,
    )  # fmt: skip
    return tokens, mass.isfinite()


if triton is not None:

    @triton.jit
    def _block(logits, start, vocabulary, scale, BLOCK: tl.constexpr):
        place = start + tl.arange(0, BLOCK)
        x = tl.load(logits + place, mask=place < vocabulary, other=-float("inf"))
        return x.to(tl.float32) * scale

    @triton.jit
    def _mass_above(logits, vocabulary, scale, largest, least, BLOCK: tl.constexpr):
        """Sum of exp(x - largest) over the logits that are larger than `least`, float64."""
        found = tl.zeros([BLOCK], tl.float64)
        for start in range(0, vocabulary, BLOCK):
            x = _block(logits, start, vocabulary, scale, BLOCK)
            # What is no number counts, and makes the sum none.
            found += tl.where(x <= least, 0.0, tl.exp(x - largest)).to(tl.float64)
        return tl.sum(found, 0)

    @triton.jit
    def _draw(
        logits, uniform, tokens, masses, vocabulary, stride, scale, top_p,
        HAS_TOP_P: tl.constexpr, BLOCK: tl.constexpr, HALVINGS: tl.constexpr,
        RANGE: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0)
        logits += row.to(tl.int64) * stride
        most = tl.full([BLOCK], -float("inf"), tl.float32)
        for start in range(0, vocabulary, BLOCK):
            most = tl.maximum(most, _block(logits, start, vocabulary, scale, BLOCK))
        largest = tl.max(most, 0)
        mass = _mass_above(logits, vocabulary, scale, largest, -float("inf"), BLOCK)
        # Kept are all logits above `high`, and the last `num_kept` of those in (low, high].
        low, high = largest - RANGE, largest - RANGE
        num_border, num_kept = 0, 0
        kept = mass
        if HAS_TOP_P:
            wanted = top_p * mass
            high = largest
            for _ in range(HALVINGS):
                middle = 0.5 * (low + high)
                is_enough = _mass_above(logits, vocabulary, scale, largest, middle, BLOCK) >= wanted
                low = tl.where(is_enough, middle, low)
                high = tl.where(is_enough, high, middle)
            above = _mass_above(logits, vocabulary, scale, largest, high, BLOCK)
            border = _mass_above(logits, vocabulary, scale, largest, low, BLOCK) - above
            counts = tl.zeros([BLOCK], tl.int32)
            for start in range(0, vocabulary, BLOCK):
                x = _block(logits, start, vocabulary, scale, BLOCK)
                counts += ((x > low) & (x <= high)).to(tl.int32)
            num_border = tl.sum(counts, 0)
            each = border / tl.maximum(num_border, 1)
            each = tl.where(each > 0, each, 1.0)
            num_kept = tl.ceil((wanted - above) / each).to(tl.int32)
            num_kept = tl.minimum(num_kept, num_border)
            kept = above + num_kept * each
        target = tl.load(uniform + row) * kept
        before, token, is_found, num_seen = target * 0, 0, 0, 0
        for start in range(0, vocabulary, BLOCK):
            if is_found == 0:
                x = _block(logits, start, vocabulary, scale, BLOCK)
                weight = tl.exp(x - largest).to(tl.float64)
                if HAS_TOP_P:
                    on_border = ((x > low) & (x <= high)).to(tl.int32)
                    seen = num_seen + tl.cumsum(on_border, 0) - on_border
                    stays = (x > high) | ((on_border > 0) & (num_border - seen <= num_kept))
                    weight = tl.where(stays, weight, 0.0)
                    num_seen += tl.sum(on_border, 0)
                until = before + tl.cumsum(weight, 0)
                place = start + tl.arange(0, BLOCK)
                # The last token that can be drawn, where a rounding leaves the number beyond all.
                last = tl.max(tl.where(weight > 0, place, -1), 0)
                first = tl.min(tl.where((until > target) & (weight > 0), place, vocabulary), 0)
                is_found = (first < vocabulary).to(tl.int32)
                token = tl.where(is_found > 0, first, tl.maximum(token, last))
                before += tl.sum(weight, 0)
        tl.store(tokens + row, token)
        tl.store(masses + row, mass)
