"""Training metrics: JSON lines in numbered parts, mirrored to the trackers.

A part is published whole and covers consecutive steps; none crosses a checkpoint, so that resuming
discards exactly the steps beyond it.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipelines.recipe import METRICS
from pipelines.storage import RunStore
from pipelines.train.trackers import Tracker

_FLUSH_SECONDS = 1.0


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
        self._last_flush = time.monotonic()
        for name in store.names(METRICS):
            if _last_step(name) > resume_step:
                store.delete(f"{METRICS}/{name}")

    def add(self, record: dict[str, Any]) -> None:
        """Queue one record (it has a "step"); publishes at most once a second."""
        self._pending.append(record)
        numbers = {
            key: float(value)
            for key, value in record.items()
            if isinstance(value, (int, float)) and key != "step"
        }
        for tracker in self._trackers:
            tracker.log(record["step"], numbers)
        if time.monotonic() - self._last_flush > _FLUSH_SECONDS:
            self.flush()

    def add_apart(self, record: dict[str, Any]) -> None:
        """Publish one record of another kind ("validation", "warning") as a part of its own.

        It comes after what is pending.
        """
        self.flush()
        self.add(record)
        self.flush()

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
        for tracker in self._trackers:
            tracker.save()

    def flush(self) -> None:
        """Publish what is pending."""
        self._last_flush = time.monotonic()
        if self._pending and self._may_write():
            first, last = self._pending[0]["step"], self._pending[-1]["step"]
            lines = "".join(json.dumps(record) + "\n" for record in self._pending)
            kind = self._pending[0].get("kind", "train")
            self._store.write_bytes(
                f"{METRICS}/part-{first:08d}-{last:08d}-{kind}.jsonl", lines.encode()
            )
        self._pending = []

    def close(self) -> None:
        self.flush()
        for tracker in self._trackers:
            tracker.close()


def read_metrics(store: RunStore) -> Iterator[dict[str, Any]]:
    """Every record published so far, in step order.

    Records of validation and warnings carry a kind, training's none.

    A worker group that outlives its killed driver for a moment may log a step that its successor
    logs too: one is kept.
    """
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for name in store.names(METRICS):
        for line in store.read_bytes(f"{METRICS}/{name}").splitlines():
            record = json.loads(line)
            found[record["step"], record.get("kind", "train")] = record
    for key in sorted(found):
        yield found[key]


def _last_step(part: str) -> int:
    return int(part.split("-")[2])
