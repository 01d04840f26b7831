"""Who works in a folder now, for those who only look: a note that is renewed and taken away.

Unlike a claim it keeps nobody out. A note whose process has died, or that has not been renewed,
counts for nothing.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from pipelines.errors import StageFailed, UserError
from pipelines.storage.claims import Claims
from pipelines.storage.pace import Pace, progress_text
from pipelines.storage.store import RunStore

_FOLDER = "working"
_LOOK_SECONDS, _WRITE_SECONDS, _RENEW_SECONDS = 0.5, 2.0, 20.0


class _Note:
    """What is told of a piece of work, and the thread that publishes it."""

    def __init__(self, store: RunStore, facts: dict[str, Any]) -> None:
        self._store, self._path = store, f"{_FOLDER}/{uuid.uuid4().hex}.json"
        self._who = Claims(store, folder=_FOLDER).me
        self.facts, self.is_new = facts, False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def begin(self) -> None:
        self._was_there = not self._store.is_local or self._store.exists()
        self._write()
        self._thread.start()

    def end(self) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(StageFailed, UserError, OSError):
            self._store.delete(self._path)
            if not self._store.names(_FOLDER):
                self._store.delete(_FOLDER)
            if not self._was_there:  # nothing was written by what ended here
                self._store.local_path().rmdir()

    def _renew(self) -> None:
        written = time.monotonic()
        while not self._done.wait(_LOOK_SECONDS):
            since = time.monotonic() - written
            if since > _RENEW_SECONDS or (self.is_new and since > _WRITE_SECONDS):
                self._write()
                written = time.monotonic()

    def _write(self) -> None:
        self.is_new = False
        body = {**self._who, **self.facts, "time": time.time()}
        with contextlib.suppress(StageFailed, UserError, OSError):  # the work itself will say so
            self._store.write_bytes(self._path, (json.dumps(body, indent=2) + "\n").encode())


_NOTE: ContextVar[_Note | None] = ContextVar("note", default=None)


@contextlib.contextmanager
def present(store: RunStore, **facts: Any) -> Iterator[None]:
    """Say during the block that this process works in a folder.

    Args:
        facts: what is told of it beside host and process.
    """
    note = _Note(store, {"since": time.time(), **facts})
    note.begin()
    token = _NOTE.set(note)
    try:
        yield
    finally:
        _NOTE.reset(token)
        note.end()


def tell_progress(done: int, total: int, unit: str, pace: Pace) -> None:
    """Say how far the work of this thread has come, if it is told of."""
    note = _NOTE.get()
    if note is not None:
        note.facts |= {"done": done, "total": total, "unit": unit, "rate": pace.rate()}
        note.is_new = True


def who_works(store: RunStore) -> list[dict[str, Any]]:
    """What is told by those who work in a folder now: host, pid, since, and further facts.

    What a process elsewhere tells counts by the store's own clock; nothing counts where that
    cannot be asked.
    """
    try:
        return [note for note in Claims(store, folder=_FOLDER).living() if "since" in note]
    except (StageFailed, UserError, OSError):
        return []


def newest_note(store: RunStore) -> dict[str, Any]:
    """The note of who began last of those who work in a folder; empty if nobody does."""
    return max(who_works(store), key=lambda note: note["since"], default={})


def whereabouts(note: Mapping[str, Any]) -> dict[str, Any]:
    """Where and since when the writer of a note works: host, pid, since; empty for an empty one."""
    return {key: note.get(key) for key in ("host", "pid", "since")} if note else {}


def told_progress(note: Mapping[str, Any]) -> str:
    """How far the writer of a note has come, if it tells."""
    if not note.get("total"):
        return ""
    return progress_text(note["done"], note["total"], note["unit"], note.get("rate"))
