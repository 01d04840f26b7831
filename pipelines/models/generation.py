"""Sampling from a causal model, reproducible for a given batch and seed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pipelines.models.response_ends import ResponseEnds
from pipelines.recipe import GenerationSection


@contextmanager
def generation_config(causal_lm: Any, config: Any) -> Iterator[None]:
    """The model with other defaults for generation, for a while.

    `generate` takes from there what it is not told.
    """
    own, causal_lm.generation_config = causal_lm.generation_config, config
    try:
        yield
    finally:
        causal_lm.generation_config = own


@torch.no_grad()
def generate(
    causal_lm: Any,
    ends: ResponseEnds,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSection,
    seed: int,
    num_samples: int = 1,
) -> list[list[int]]:
    """Continuations of each prompt, prompt excluded.

    Each goes up to and including the first end token where one was drawn.

    The model's own generation defaults (top-k, penalties) are switched off: samples come from the
    recipe's distribution. The process's random state and the model's generation_config are left as
    they were.

    Returns: len(prompts) * num_samples lists of token ids, prompt by prompt.
    """
    from transformers import GenerationConfig

    width = max(len(p) for p in prompts)
    device = causal_lm.device
    input_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    attention = torch.zeros(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        input_ids[i, width - len(prompt) :] = torch.as_tensor(list(prompt))
        attention[i, width - len(prompt) :] = 1
    sampled = settings.temperature > 0
    tokens = {"eos_token_id": list(ends.ids), "pad_token_id": ends.ids[0]}
    options = (
        {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": 0,
        }
        if sampled
        else {"do_sample": False}
    )
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_return_sequences=num_samples,
        **tokens,
        **options,
    )
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with generation_config(causal_lm, GenerationConfig(**tokens)), forked:
        torch.manual_seed(seed)
        output = causal_lm.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention.to(device),
            generation_config=config,
        )
    return [ends.cut(ids) for ids in output[:, width:].tolist()]
