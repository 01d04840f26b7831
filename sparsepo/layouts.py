"""Pairs of token ids -> the model's input and the rows to score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparsepo.records import ModelInputs


@dataclass(frozen=True)
class TokenizedPair:
    """One preference pair in token ids. `rejected` is None for chosen-only data (supervised fine-tuning)."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int] | None

    def responses(self) -> tuple[Sequence[int], ...]:
        return (self.chosen,) if self.rejected is None else (self.chosen, self.rejected)

    def width(self) -> int:
        """Tokens of the pair's longest sequence, prompt included."""
        return len(self.prompt) + max(len(response) for response in self.responses())


def padded_layout(pairs: Sequence[TokenizedPair], pad_multiple: int = 1) -> ModelInputs:
    """Each response is its own right-padded sequence `prompt + response`; rows in canonical order.

    The pad value is token 0 under attention mask 0: it is never read, so no pad token has to exist.

    Args:
        pairs: at least one; every prompt and response has at least one token.
        pad_multiple: the padded length is rounded up to a multiple of it, to keep shapes few.
    Raises: ValueError for an empty batch, prompt or response.
    """
    if not pairs:
        raise ValueError("a micro-batch needs at least one pair")
    sequences: list[tuple[int, Sequence[int], Sequence[int]]] = []
    for i, pair in enumerate(pairs):
        for side, response in enumerate(pair.responses()):
            if len(pair.prompt) == 0 or len(response) == 0:
                raise ValueError(f"pair {i} has {len(pair.prompt)} prompt and {len(response)} response tokens: both must be > 0")
            sequences.append((2 * i + side, pair.prompt, response))
    longest = max(len(prompt) + len(response) for _, prompt, response in sequences)
    width = -(-longest // pad_multiple) * pad_multiple
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    attention_mask = torch.zeros(len(sequences), width, dtype=torch.long)
    score_rows, labels, response_index = [], [], []
    for row, (index, prompt, response) in enumerate(sequences):
        response_ids = torch.as_tensor(response, dtype=torch.long)
        end = len(prompt) + len(response)
        input_ids[row, : len(prompt)] = torch.as_tensor(prompt, dtype=torch.long)
        input_ids[row, len(prompt) : end] = response_ids
        attention_mask[row, :end] = 1
        first = row * width + len(prompt) - 1
        score_rows.append(torch.arange(first, first + len(response)))
        labels.append(response_ids)
        response_index.append(torch.full((len(response),), index, dtype=torch.long))
    return ModelInputs(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=torch.arange(width).expand(len(sequences), width),
        score_rows=torch.cat(score_rows),
        labels=torch.cat(labels),
        response_index=torch.cat(response_index),
        num_pairs=len(pairs),
    )
