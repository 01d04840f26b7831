"""A limit to the time that Python code of others takes, in whatever thread it runs.

A thread of its own looks at the clock and raises an exception in the thread that takes too long:
signals reach the main thread alone, and tasks may run in others. Code that stays in one call of C
is not reached.
"""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LOOK_SECONDS = 0.1
_lock = threading.Lock()
_ends: dict[int, float] = {}  # of threads under a limit
_watch: threading.Thread | None = None


class TimeUp(BaseException):
    """The time is up; no handler of ordinary exceptions stops it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeUp inside the block when it has run for longer. Limits do not nest."""
    global _watch
    thread = threading.get_ident()
    with _lock:
        _ends[thread] = time.monotonic() + seconds
        if _watch is None or not _watch.is_alive():
            _watch = threading.Thread(target=_look, name="time limit", daemon=True)
            _watch.start()
    try:
        yield
    finally:
        with _lock:
            has_struck = _ends.pop(thread, None) is None
        if has_struck:  # the exception may still be on its way
            _raise_in(thread, None)


def _look() -> None:
    """Ends when nobody is under a limit."""
    global _watch
    while True:
        time.sleep(_LOOK_SECONDS)
        with _lock:
            if not _ends:
                _watch = None
                return
            now = time.monotonic()
            for thread in [thread for thread, end in _ends.items() if end < now]:
                del _ends[thread]
                _raise_in(thread, TimeUp)


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if exception is None else ctypes.py_object(exception)
    )
