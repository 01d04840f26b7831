"""Pairs of token ids -> the model's input and the rows to score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from sparsepo.records import ModelInputs


class PairWidths(Protocol):
    """What cutting pairs into batches needs to know of one, in tokens."""

    def num_responses(self) -> int:
        """2, or 1 for chosen-only data."""

    def width(self) -> int:
        """Tokens of the pair's longest sequence, prompt included."""

    def shared_width(self) -> int:
        """Tokens of the pair with its prompt once."""


@dataclass(frozen=True)
class PairLengths:
    """The lengths of a pair's parts in tokens: batches are cut by them before token ids are read.

    `rejected` is 0 for chosen-only data.
    """

    prompt: int
    chosen: int
    rejected: int

    def num_responses(self) -> int:
        return 2 if self.rejected else 1

    def width(self) -> int:
        return self.prompt + max(self.chosen, self.rejected)

    def shared_width(self) -> int:
        return self.prompt + self.chosen + self.rejected


@dataclass(frozen=True)
class TokenizedPair:
    """One preference pair in token ids.

    The model reads all of it; the responses are scored, but for their context.

    Attributes:
        rejected: None for chosen-only data (supervised fine-tuning). chosen_context,
            rejected_context: what is not scored of a response, the turns of others say, as places
            [start, stop, start, stop, ...] within it; most pairs have none.
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int] | None
    chosen_context: Sequence[int] = ()
    rejected_context: Sequence[int] = ()

    def responses(self) -> tuple[Sequence[int], ...]:
        return (self.chosen,) if self.rejected is None else (self.chosen, self.rejected)

    def scored_places(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Places of every response's scored tokens within it, [tokens] each."""
        contexts = (self.chosen_context, self.rejected_context)
        return tuple(
            _without(len(response), context)
            for response, context in zip(self.responses(), contexts, strict=False)
        )

    def num_scored(self) -> tuple[int, ...]:
        """Scored tokens of every response."""
        contexts = (self.chosen_context, self.rejected_context)
        return tuple(
            len(response) - tokens_within(context)
            for response, context in zip(self.responses(), contexts, strict=False)
        )

    def num_responses(self) -> int:
        return len(self.responses())

    def width(self) -> int:
        return len(self.prompt) + max(len(response) for response in self.responses())

    def shared_width(self) -> int:
        return len(self.prompt) + sum(len(response) for response in self.responses())


