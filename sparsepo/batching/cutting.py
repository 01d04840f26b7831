"""How rows are cut into batches within a token budget, and dealt to ranks: pure functions."""

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt


def rank_share(
    indices: Sequence[int], lengths: Sequence[int] | npt.NDArray[Any], rank: int, world: int
) -> list[int]:
    """The rows of one rank: dealt by length, back and forth.

    So ranks carry about the same number of tokens.

    Args:
        lengths: of every row, the indices' and others; of a signed type.
    """
    ordered = sorted(indices, key=lambda i: (-lengths[i], i))
    return [row for position, row in enumerate(ordered) if _dealt_to(position, world) == rank]


def _dealt_to(position: int, world: int) -> int:
    turn, seat = divmod(position, world)
    return seat if turn % 2 == 0 else world - 1 - seat


def token_budget_batches(
    rows: Sequence[int],
    widths: Sequence[int] | Mapping[int, int],
    sequences_per_row: int,
    budget: int,
) -> list[list[int]]:
    """Cut rows into batches of similar width whose padded size stays within the budget.

    A batch holds one row at least.

    Args:
        rows: positions (keys) of widths.
        widths: padded length of each row's longest sequence, tokens.
        sequences_per_row: 2 for pairs, 1 for chosen-only data.
        budget: tokens, padding included.
    """
    batches: list[list[int]] = []
    for row in sorted(rows, key=lambda i: (-widths[i], i)):
        # Rows come widest first: the first of a batch is its width.
        if (
            batches
            and (len(batches[-1]) + 1) * sequences_per_row * widths[batches[-1][0]] <= budget
        ):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def consecutive_batches(
    rows: Sequence[int], widths: Sequence[int] | Mapping[int, int], budget: int
) -> list[list[int]]:
    """Cut rows into batches whose widths add up to at most the budget, widest first.

    A batch holds one row at least.
    """
    batches: list[list[int]] = []
    used = 0
    for row in sorted(rows, key=lambda i: (-widths[i], i)):
        if batches and used + widths[row] <= budget:
            batches[-1].append(row)
            used += widths[row]
        else:
            batches.append([row])
            used = widths[row]
    return batches


def balanced_batches(
    rows: Sequence[int], widths: Sequence[int] | Mapping[int, int], budget: int
) -> list[list[int]]:
    """Cut rows into as few batches of about equal total width as fit the budget.

    A row beyond the budget is a batch of its own. The widest row goes first, each into the emptiest
    batch.
    """
    ordered = sorted(rows, key=lambda i: (-widths[i], i))
    alone = [[row] for row in ordered if widths[row] > budget]
    ordered = ordered[len(alone) :]
    if not ordered:
        return alone
    count = max(1, math.ceil(sum(widths[row] for row in ordered) / budget))
    while True:
        batches: list[list[int]] = [[] for _ in range(count)]
        filled = [(0, at) for at in range(count)]
        for row in ordered:
            used, at = heapq.heappop(filled)
            batches[at].append(row)
            heapq.heappush(filled, (used + widths[row], at))
        if max(filled)[0] <= budget:
            return alone + batches
        count += 1
