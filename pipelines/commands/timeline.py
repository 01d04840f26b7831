"""Where a run's time went: what every command added up at its end, and the table of all.

RUN/timeline holds a file for each time that a stage worked, and one for what a command did around
its stages. What was killed has left none.
"""

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.recipe import TIMELINE, RunPaths
from pipelines.storage import (
    KINDS,
    REST,
    Fields,
    RunStore,
    read_record,
    recorded,
    split_of,
    write_record,
)

_NUMBER = (int, float)
_PART: Fields = {"name": str, "started_at": _NUMBER, "seconds": _NUMBER, "split": dict}
AROUND = "command"  # before, between and after its stages


class CommandTimes:
    """Where the time of a command goes, stage by stage; written as a stage ends, and at its end.

    A command that has run no stage leaves nothing.

    Args:
        store: of the run. began: seconds since the epoch.
    """

    def __init__(self, store: RunStore, began: float) -> None:
        self._store, self._at = store, began
        self._around = dict.fromkeys((*KINDS, REST), 0.0)
        self._began, self._has_stage = began, False

    def __enter__(self) -> "CommandTimes":
        self._recording = recorded()
        self._spans = self._recording.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._recording.__exit__(None, None, None)
        self._add_around()
        if self._has_stage:
            self._write(AROUND, self._began, self._around)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The block is a stage's work."""
        self._add_around()
        self._has_stage, start = True, self._at
        try:
            yield
        finally:
            self._at = time.time()
            self._write(name, start, split_of(start, self._at, self._spans))

    def _add_around(self) -> None:
        now = time.time()
        for kind, seconds in split_of(self._at, now, self._spans).items():
            self._around[kind] += seconds
        self._at = now

    def _write(self, name: str, start: float, split: dict[str, float]) -> None:
        body = {"name": name, "started_at": start, "seconds": sum(split.values()), "split": split}
        write_record(self._store, f"{TIMELINE}/{name}-{uuid.uuid4().hex[:12]}.json", body)


def read_times(run_dir: str) -> list[dict[str, Any]]:
    """A record per stage, in the order of their work: name, times, seconds, split by kind.

    Those of a stage that worked several times are added up.
    """
    store = RunPaths.at(run_dir).run
    cure = "remove it: the table lacks its seconds then"
    parts = [
        read_record(store, f"{TIMELINE}/{name}", _PART, cure) for name in store.names(TIMELINE)
    ]
    found: dict[str, dict[str, Any]] = {}
    for part in sorted(parts, key=lambda part: part["started_at"]):
        record = found.setdefault(
            part["name"],
            {
                "name": part["name"],
                "times": 0,
                "seconds": 0.0,
                "split": dict.fromkeys((*KINDS, REST), 0.0),
            },
        )
        record["times"] += 1
        record["seconds"] += part["seconds"]
        for kind, seconds in part["split"].items():
            record["split"][kind] = record["split"].get(kind, 0.0) + seconds
    return sorted(found.values(), key=lambda record: record["name"] == AROUND)


def timeline_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """The table of `status --timeline`: seconds per stage and kind, and their sums."""
    kinds = (*KINDS[::-1], REST)
    head = f"{'':<10}{'times':>6}{'seconds':>9}" + "".join(f"{kind:>9}" for kind in kinds)
    total = {
        "name": "all",
        "times": max((record["times"] for record in records), default=0),
        "seconds": sum(record["seconds"] for record in records),
        "split": {kind: sum(record["split"][kind] for record in records) for kind in kinds},
    }
    return [head] + [
        f"{record['name']:<10}{record['times']:>6}{record['seconds']:>9.1f}"
        + "".join(f"{record['split'][kind]:>9.1f}" for kind in kinds)
        for record in (*records, total)
    ]
