"""Sampling a large job with a decoding step that is captured once.

`generate` of transformers spends its time in Python, whatever the batch. Here one step of all rows
(forward, draw, bookkeeping) is a CUDA graph over a static cache, a row that ends is given the next
prompt, and the host looks at the rows every few steps. transformers' continuous batching does the
same with paged caches, but has one random state for all requests.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from pipelines.models.fused_norms import fused, plain_rms_norms
from pipelines.models.response_ends import ResponseEnds
from pipelines.models.row_attention import Places, RowsLayer, row_attention
from pipelines.models.token_draws import draw_tokens, uniform_numbers
from pipelines.recipe import GenerationSection
from sparsepo.backbone import backbone_of, transformer_of

_STEPS_UNSEEN = 8  # between two looks at the rows
_FREE_SHARE = 8  # a refill waits for one row in so many
_PREFILL_TOKENS = 2**15


class CapturedSampler:
    """Continuations of many prompts by one model.

    Args:
        settings: temperature, top_p and max_new_tokens; all calls have them.
        size: columns of the cache: of the longest prompt and its continuation at least.
        num_rows: sampled at once.
    Raises: NotImplementedError for a family that decodes in another way.
    """

    def __init__(
        self,
        causal_lm: Any,
        ends: ResponseEnds,
        settings: GenerationSection,
        size: int,
        num_rows: int,
    ) -> None:
        self._causal_lm, self._ends, self._settings = causal_lm, ends, settings
        self._backbone = backbone_of(transformer_of(causal_lm))
        self._norms = plain_rms_norms(causal_lm)
        self._device, self._size, self._num_rows = causal_lm.device, size, num_rows
        self._most = settings.max_new_tokens
        self._places = Places(self._arange(num_rows), self._zeros())
        # Of each row: its last token, tokens drawn, whether it goes on, and what is drawn.
        self._tokens, self._counts = self._zeros(), self._zeros()
        self._going = self._zeros().bool()
        self._drawn = torch.zeros(num_rows, self._most + 1, dtype=torch.long, device=self._device)
        self._uniform = self._drawn.double()
        self._is_finite = torch.ones((), dtype=torch.bool, device=self._device)
        vocabulary = causal_lm.get_output_embeddings().weight.shape[0]
        self._is_end = torch.zeros(vocabulary, dtype=torch.bool, device=self._device)
        self._is_end[list(ends.ids)] = True
        layers = DynamicCache(config=causal_lm.config).layers
        if not layers or not all(isinstance(layer, DynamicLayer) for layer in layers):
            raise NotImplementedError("a cache of more than keys and values")
        self._layers = [RowsLayer(size, self._places) for _ in layers]
        self._cache = Cache(layers=self._layers)
        self._graph: torch.cuda.CUDAGraph | None = None
        with torch.no_grad():
            self._capture()
            self._verify()

    def _zeros(self) -> Tensor:
        return torch.zeros(self._num_rows, dtype=torch.long, device=self._device)

    def _arange(self, count: int) -> Tensor:
        return torch.arange(count, device=self._device)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[int]]:
        """One continuation per prompt, up to and including its first end token.

        Raises: ValueError if the model's logits are no numbers.
        """
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        found: dict[int, list[int]] = {}
        holds: dict[int, int] = {}  # row -> prompt
        free = list(range(self._num_rows))
        self._going.zero_()
        while order or holds:
            if len(free) >= min(len(order), max(1, self._num_rows // _FREE_SHARE)) and order:
                coming, order = order[: len(free)], order[len(free) :]
                rows, free = free[: len(coming)], free[len(coming) :]
                self._admit(rows, [prompts[at] for at in coming], [seeds[at] for at in coming])
                holds |= dict(zip(rows, coming, strict=True))
            for _ in range(_STEPS_UNSEEN):
                self._step() if self._graph is None else self._graph.replay()
            counts = torch.where(self._going, -1, self._counts).tolist()
            ended = [row for row in sorted(holds) if counts[row] >= 0]
            for row, ids in zip(ended, self._drawn[ended].tolist(), strict=True):
                found[holds.pop(row)] = ids[: counts[row]]
            free = sorted([*free, *ended])
        if not self._is_finite:
            raise ValueError("the model's logits are not finite")
        return [found[at] for at in range(len(prompts))]

    def _admit(
        self, rows: list[int], prompts: Sequence[Sequence[int]], seeds: Sequence[int]
    ) -> None:
        """Give free rows their prompts; all tokens but the last go through the model here.

        The host does not wait for the device, which has its work first.
        """
        distinct = list(dict.fromkeys(tuple(prompt[:-1]) for prompt in prompts))
        number = {prompt: at for at, prompt in enumerate(distinct)}
        # In the order of the prompts that are read, so that those of one part lie together.
        which = sorted((number[tuple(prompt[:-1])], at) for at, prompt in enumerate(prompts))
        width = max(len(prompt) for prompt in distinct)
        ids = np.zeros((len(distinct), width), dtype=np.int64)
        for at, prompt in enumerate(distinct):
            ids[at, : len(prompt)] = prompt
        read = self._moved(ids)
        source, into = self._moved([[one, rows[at]] for one, at in which]).unbind(1)
        at_once, begin = max(1, _PREFILL_TOKENS // max(1, width)), 0
        for first in range(0, len(distinct) if width else 0, at_once):
            end = bisect_left(which, (first + at_once, -1))
            # What follows a prompt is seen by no token of it, and overwritten later.
            cache = DynamicCache()
            with fused(self._norms):
                self._backbone(
                    input_ids=read[first : first + at_once], past_key_values=cache, use_cache=True
                )
            some, to = source[begin:end] - first, into[begin:end]
            for layer, filled in zip(self._layers, cache.layers, strict=True):
                layer.admit(to, filled.keys[some], filled.values[some])
            begin = end
        index = self._moved(rows)
        last = self._moved([[prompt[-1], len(prompt) - 1] for prompt in prompts])
        self._tokens[index], self._places.columns[index] = last.unbind(1)
        self._counts[index] = 0
        self._uniform[index, : self._most] = self._moved(uniform_numbers(seeds, self._most))
        self._going[index] = True

    def _moved(self, values: Any) -> Tensor:
        """On the device, by a copy that comes after what it has been given already."""
        tensor = torch.as_tensor(values)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _logits(self) -> Tensor:
        """[rows, V] of the token after each row's last; its keys and values are kept."""
        with row_attention(self._causal_lm, self._places), fused(self._norms):
            output = self._causal_lm(
                input_ids=self._tokens[:, None],
                position_ids=self._places.columns[:, None],
                past_key_values=self._cache,
                use_cache=True,
            )
        return output.logits[:, -1]

    def _step(self) -> None:
        """One token more for every row that goes on, without a look at any of them."""
        logits, settings = self._logits(), self._settings
        uniform = self._uniform.gather(1, self._counts[:, None])[:, 0]
        token, is_finite = draw_tokens(logits, uniform, settings.temperature, settings.top_p)
        self._is_finite &= (is_finite | ~self._going).all()
        self._drawn.scatter_(1, self._counts[:, None], token[:, None])
        self._tokens.copy_(torch.where(self._going, token, self._tokens))
        self._counts += self._going
        self._going &= ~self._is_end[token] & (self._counts < self._most)
        # An ended row sees one column, until it is given a prompt.
        self._places.columns.copy_(torch.where(self._going, self._places.columns + 1, 0))

    def _capture(self) -> None:
        self._step()  # makes the caches, too
        if self._device.type != "cuda":
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._step()

    def _verify(self) -> None:
        """Compare a step of some rows of random tokens with the model's own logits.

        One row is as long as any becomes, so that windows and positions count. The others leave
        columns behind them empty.

        Raises: NotImplementedError if they are apart by more than the model's own two ways, and
            by more than rounding makes.
        """
        config = transformer_of(self._causal_lm).config.get_text_config()
        longest = min(self._size, getattr(config, "max_position_embeddings", None) or self._size)
        lengths = [longest, longest // 2, 2, 1][: self._num_rows]
        chance = torch.Generator().manual_seed(0)
        ids = torch.randint(len(self._is_end), (len(lengths), longest), generator=chance)
        prompts = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        self._admit(list(range(len(lengths))), prompts, [0] * len(lengths))
        found = self._logits()[: len(lengths)].float()
        self._going.zero_()
        ids, cache = ids.to(self._device), DynamicCache(config=self._causal_lm.config)
        whole = self._causal_lm(input_ids=ids, use_cache=False).logits
        own = whole[self._places.rows[: len(lengths)], torch.tensor(lengths) - 1].float()
        self._causal_lm(input_ids=ids[:1, :-1], past_key_values=cache, use_cache=True)
        last = self._causal_lm(input_ids=ids[:1, -1:], past_key_values=cache, use_cache=True)
        rounding = float(_apart(last.logits[:, -1].float(), own[:1])[0])
        least = rounding_distance(self._causal_lm.dtype, len(self._layers))
        apart = _apart(found, own)
        if not bool((apart <= max(3 * rounding, least)).all()):
            raise NotImplementedError(
                f"logits that are {float(apart.max()):.1%} apart from the model's own"
            )


def rounding_distance(dtype: torch.dtype, num_layers: int) -> float:
    """How far logits of two right ways to compute them may be apart, beside their norm.

    Each layer rounds its states by half of dtype's epsilon, and the errors add up like the steps of
    a random walk. In bfloat16 that is 2.1 % for 30 layers, whose two ways are 1.2 to 1.3 % apart.
    Ways that happen to use the same kernels agree better, so that the model's own are no measure
    alone.
    """
    if dtype == torch.float32:
        return 1e-4  # other orders of sums within a layer weigh more
    return max(1e-2, torch.finfo(dtype).eps / 2 * math.sqrt(num_layers))


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """Per row, the distance beside the norm; a constant on all logits counts for nothing."""
    expected, found = (x - x.mean(-1, keepdim=True) for x in (expected, found))
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)
