"""The response to another prompt that a labelled row is read beside: it estimates KTO's KL.

A row is stored as a pair whose rejected response is that one, so that layouts, the reference stage
and training know it already. Which one it is depends on the rows of the split alone.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.pairs.conversation import cut_spans
from sparsepo.batching.layouts import tokens_within

_Numbers = npt.NDArray[Any]


def mismatched(prompts: _Numbers) -> _Numbers:
    """For every row the place of the row whose response it takes, [rows].

    It is the nearest row before it with another prompt, in a circle. Of neighbours with one prompt,
    each takes another: the second the second nearest, and so on, where that has another prompt too.
    Rows that all have one prompt take the one before them.

    Args:
        prompts: a number for every row's prompt, in the order of the rows.
    """
    count = len(prompts)
    before: _Numbers = np.arange(count) - 1
    starts = np.flatnonzero(prompts != np.roll(prompts, 1))
    if not len(starts):
        return before % max(1, count)
    # Places from the first border on: no neighbours with one prompt lie across the circle's end.
    turned = np.arange(starts[0], starts[0] + count)
    own = np.roll(prompts, -starts[0])
    begins = np.zeros(count, bool)
    begins[starts - starts[0]] = True
    start = np.maximum.accumulate(np.where(begins, np.arange(count), 0))
    nearest = (start - 1) % count
    further = (2 * start - np.arange(count) - 1) % count
    found = np.where(own[further] != own, further, nearest)
    places = np.empty(count, np.int64)
    places[turned % count] = turned[found] % count
    return places


def with_mismatches(rows: pa.Table, others: pa.Table, max_tokens: int | None) -> pa.Table:
    """Labelled rows with the responses of others as their rejected ones.

    Args:
        others: a row for every row. max_tokens: of prompt and response; the other prompt may have
            been shorter, so that its response is cut here.
    """
    ids, contexts = others["chosen_ids"].to_pylist(), others["chosen_context"].to_pylist()
    if max_tokens is not None:
        for at, prompt in enumerate(rows["prompt_ids"].to_pylist()):
            limit = max_tokens - len(prompt)
            if len(ids[at]) > limit:
                ids[at] = ids[at][:limit]
                spans = cut_spans(contexts[at] or (), limit)
                contexts[at] = list(spans) if tokens_within(spans) < limit else None
    for name, values in (
        ("rejected", others["chosen"]),
        ("rejected_ids", ids),
        ("rejected_context", contexts),
    ):
        field = rows.schema.field(name)
        column = values if isinstance(values, pa.ChunkedArray) else pa.array(values, field.type)
        rows = rows.set_column(rows.schema.get_field_index(name), field, column)
    return rows
