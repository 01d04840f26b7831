"""Training metrics: JSON lines in numbered parts, mirrored to the trackers.

A part is published whole and covers consecutive steps; none crosses a checkpoint, so that resuming
discards exactly the steps beyond it. The last part is published again with the steps that follow,
until it is full or a checkpoint ends it. Steps are published beside the training.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipelines.recipe import MANIFEST, METRICS, read_manifest
from pipelines.storage import RunStore, read_lines
from pipelines.train.trackers import Tracker

_FLUSH_SECONDS = 1.0
_FULL = 200  # records
_LOOKS = 5  # at a directory whose files are replaced meanwhile


class MetricsWriter:
    """Collects records of rank 0 and publishes them as parts.

    Args:
        resume_step: parts beyond it are discarded. may_write: whether this worker group still is
            the run's.
    """

    def __init__(
        self,
        store: RunStore,
        resume_step: int,
        trackers: Sequence[Tracker],
        may_write: Callable[[], bool],
    ) -> None:
        self._store, self._trackers, self._may_write = store, trackers, may_write
        self._pending: list[dict[str, Any]] = []
        self._last_part: tuple[str, list[dict[str, Any]]] | None = None
        self._last_flush = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._beside: Future[None] | None = None
        for name in store.names(METRICS):
            if _last_step(name) > resume_step:
                store.delete(f"{METRICS}/{name}")

    def add(self, record: dict[str, Any]) -> None:
        """Queue one record (it has a "step"); publishes at most once a second, in a thread.

        Raises: what the publication before met.
        """
        self._pending.append(record)
        self._track(record)
        is_busy = self._beside is not None and not self._beside.done()
        if time.monotonic() - self._last_flush > _FLUSH_SECONDS and not is_busy:
            self._wait()
            self._beside = self._thread.submit(self._extend, self._taken())

    def _taken(self) -> list[dict[str, Any]]:
        """What is pending, which is pending no longer."""
        self._last_flush = time.monotonic()
        taken, self._pending = self._pending, []
        return taken

    def _wait(self) -> None:
        if self._beside is not None:
            self._beside.result()

    def _track(self, record: dict[str, Any]) -> None:
        numbers = {
            key: float(value)
            for key, value in record.items()
            if isinstance(value, (int, float)) and key != "step"
        }
        for tracker in self._trackers:
            tracker.log(record["step"], numbers)

    def add_apart(self, record: dict[str, Any]) -> None:
        """Publish one record of another kind ("validation", "warning") as a part of its own.

        It comes after what is pending.
        """
        self.flush()
        self._track(record)
        self._publish([record])

    def warn(self, step: int, messages: Sequence[str]) -> None:
        """Publish warnings beside those that a step has already."""
        earlier = [
            m
            for r in read_metrics(self._store)
            if r["step"] == step and r.get("kind") == "warning"
            for m in r["messages"]
        ]
        new = [message for message in messages if message not in earlier]
        if new:
            self.add_apart({"step": step, "kind": "warning", "messages": [*earlier, *new]})

    def checkpoint(self) -> None:
        """Publish what is pending, the trackers' too; called before every checkpoint."""
        self.flush()
        self._last_part = None
        for tracker in self._trackers:
            tracker.save()

    def flush(self) -> None:
        """Publish what is pending before this returns."""
        self._wait()
        self._extend(self._taken())

    def _extend(self, new: list[dict[str, Any]]) -> None:
        """Publish records in one part with the steps before them."""
        if new:
            replaced, earlier = self._last_part or ("", [])
            records = [*earlier, *new]
            name = self._publish(records)
            if name and replaced:
                self._store.delete(replaced)
            self._last_part = (name, records) if name and len(records) < _FULL else None

    def _publish(self, records: Sequence[dict[str, Any]]) -> str:
        """The path of the part that holds these records; empty if this worker may not write."""
        if not self._may_write():
            return ""
        first, last = records[0]["step"], records[-1]["step"]
        kind = records[0].get("kind", "train")
        path = f"{METRICS}/part-{first:08d}-{last:08d}-{kind}.jsonl"
        lines = "".join(json.dumps(record) + "\n" for record in records)
        self._store.write_bytes(path, lines.encode())
        return path

    def close(self) -> None:
        self.flush()
        self._thread.shutdown()
        for tracker in self._trackers:
            tracker.close()


def read_metrics(store: RunStore) -> Iterator[dict[str, Any]]:
    """Every record published so far, in step order.

    Records of validation and warnings carry a kind, training's none.

    A worker group that outlives its killed driver for a moment may log a step that its successor
    logs too: one is kept.
    """
    for look in range(_LOOKS):
        try:
            found = _records_of(store)
            break
        except FileNotFoundError:  # a part was replaced by a longer one
            if look == _LOOKS - 1:
                raise
    for key in sorted(found):
        yield found[key]


def _records_of(store: RunStore) -> dict[tuple[int, str], dict[str, Any]]:
    """(step, kind) -> record of every part that is listed."""
    hashes = read_manifest(store)["outputs"] if store.exists(MANIFEST) else {}
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for name in store.names(METRICS):
        for record in read_part(store, name, hashes.get(f"{METRICS}/{name}")):
            found[record["step"], record.get("kind", "train")] = record
    return found


def read_part(store: RunStore, name: str, hash_: str | None = None) -> list[dict[str, Any]]:
    """The records of a part. Raises: DamagedFile if it is not what was written."""
    cure = "restore it, or remove it: the metrics lack its steps then"
    return read_lines(store, f"{METRICS}/{name}", {"step": int}, hash_, cure)


def _last_step(part: str) -> int:
    return int(part.split("-")[2])
