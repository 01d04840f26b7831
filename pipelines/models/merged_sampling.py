"""Sampling from several models, merged token by token.

Temperature and top_p act on the merged distribution, as in `generate` on a single model's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipelines.models.ensemble import Ensemble
from pipelines.models.response_ends import ResponseEnds
from pipelines.recipe import GenerationSection

# Log-probabilities [K, rows, V] and, where asked for, states [rows, d] -> merged ones [rows, V].
MergeRule = Callable[[Tensor, Tensor | None], Tensor]


@torch.no_grad()
def sample_merged(
    ensemble: Ensemble,
    ends: ResponseEnds,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSection,
    seed: int,
    num_samples: int,
    merge: MergeRule,
    reads_states: bool = False,
) -> list[list[int]]:
    """Continuations of each prompt, as `generate` has them of a single model.

    Args:
        merge: of the rows prompt by prompt, num_samples of each. reads_states: whether it is given
            what the first model's head reads.
    Returns: len(prompts) * num_samples lists of token ids, prompt by prompt.
    Raises: ValueError where the merged distribution has no token left.
    """
    rows = [list(prompt) for prompt in prompts for _ in range(num_samples)]
    device, width = ensemble.device, max(map(len, rows))
    ids = torch.full((len(rows), width), ends.ids[0], dtype=torch.long)
    attention = torch.zeros_like(ids)
    for i, prompt in enumerate(rows):
        ids[i, width - len(prompt) :] = torch.as_tensor(prompt)
        attention[i, width - len(prompt) :] = 1
    streams = ensemble.streams(ids.to(device), attention.to(device))
    stops = torch.tensor(ends.ids, device=device)
    going = torch.ones(len(rows), dtype=torch.bool, device=device)
    drawn: list[Tensor] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in range(settings.max_new_tokens):
            logps, states = streams.step(reads_states)
            tokens = _drawn(merge(logps, states), settings)
            tokens = torch.where(going, tokens, stops[0])
            drawn.append(tokens)
            going &= ~torch.isin(tokens, stops)
            if not going.any():
                break
            streams.append(tokens)
    return [ends.cut(row) for row in torch.stack(drawn, dim=1).tolist()]


def _drawn(logps: Tensor, settings: GenerationSection) -> Tensor:
    """One token per row [rows]; the likeliest at temperature 0."""
    from transformers import TopPLogitsWarper

    if not bool(logps.amax(-1).isfinite().all()):
        raise ValueError("the merged distribution has no token left")
    if settings.temperature == 0:
        return logps.argmax(-1)
    scores = logps / settings.temperature
    if settings.top_p < 1:
        scores = TopPLogitsWarper(settings.top_p)(None, scores)
    return torch.multinomial(scores.softmax(-1), num_samples=1)[:, 0]
