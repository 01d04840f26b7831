"""Who does a piece of work: claims in a run store.

Of several processes on several machines, one does it.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedFile, StageFailed, UserError
from pipelines.storage.records import Fields, read_record, write_record
from pipelines.storage.store import RunStore

_FOLDER = "claims"
_FIELDS: Fields = {"holder": str, "host": str, "pid": int, "time": (int, float)}


@dataclass(frozen=True)
class ClaimTimes:
    """The times of a claim, in seconds.

    A claim is renewed every `renew`, counts as abandoned after `abandoned` without renewal, and has
    to stand for `settle` before it is believed. settle must exceed the time that a write takes;
    clocks of the machines must agree within `abandoned`.
    """

    renew: float = 20.0
    abandoned: float = 120.0
    settle: float = 1.0


class Claims:
    """Named claims below a store.

    Neither a lock service nor exclusive creation is needed, which object stores do not have.

    A claim is written, left to settle and read again: the last writer of several has it. Claims of
    processes that have died on this machine are free at once, others when they have not been
    renewed.
    """

    def __init__(self, store: RunStore, times: ClaimTimes | None = None) -> None:
        self._store, self._times = store, times or ClaimTimes()
        self._me = {
            "holder": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "boot": _start_of(os.getpid()),
        }

    @contextmanager
    def holding(self, name: str) -> Iterator[bool]:
        """Whether the claim was had; it is renewed during the block and given back after it."""
        path = f"{_FOLDER}/{name}.json"
        if not self._taken(path):
            yield False
            return
        done = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(path, done), daemon=True)
        renewing.start()
        try:
            yield True
        finally:
            done.set()
            renewing.join()
            self._store.delete(path)

    def _taken(self, path: str) -> bool:
        if self._is_held(path):
            return False
        self._write(path)
        time.sleep(self._times.settle)
        found = self._read(path)
        return found is not None and found.get("holder") == self._me["holder"]

    def _is_held(self, path: str) -> bool:
        """Whether somebody else who still lives has the claim, as far as it can be read."""
        found = self._read(path)
        if found is None:
            return False
        if not found:  # damaged: whoever wrote it may live, and renews it then
            changed = self._store.changed_at(path)
            return time.time() - changed < self._times.abandoned
        if found["host"] == self._me["host"]:
            return _start_of(found["pid"]) == found["boot"] is not None
        return bool(time.time() - found["time"] < self._times.abandoned)

    def _read(self, path: str) -> dict[str, Any] | None:
        try:
            return read_record(self._store, path, _FIELDS)
        except FileNotFoundError:
            return None
        except DamagedFile:
            return {}

    def _write(self, path: str) -> None:
        write_record(self._store, path, {**self._me, "time": time.time()})

    def _renew(self, path: str, done: threading.Event) -> None:
        while not done.wait(self._times.renew):
            with contextlib.suppress(
                StageFailed, UserError
            ):  # a store that is away may come back before the claim counts as abandoned
                self._write(path)


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None if it does not run.

    Pids are used again, starts are not.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
