"""Attention of one new token per row over a static cache in which every row has its own length.

A step of decoding reads the columns that a row has filled and no others. On CUDA it is a Triton
kernel; elsewhere, and for heads that the kernel does not know, torch's attention with a mask.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import StaticLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of torch without CUDA brings no Triton
    triton = None

ROW_ATTENTION = "sparsepo_rows"  # its name among transformers' attention functions
_BLOCK, _WIDEST_HEAD = 64, 256
# What some families' attention adds to a plain softmax, by the argument that brings it.
_UNKNOWN = ("softcap", "s_aux", "position_bias", "sinks")


@dataclass(frozen=True)
class Places:
    """The column that each row's new token takes; it sees the columns up to there.

    Attributes:
        rows: [n], 0, 1, ... columns: [n], on the same device.
    """

    rows: Tensor
    columns: Tensor


class RowsLayer(StaticLayer):
    """A static cache layer of transformers in which every row writes at a column of its own."""

    def __init__(self, max_cache_len: int, places: Places) -> None:
        super().__init__(max_cache_len=max_cache_len)
        self._places = places

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token per row, [n, heads, 1, d]; returns all columns, written or not."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, columns = self._places.rows, self._places.columns
        self.keys[rows, :, columns] = key_states[:, :, 0]
        self.values[rows, :, columns] = value_states[:, :, 0]
        return self.keys, self.values

    def admit(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Fill the first columns of some rows, [n, heads, columns, d]."""
        self.keys[rows, :, : keys.shape[2]] = keys
        self.values[rows, :, : values.shape[2]] = values


_PLACES: ContextVar[Places] = ContextVar("places")


@contextlib.contextmanager
def row_attention(causal_lm: Any, places: Places) -> Iterator[None]:
    """The model with this attention, for a while."""
    parts = {id(m.config): m.config for m in causal_lm.modules() if hasattr(m, "config")}
    own = [(part, part._attn_implementation) for part in parts.values()]
    token = _PLACES.set(places)
    try:
        for part, _ in own:
            part._attn_implementation = ROW_ATTENTION
        yield
    finally:
        for part, name in own:
            part._attn_implementation = name
        _PLACES.reset(token)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: [n, heads, 1, d] over [n, key heads, columns, d].

    Raises: NotImplementedError for an attention that is no plain softmax.
    """
    added = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if added or query.shape[2] != 1:
        raise NotImplementedError(f"attention with {added or 'several queries'}")
    num_rows, heads, _, width = query.shape
    # The queries that share a key head are the queries of one sequence: no key is repeated.
    query = query.reshape(num_rows, key.shape[1], -1, width)
    scale = width**-0.5 if scaling is None else scaling
    attended = _by_kernel if _has_kernel(query, key, value) else _by_mask
    out = attended(query, key, value, _PLACES.get().columns, scale, sliding_window)
    return out.reshape(num_rows, heads, 1, -1).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(ROW_ATTENTION, _attend)


def _has_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return (
        triton is not None
        and query.is_cuda
        and key.shape == value.shape
        and key.is_contiguous()
        and value.is_contiguous()
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and query.shape[-1] <= _WIDEST_HEAD
    )


def _by_mask(
    query: Tensor, key: Tensor, value: Tensor, last: Tensor, scale: float, window: int | None
) -> Tensor:
    columns = torch.arange(key.shape[2], device=key.device)
    seen = columns <= last[:, None]
    if window is not None:
        seen &= columns > last[:, None] - window
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen[:, None, None], scale=scale
    )


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, last: Tensor, scale: float, window: int | None
) -> Tensor:
    num_rows, heads, group, width = query.shape
    query = query.contiguous()
    out = torch.empty_like(query)
    _one_query[(num_rows, heads)](
        query, key, value, out, last, scale, key.shape[2], window or key.shape[2],
        HEADS=heads, GROUP=group, WIDTH=width,
        GROUP_BLOCK=max(16, triton.next_power_of_2(group)),
        WIDTH_BLOCK=max(16, triton.next_power_of_2(width)),
        BLOCK=_BLOCK,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=4 if width > 64 else 2,
        num_stages=2 if width > 128 else 3,
    )  # fmt: skip
    return out


if triton is not None:

    @triton.jit
    def _one_query(
        query, key, value, out, last, scale, size, window,
        HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
        GROUP_BLOCK: tl.constexpr, WIDTH_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        row, head = tl.program_id(0), tl.program_id(1)
        stop = tl.load(last + row) + 1
        begin = tl.maximum(stop - window, 0)
        member, feature = tl.arange(0, GROUP_BLOCK), tl.arange(0, WIDTH_BLOCK)
        own = (row * HEADS + head).to(tl.int64)
        at = own * GROUP * WIDTH + member[:, None] * WIDTH + feature[None, :]
        is_there = (member < GROUP)[:, None] & (feature < WIDTH)[None, :]
        asked = tl.load(query + at, mask=is_there, other=0.0)
        largest = tl.full([GROUP_BLOCK], -float("inf"), tl.float32)
        total = tl.zeros([GROUP_BLOCK], tl.float32)
        summed = tl.zeros([GROUP_BLOCK, WIDTH_BLOCK], tl.float32)
        for start in range(begin, stop, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < stop
            place = own * size * WIDTH + column[:, None] * WIDTH + feature[None, :]
            stored = inside[:, None] & (feature < WIDTH)[None, :]
            keys = tl.load(key + place, mask=stored, other=0.0)
            score = tl.dot(asked, tl.trans(keys), input_precision=PRECISION) * scale
            score = tl.where(inside[None, :], score, -float("inf"))
            new = tl.maximum(largest, tl.max(score, 1))
            weight, shrink = tl.exp(score - new[:, None]), tl.exp(largest - new)
            values = tl.load(value + place, mask=stored, other=0.0)
            found = tl.dot(weight.to(values.dtype), values, input_precision=PRECISION)
            summed = summed * shrink[:, None] + found
            total = total * shrink + tl.sum(weight, 1)
            largest = new
        tl.store(out + at, (summed / total[:, None]).to(out.dtype.element_ty), mask=is_there)
