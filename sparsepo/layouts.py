"""Pairs of token ids -> the model's input and the rows to score."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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

    def shared_width(self) -> int:
        """Tokens of the pair with its prompt once."""
        return len(self.prompt) + sum(len(response) for response in self.responses())


def padded_layout(pairs: Sequence[TokenizedPair], pad_multiple: int = 1) -> ModelInputs:
    """Each response is its own right-padded sequence `prompt + response`; rows in canonical order.

    The pad value is token 0 under attention mask 0: it is never read, so no pad token has to exist.

    Args:
        pairs: at least one; every prompt and response has at least one token.
        pad_multiple: the padded length is rounded up to a multiple of it, to keep shapes few.
    Raises: ValueError for an empty batch, prompt or response.
    """
    _check(pairs)
    sequences = [(2 * i + side, pair.prompt, response) for i, pair in enumerate(pairs) for side, response in enumerate(pair.responses())]
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


def packed_layout(pairs: Sequence[TokenizedPair], row_tokens: int | None = None, pad_multiple: int = 1) -> ModelInputs:
    """Rows of whole pairs `prompt | chosen | rejected`, the prompt once; positions of both responses continue the prompt's.

    The row that predicts a response's first token is the prompt's last one, for both responses.

    Args:
        pairs: at least one; every prompt and response has at least one token.
        row_tokens: a row takes the next pairs while they fit; None gives every pair a row of its own.
        pad_multiple: the rows' width is rounded up to a multiple of it.
    Raises: ValueError for an empty batch, prompt or response, or a pair longer than row_tokens.
    """
    _check(pairs)
    rows: list[list[int]] = []
    used = 0
    for i, pair in enumerate(pairs):
        size = pair.shared_width()
        if row_tokens is not None and size > row_tokens:
            raise ValueError(f"pair {i} has {size} tokens, a row has {row_tokens}")
        if rows and row_tokens is not None and used + size <= row_tokens:
            rows[-1].append(i)
            used += size
        else:
            rows.append([i])
            used = size
    widest = max(sum(pairs[i].shared_width() for i in row) for row in rows)
    width = -(-widest // pad_multiple) * pad_multiple
    input_ids = np.zeros((len(rows), width), dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    segments = np.full((len(rows), width), -1, dtype=np.int32)
    score_rows, labels, response_index = [], [], []
    for row, members in enumerate(rows):
        at = 0
        for i in members:
            pair, length = pairs[i], len(pairs[i].prompt)
            predictor = row * width + at + length - 1
            for part, tokens in enumerate((pair.prompt, *pair.responses())):
                end, begins = at + len(tokens), length if part else 0
                input_ids[row, at:end] = tokens
                positions[row, at:end] = np.arange(begins, begins + len(tokens))
                segments[row, at:end] = 4 * i + part
                if part:
                    score_rows.append(np.concatenate([[predictor], np.arange(row * width + at, row * width + end - 1)]))
                    labels.append(np.asarray(tokens, dtype=np.int64))
                    response_index.append(np.full(len(tokens), 2 * i + part - 1))
                at = end
    return ModelInputs(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy((segments >= 0).astype(np.int64)),
        position_ids=torch.from_numpy(positions),
        score_rows=torch.from_numpy(np.concatenate(score_rows)),
        labels=torch.from_numpy(np.concatenate(labels)),
        response_index=torch.from_numpy(np.concatenate(response_index)),
        num_pairs=len(pairs),
        segments=torch.from_numpy(segments),
    )


def _check(pairs: Sequence[TokenizedPair]) -> None:
    if not pairs:
        raise ValueError("a micro-batch needs at least one pair")
    for i, pair in enumerate(pairs):
        for response in pair.responses():
            if len(pair.prompt) == 0 or len(response) == 0:
                raise ValueError(f"pair {i} has {len(pair.prompt)} prompt and {len(response)} response tokens: both must be > 0")
