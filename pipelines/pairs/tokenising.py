"""What a stream of pairs becomes, row by row, in one thread or in several."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipelines.pairs.conversation import RawPair, RowRejected
from pipelines.pairs.row_readers import SourceRow

Used = TypeVar("Used")

_AHEAD = 32  # pairs for each thread


def used(
    found: Iterator[tuple[SourceRow, RawPair | RowRejected]],
    use: Callable[[RawPair], Used],
    pairs_stand_alone: bool,
    threads: int = 1,
) -> Iterator[tuple[SourceRow, Used | RowRejected]]:
    """What is made of every pair, or why nothing is, in the order of the rows.

    Args:
        found: of pairs_of_rows. use: may raise RowRejected. pairs_stand_alone: a pair that is
            rejected leaves the row's others; else they fall with it. threads: that use pairs at
            once. A tokenizer's own work goes on in all of them; what comes out is the same.
    """

    def outcome(made: RawPair | RowRejected) -> Used | RowRejected:
        if isinstance(made, RowRejected):
            return made
        try:
            return use(made)
        except RowRejected as reason:
            return reason

    fallen = None
    for row, made in _in_threads(found, outcome, threads):
        if row is fallen:
            continue
        if isinstance(made, RowRejected) and not pairs_stand_alone:
            fallen = row
        yield row, made


Given = TypeVar("Given")
Made = TypeVar("Made")


def _in_threads(
    found: Iterator[tuple[SourceRow, Given]], make: Callable[[Given], Made], threads: int
) -> Iterator[tuple[SourceRow, Made]]:
    if threads == 1:
        yield from ((row, make(given)) for row, given in found)
        return
    waiting: deque[tuple[SourceRow, Future[Made]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for row, given in found:
            waiting.append((row, pool.submit(make, given)))
            if len(waiting) == _AHEAD * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for row, future in waiting:
            yield row, future.result()
