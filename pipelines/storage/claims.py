"""Who does a piece of work: claims in a run store.

Of several processes on several machines, one does it.
"""

import contextlib
import json
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

from pipelines.errors import StageFailed, UserError
from pipelines.storage.creation import create
from pipelines.storage.json_texts import parse_json
from pipelines.storage.records import read_whole
from pipelines.storage.store import RunStore

_FOLDER = "claims"


@dataclass(frozen=True)
class ClaimTimes:
    """The times of a claim, in seconds.

    A claim is renewed every `renew`, and counts as abandoned after `abandoned` without renewal.
    One that was not made on a local disk has to stand for `settle` before it is believed; settle
    must exceed the time that a write takes.
    """

    renew: float = 20.0
    abandoned: float = 120.0
    settle: float = 1.0


class Claims:
    """Named claims below a store.

    Where the store makes a file only if it is not there, one of several makes it. On a local disk
    that one has the claim. On an object store, which may ignore the condition, and when a claim is
    taken over, it is left to settle and read again: the last writer of several has it.

    Claims of processes of this machine and process namespace that have died are free at once.
    Others are, and such as cannot be read, when they have not been renewed. The store's clock tells
    how long ago that was; clocks of machines do not count.
    """

    def __init__(
        self, store: RunStore, times: ClaimTimes | None = None, folder: str = _FOLDER
    ) -> None:
        self._store, self._times, self._folder = store, times or ClaimTimes(), folder
        self.me: dict[str, Any] = {
            "holder": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "processes": _process_namespace(),
            "pid": os.getpid(),
            "boot": _start_of(os.getpid()),
        }

    @contextmanager
    def holding(self, name: str) -> Iterator[bool]:
        """Whether the claim was had; it is renewed during the block and given back after it."""
        path = f"{self._folder}/{name}.json"
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
            if self._is_mine(path):
                self._store.delete(path)

    def living(self) -> list[dict[str, Any]]:
        """What the claims whose holders live hold, by their names."""
        names = self._store.names(self._folder)
        paths = [f"{self._folder}/{name}" for name in names if name.endswith(".json")]
        found = [(path, self._read(path)) for path in paths]
        return [claim for path, claim in found if claim is not None and self._is_held(path, claim)]

    def _taken(self, path: str) -> bool:
        found = self._read(path)
        if found is None:
            made = create(self._store, path, self._claim())
            if made is False or (made and self._store.is_local):
                return made
            if made is None:
                self._store.write_bytes(path, self._claim())
        elif self._is_held(path, found):
            return False
        else:
            self._store.write_bytes(path, self._claim())
        time.sleep(self._times.settle)
        return self._is_mine(path)

    def _is_mine(self, path: str) -> bool:
        found = self._read(path)
        return found is not None and found.get("holder") == self.me["holder"]

    def _is_held(self, path: str, found: dict[str, Any]) -> bool:
        """Whether somebody else who still lives has the claim."""
        here = self.me["processes"]
        pid, boot = found.get("pid"), found.get("boot")
        if here is not None and found.get("processes") == here and isinstance(pid, int):
            return _start_of(pid) == boot is not None
        return self._age_seconds(path) < self._times.abandoned

    def _age_seconds(self, path: str) -> float:
        """Since the claim was written, by the clock that also dates a file written now."""
        name, now = path.rpartition("/")[2], f"now-{uuid.uuid4().hex}"
        folder = self._store.at(self._folder)
        folder.write_bytes(now, b"")
        try:
            written = {found: changed for found, _, changed in folder.files()}
        finally:
            folder.delete(now)
        return (written[now] - written.get(name, 0)) / 1e9

    def _read(self, path: str) -> dict[str, Any] | None:
        """The claim, or None if there is none; empty if it is none. DamagedFile for a folder."""
        try:
            found = parse_json(read_whole(self._store, path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _claim(self) -> bytes:
        """The time is for people."""
        return (json.dumps({**self.me, "time": time.time()}, indent=2) + "\n").encode()

    def _renew(self, path: str, done: threading.Event) -> None:
        while not done.wait(self._times.renew):
            with contextlib.suppress(
                StageFailed, UserError
            ):  # a store that is away may come back before the claim counts as abandoned
                if not self._is_mine(path):
                    return  # taken over while this process was held up: not taken back
                self._store.write_bytes(path, self._claim())


def _process_namespace() -> str | None:
    """What tells processes with equal numbers apart: the running kernel and its namespace of them.

    Hosts and containers may share a name. None where the system does not say.
    """
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{kernel} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """When a process of this namespace started, in the kernel's ticks; None if it does not run.

    Numbers of processes are used again, starts are not.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
