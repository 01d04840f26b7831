"""Samples of a large job: captured where the model's family allows it, else in batches."""

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.models.captured import CapturedSampler
from pipelines.models.generation import generate
from pipelines.models.response_ends import ResponseEnds
from pipelines.recipe import GenerationSection
from sparsepo.backbone import backbone_of, transformer_of

_MOST_ROWS, _ROWS = 2048, 32  # and a multiple of these
_COLUMNS = 64  # a cache has a multiple of them
_MODELS, _CACHE_SHARE = 3, 0.3  # of the memory beside so many models, two of which sample in turn
_LOGITS = 2**28  # of one step


class JobSampler:
    """Draws the samples of large jobs, each with a seed of its own.

    Attributes:
        warnings: a line for each model whose family cannot be captured; its samples are drawn in
            batches.
    """

    def __init__(self, ends: ResponseEnds) -> None:
        self.warnings: list[str] = []
        self._ends = ends
        self._made: dict[int, tuple[Any, CapturedSampler]] = {}
        self._refused: set[int] = set()

    def __call__(
        self,
        causal_lm: Any,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSection,
        seeds: Sequence[int],
        batch: int,
    ) -> list[list[int]]:
        """One continuation per prompt, up to and including its first end token.

        Args:
            causal_lm: kept as long as this object. batch: for a family that cannot be captured.
        """
        sampler = self._sampler(causal_lm, prompts, settings)
        if sampler is not None:
            return sampler(prompts, seeds)
        return [
            ids
            for at in range(0, len(prompts), batch)
            for ids in generate(
                causal_lm, self._ends, prompts[at : at + batch], settings, seeds[at]
            )
        ]

    def _sampler(
        self, causal_lm: Any, prompts: Sequence[Sequence[int]], settings: GenerationSection
    ) -> CapturedSampler | None:
        """The model's sampler, made anew where these prompts need other rows or columns.

        Both follow from prompts, model and card alone: so do the samples.
        """
        me = id(causal_lm)
        if me in self._refused:
            return None
        longest = max(len(prompt) for prompt in prompts) + settings.max_new_tokens
        size = -(-longest // _COLUMNS) * _COLUMNS
        try:
            rows = _num_rows(causal_lm, size, len(prompts))
            key = (settings, size, rows)
            kept = self._made.get(me)
            if kept is None or kept[0] != key:
                self._made.pop(me, None)
                kept = key, CapturedSampler(causal_lm, self._ends, settings, size, rows)
                self._made[me] = kept
        except Exception as error:  # whatever a family's own code raises on another cache
            self._refused.add(me)
            name = type(transformer_of(causal_lm)).__name__
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self.warnings.append(
                f"{name} is sampled in batches: its decoding cannot be captured ({reason})"
            )
            return None
        return kept[1]


@torch.no_grad()
def _num_rows(causal_lm: Any, size: int, samples: int) -> int:
    """Rows that are sampled at once.

    Raises: NotImplementedError if too few fit.
    """
    from transformers.cache_utils import DynamicCache

    device, cache = causal_lm.device, DynamicCache()
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    backbone_of(transformer_of(causal_lm))(input_ids=token, past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    per_column = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    fitting = min(_MOST_ROWS, _LOGITS // causal_lm.get_output_embeddings().weight.shape[0])
    if device.type == "cuda":
        weights = sum(parameter.nbytes for parameter in causal_lm.parameters())
        memory = torch.cuda.get_device_properties(device).total_memory - _MODELS * weights
        fitting = min(fitting, int(_CACHE_SHARE * memory / (per_column * size)))
    if fitting < _ROWS:
        raise NotImplementedError(f"caches of {max(0, fitting)} rows fill the memory")
    return min(fitting // _ROWS, -(-samples // _ROWS)) * _ROWS
