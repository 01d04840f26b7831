"""Pairs that are used in threads come out as one thread gives them."""

import random
import time
from collections.abc import Iterator

import pytest

from pipelines.pairs.conversation import RawPair, RowRejected
from pipelines.pairs.row_readers import SourceRow
from pipelines.pairs.tokenising import used

ROWS = [SourceRow(number, {}, "") for number in range(400)]


def stream(seen: list[int]) -> Iterator[tuple[SourceRow, RawPair | RowRejected]]:
    """Three pairs a row, of which some rows are rejected before; `seen` has what was asked for."""
    for row in ROWS:
        seen.append(row.number)
        if row.number % 11 == 5:
            yield row, RowRejected("no pair")
            continue
        for part in range(3):
            yield row, RawPair("p", f"{row.number}.{part}", "r")


def use(pair: RawPair) -> str:
    time.sleep(random.random() / 2000)  # threads end out of order
    row, part = map(int, pair.chosen.split("."))
    if row % 7 == 3 and part == 1:
        raise RowRejected("too long")
    return pair.chosen


@pytest.mark.parametrize("pairs_stand_alone", [True, False])
def test_threads_give_what_a_loop_gives(pairs_stand_alone: bool) -> None:
    wanted = []
    for row in ROWS:
        if row.number % 11 == 5:
            wanted.append((row.number, "no pair"))
            continue
        for part in range(3):
            falls = row.number % 7 == 3 and part == 1
            wanted.append((row.number, "too long" if falls else f"{row.number}.{part}"))
            if falls and not pairs_stand_alone:
                break

    for threads in (1, 2, 8):
        found = used(stream([]), use, pairs_stand_alone, threads)
        assert [(row.number, str(made)) for row, made in found] == wanted


def test_rows_are_read_no_further_than_threads_need() -> None:
    seen: list[int] = []
    next(used(stream(seen), use, True, threads=2))
    assert len(seen) < 30


def test_another_error_than_a_rejection_ends_the_stream() -> None:
    def fails(pair: RawPair) -> str:
        raise ZeroDivisionError(pair.chosen)

    with pytest.raises(ZeroDivisionError, match="0.0"):
        list(used(stream([]), fails, True, threads=4))