def padded_layout(pairs: Sequence[TokenizedPair], pad_multiple: int = 1) -> ModelInputs:
    """Each response is its own right-padded sequence `prompt + response`; rows in canonical order.

    The pad value is token 0 under attention mask 0: it is never read, so no pad token has to exist.

    Args:
        pairs: at least one; every prompt has a token, every response a scored one.
        pad_multiple: the padded length is rounded up to a multiple of it, to keep shapes few.
    Raises: ValueError for an empty batch, prompt or response.
    """
    _check(pairs)
    sequences = [
        (2 * i + side, pair.prompt, response, places)
        for i, pair in enumerate(pairs)
        for side, (response, places) in enumerate(
            zip(pair.responses(), pair.scored_places(), strict=True)
        )
    ]
    longest = max(pair.width() for pair in pairs)
    width = -(-longest // pad_multiple) * pad_multiple
    input_ids = np.zeros((len(sequences), width), dtype=np.int64)
    attention_mask = np.zeros((len(sequences), width), dtype=np.int64)
    position_ids = np.tile(np.arange(width, dtype=np.int64), (len(sequences), 1))
    score_rows, labels, response_index = [], [], []
    for row, (index, prompt, response, places) in enumerate(sequences):
        end = len(prompt) + len(response)
        input_ids[row, : len(prompt)] = prompt
        input_ids[row, len(prompt) : end] = response
        attention_mask[row, :end] = 1
        position_ids[row, end:] = end - 1  # a row's largest position is its own
        score_rows.append(row * width + len(prompt) - 1 + places)
        labels.append(np.asarray(response, dtype=np.int64)[places])
        response_index.append(np.full(len(places), index))
    return ModelInputs(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        position_ids=torch.from_numpy(position_ids),
        score_rows=torch.from_numpy(np.concatenate(score_rows)),
        labels=torch.from_numpy(np.concatenate(labels)),
        response_index=torch.from_numpy(np.concatenate(response_index)),
        num_pairs=len(pairs),
    )


def packed_layout(
    pairs: Sequence[TokenizedPair], row_tokens: int | None = None, pad_multiple: int = 1
) -> ModelInputs:
    """Rows of whole pairs `prompt | chosen | rejected`, the prompt once.

    Positions of both responses continue the prompt's. The row that predicts a response's first
    token is the prompt's last one, for both responses.

    Args:
        pairs: at least one; every prompt has a token, every response a scored one.
        row_tokens: a row takes the next pairs while they fit; None gives every pair a row of its
            own.
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
    # One entry per part (prompt, chosen, rejected) of every pair, in the order of their tokens.
    parts = [
        np.asarray(tokens, dtype=np.int64)
        for pair in pairs
        for tokens in (pair.prompt, *pair.responses())
    ]
    part = np.concatenate([np.arange(1 + len(pair.responses())) for pair in pairs])
    of_pair = np.repeat(np.arange(len(pairs)), [1 + len(pair.responses()) for pair in pairs])
    lengths = np.array([len(tokens) for tokens in parts])
    row_of_pair = np.repeat(np.arange(len(rows)), [len(members) for members in rows])
    row_of = row_of_pair[of_pair]
    ends = np.cumsum(lengths)
    row_starts = np.concatenate(
        [[0], np.cumsum(np.bincount(row_of, weights=lengths, minlength=len(rows)))[:-1]]
    ).astype(np.int64)
    starts = row_of * width + (ends - lengths) - row_starts[row_of]
    prompt = np.flatnonzero(part == 0)[of_pair]  # index of the part's prompt
    within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    slots = np.repeat(starts, lengths) + within
    input_ids, positions = (
        np.zeros(len(rows) * width, dtype=np.int64),
        np.zeros(len(rows) * width, dtype=np.int64),
    )
    segments = np.full(len(rows) * width, -1, dtype=np.int32)
    tokens = np.concatenate(parts)
    input_ids[slots] = tokens
    positions[slots] = within + np.repeat(np.where(part > 0, lengths[prompt], 0), lengths)
    segments[slots] = np.repeat(4 * of_pair + part, lengths)
    is_scored = np.repeat(part > 0, lengths)
    if any(len(pair.chosen_context) or len(pair.rejected_context) for pair in pairs):
        places = (
            part_places
            for pair in pairs
            for part_places in (np.zeros(0, np.int64), *pair.scored_places())
        )
        at = [end - size + here for end, size, here in zip(ends, lengths, places, strict=True)]
        is_scored = np.isin(np.arange(ends[-1]), np.concatenate(at))
    # A response's first token is predicted by its prompt's last row, every other by the row before
    # it.
    predictors = np.where(
        within == 0, np.repeat((starts + lengths)[prompt] - 1, lengths), slots - 1
    )
    shape = (len(rows), width)
    return ModelInputs(
        input_ids=torch.from_numpy(input_ids).view(shape),
        attention_mask=torch.from_numpy((segments >= 0).astype(np.int64)).view(shape),
        position_ids=torch.from_numpy(positions).view(shape),
        score_rows=torch.from_numpy(predictors[is_scored]),
        labels=torch.from_numpy(tokens[is_scored]),
        response_index=torch.from_numpy(np.repeat(2 * of_pair + part - 1, lengths)[is_scored]),
        num_pairs=len(pairs),
        segments=torch.from_numpy(segments).view(shape),
    )


def _check(pairs: Sequence[TokenizedPair]) -> None:
    if not pairs:
        raise ValueError("a micro-batch needs at least one pair")
    for i, pair in enumerate(pairs):
        for scored in pair.num_scored():
            if len(pair.prompt) == 0 or scored <= 0:
                raise ValueError(
                    f"pair {i} has {len(pair.prompt)} prompt and {scored} scored response tokens: "
                    "both must be > 0"
                )


def tokens_within(spans: Sequence[int]) -> int:
    """Tokens in spans, given as places [start, stop, start, stop, ...]."""
    return int(sum(spans[1::2]) - sum(spans[::2]))


def _without(length: int, context: Sequence[int]) -> npt.NDArray[np.int64]:
    places = np.arange(length)
    if not len(context):
        return places
    is_scored = np.ones(length, bool)
    for start, stop in zip(context[::2], context[1::2], strict=True):
        is_scored[start:stop] = False
    return places[is_scored]
