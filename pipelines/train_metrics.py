"""Training metrics: JSON lines in numbered parts, mirrored to TensorBoard.

A part is published whole and covers consecutive steps; none crosses a checkpoint, so that resuming discards exactly the
steps beyond it.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

from pipelines.store import RunStore

FOLDER = "metrics"
_FLUSH_SECONDS = 1.0


class MetricsWriter:
    """Collects records of rank 0 and publishes them as parts."""

    def __init__(self, store: RunStore, resume_step: int) -> None:
        self._store = store
        self._pending: list[dict[str, Any]] = []
        self._last_flush = time.monotonic()
        for name in store.names(FOLDER):
            if _last_step(name) > resume_step:
                store.delete(f"{FOLDER}/{name}")
        self._board: Any = None
        if store.is_local:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(store.local_path("tensorboard")), purge_step=resume_step + 1)

    def add(self, record: dict[str, Any]) -> None:
        """Queue one record (it has a "step"); publishes at most once a second."""
        self._pending.append(record)
        if self._board is not None:
            for key, value in record.items():
                if isinstance(value, (int, float)) and key != "step":
                    self._board.add_scalar(key, value, record["step"])
        if time.monotonic() - self._last_flush > _FLUSH_SECONDS:
            self.flush()

    def add_apart(self, record: dict[str, Any]) -> None:
        """Publish one record of another kind ("validation", "warning") as a part of its own, after what is pending."""
        self.flush()
        self.add(record)
        self.flush()

    def flush(self) -> None:
        """Publish what is pending; called before every checkpoint."""
        self._last_flush = time.monotonic()
        if self._pending:
            first, last = self._pending[0]["step"], self._pending[-1]["step"]
            lines = "".join(json.dumps(record) + "\n" for record in self._pending)
            kind = self._pending[0].get("kind", "train")
            self._store.write_bytes(f"{FOLDER}/part-{first:08d}-{last:08d}-{kind}.jsonl", lines.encode())
            self._pending = []

    def close(self) -> None:
        self.flush()
        if self._board is not None:
            self._board.close()


def read_metrics(store: RunStore) -> Iterator[dict[str, Any]]:
    """Every record published so far, in step order; records of validation and warnings carry a kind, training's none.

    A worker group that outlives its killed driver for a moment may log a step that its successor logs too: one is kept.
    """
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for name in store.names(FOLDER):
        for line in store.read_bytes(f"{FOLDER}/{name}").splitlines():
            record = json.loads(line)
            found[record["step"], record.get("kind", "train")] = record
    for key in sorted(found):
        yield found[key]


def _last_step(part: str) -> int:
    return int(part.split("-")[2])
