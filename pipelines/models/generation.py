"""Sampling from a causal model, reproducible for a given batch and seed."""

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.recipe import GenerationSection


@torch.no_grad()
def generate(
    causal_lm: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSection,
    seed: int,
    num_samples: int = 1,
) -> list[list[int]]:
    """Continuations of each prompt, prompt excluded, end token included where one was drawn.

    The model's own generation defaults (top-k, penalties) are switched off: samples come from the
    recipe's distribution. The process's random state is left as it was.

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
    eos = tokenizer.eos_token_id
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
    causal_lm.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=eos)
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=eos,
        pad_token_id=eos,
        num_return_sequences=num_samples,
        **options,
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = causal_lm.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention.to(device),
            generation_config=config,
        )
    found = []
    for ids in output[:, width:].tolist():
        found.append(ids[: ids.index(eos) + 1] if eos in ids else ids)
    return found
