"""Tokens from logits by uniform numbers that each sample brings along.

A sample's numbers follow from its seed alone, so what is drawn beside it, on which machine and in
which order changes nothing but the rounding of its logits.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.models.draw_kernel import drawn_by_kernel, is_available

_PART = 256  # tokens whose probabilities are added up first
_STEPS = 2**32  # of a uniform number


def uniform_numbers(seeds: Sequence[int], count: int) -> Tensor:
    """float64 [seeds, count] in (0, 1), multiples of 2**-33: one row per seed, below 2**64."""
    rows = [np.random.Philox(key=seed).random_raw(count) >> np.uint64(32) for seed in seeds]
    return torch.from_numpy((np.stack(rows).astype(np.float64) + 0.5) / _STEPS)


def draw_tokens(
    logits: Tensor, uniform: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """One token [n] per row of logits [n, V]: the likeliest at temperature 0.

    Else it is the first whose cumulative probability exceeds the row's uniform number. Temperature
    and top_p are those of transformers' `generate`, in float32 as there.

    Args:
        uniform: float64 [n].
    Returns: tokens, and bool [n]: whether a row's logits are numbers.
    """
    if temperature == 0:
        return logits.argmax(-1), logits.amax(-1).isfinite()
    if is_available(logits):
        shape = logits.shape[1], logits.dtype, logits.device
        if _kernel_agrees(*shape, temperature, top_p):
            return drawn_by_kernel(logits, uniform, temperature, top_p)
    return _drawn_by_torch(logits, uniform, temperature, top_p)


@cache
def _kernel_agrees(
    vocabulary: int, dtype: torch.dtype, device: torch.device, temperature: float, top_p: float
) -> bool:
    """Whether it runs here, and draws what torch does but for a few rows near a border."""
    chance = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(128, vocabulary, generator=chance)).to(device, dtype)
    uniform = uniform_numbers(range(128), 1)[:, 0].to(device)
    try:
        found, is_finite = drawn_by_kernel(logits, uniform, temperature, top_p)
        expected, _ = _drawn_by_torch(logits, uniform, temperature, top_p)
        return bool(is_finite.all()) and float((found == expected).float().mean()) > 0.95
    except Exception:  # a compiler or card that this was not written for
        return False


def _drawn_by_torch(
    logits: Tensor, uniform: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    from transformers import TopPLogitsWarper

    scores = logits if temperature == 1 else logits.float() / temperature
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores.float())
    return _by_cumulative(scores.softmax(-1, dtype=torch.float32), uniform[:, None])


def _by_cumulative(probabilities: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, in two steps: the part of the vocabulary, then the token in it.

    A token of probability 0 is never drawn.
    """
    num_rows, vocabulary = probabilities.shape
    if missing := -vocabulary % _PART:
        probabilities = F.pad(probabilities, (0, missing))
    parts = probabilities.view(num_rows, -1, _PART)
    until = parts.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted = uniform * until[:, -1:]
    # Logits that are no numbers would point beyond the end.
    part = torch.searchsorted(until, wanted, right=True).clamp(max=parts.shape[1] - 1)
    rest = wanted - F.pad(until, (1, 0)).gather(1, part)
    chosen = parts.gather(1, part[..., None].expand(-1, -1, _PART))[:, 0]
    inside = chosen.double().cumsum(-1)
    # The same sum in another order may come out smaller by a rounding.
    rest = torch.minimum(rest, inside[:, -1:] * (1 - 2.0**-40))
    token = part * _PART + torch.searchsorted(inside, rest, right=True)
    return token[:, 0].clamp(max=vocabulary - 1), until[:, -1].isfinite()
