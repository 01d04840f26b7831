"""Where the time of a process goes: named spans, kept until a command adds them up.

Several processes may work in one moment. It counts once, for the first of KINDS that is under way
then: a device at work comes before what is prepared beside it.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

# compile: torch.compile. compute: steps, scoring, sampling. load: weights, checkpoints, read and
# placed. rows: sources read, tokenised and cut. write: files published. imports: of libraries.
# ray: Ray's start, its workers' and their end. checks: what a command looks at before any work.
KINDS = ("compile", "compute", "load", "rows", "write", "imports", "ray", "checks")
REST = "rest"  # none of them


@dataclass(frozen=True)
class Span:
    """Some time of one kind; start and stop in seconds since the epoch, by the machine's clock."""

    kind: str
    start: float
    stop: float


class _Recording:
    """The spans of a thread so far, and what is under way: (kind, since), the innermost last."""

    def __init__(self) -> None:
        self.found: list[Span] = []
        self.open: list[tuple[str, float]] = []

    def close_innermost(self, now: float) -> None:
        if self.open:
            kind, since = self.open[-1]
            self.found.append(Span(kind, since, now))


_RECORDED: ContextVar[_Recording | None] = ContextVar("spans", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[Span]]:
    """Keep the spans of this block, by this thread, in the list that it yields.

    They are kept for an outer block too.
    """
    outer, own = _RECORDED.get(), _Recording()
    token = _RECORDED.set(own)
    try:
        yield own.found
    finally:
        _RECORDED.reset(token)
        if outer is not None:
            outer.found.extend(own.found)


@contextlib.contextmanager
def spent(kind: str) -> Iterator[None]:
    """Count the block's time as `kind`, one of KINDS, if somebody records.

    A block within counts as its own kind, and not as this one.
    """
    recording = _RECORDED.get()
    if recording is None:
        yield
        return
    start = time.time()
    recording.close_innermost(start)
    recording.open.append((kind, start))
    try:
        yield
    finally:
        stop = time.time()
        recording.close_innermost(stop)
        recording.open.pop()
        if recording.open:
            recording.open[-1] = (recording.open[-1][0], stop)


class Beside(Generic[Result]):
    """A block entered in a thread of its own, begun at once, and left there.

    The thread lives until then: what a process starts for its thread's life goes on.
    The spans of entering and leaving count for who waits for them.
    """

    def __init__(self, block: AbstractContextManager[Result]) -> None:
        self._entered: Future[Result] = Future()
        self._left: Future[None] = Future()
        self._asked_to_leave = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(block,), daemon=True)
        self._found: list[Span] = []
        self._thread.start()

    def _run(self, block: AbstractContextManager[Result]) -> None:
        try:
            with recorded() as self._found:
                entered = block.__enter__()
        except BaseException as error:  # raised where the block is waited for
            self._entered.set_exception(error)
            return
        self._entered.set_result(entered)
        self._asked_to_leave.wait()
        try:
            with recorded() as self._found:
                block.__exit__(None, None, None)
        except BaseException as error:
            self._left.set_exception(error)
        else:
            self._left.set_result(None)

    def entered(self) -> Result:
        """What entering gives, once it is done; raises what it raised."""
        return self._of(self._entered)

    def leave(self) -> None:
        """Leave the block; returns when it is left. Nothing where entering failed."""
        if self._entered.exception() is None:
            self._asked_to_leave.set()
            self._of(self._left)

    def _of(self, outcome: Future[Any]) -> Any:
        try:
            return outcome.result()
        finally:
            add_spans(self._found)
            self._found = []


def add_spans(spans: Sequence[Span]) -> None:
    """Count spans of another process or thread too, if somebody records."""
    recording = _RECORDED.get()
    if recording is not None:
        recording.found.extend(spans)


def split_of(start: float, stop: float, spans: Sequence[Span]) -> dict[str, float]:
    """Seconds of every kind between start and stop, and the rest; they add up to stop - start."""
    found = dict.fromkeys((*KINDS, REST), 0.0)
    edges = sorted(
        (min(max(edge, start), stop), change, KINDS.index(span.kind))
        for span in spans
        for edge, change in ((span.start, 1), (span.stop, -1))
    )
    under_way = [0] * len(KINDS)
    at = start
    for edge, change, kind in [*edges, (stop, 0, 0)]:
        now = next((name for name, n in zip(KINDS, under_way, strict=True) if n > 0), REST)
        found[now] += edge - at
        at, under_way[kind] = edge, under_way[kind] + change
    return found
