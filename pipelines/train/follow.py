"""A training's metrics as they come, for those who look again and again: each part is read once.

What is kept has a bound: of a long training a point is the mean of several steps.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import UserError
from pipelines.recipe import ATTEMPT, METRICS, read_manifest
from pipelines.storage import RunStore, read_record
from pipelines.train.metrics import read_part

MOST_POINTS = 2000  # of a curve, an even number
Numbers = dict[str, float | None]
Part = tuple[int, int, str]  # first step, last step, kind


class Curve:
    """Numbers over steps, thinned: of every so many steps in a row the mean, at the last of them.

    Attributes:
        every: steps of a point, a power of two. points: complete ones, each with its step.
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most, self.every = most, 1
        self.points: list[Numbers] = []
        self._pending: list[Numbers] = []
        self.last_step = -1

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in a record that has a "step"; what is no finite number is none."""
        self.last_step = record["step"]
        self._pending.append(
            {
                key: value if math.isfinite(value) else None
                for key, value in record.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
        )
        if len(self._pending) == self.every:
            self.points.append(_mean(self._pending))
            self._pending = []
        if len(self.points) == self._most:
            pairs = range(0, self._most, 2)
            self.points = [_mean(self.points[at : at + 2]) for at in pairs]
            self.every *= 2

    def tail(self) -> Numbers | None:
        """The mean of the steps after the last complete point, None if there are none."""
        return _mean(self._pending) if self._pending else None


def _mean(records: list[Numbers]) -> Numbers:
    """Of every number over the records that have it; of the steps the last."""
    found: Numbers = {}
    for key in dict.fromkeys(key for record in records for key in record):
        if key == "step":
            found[key] = records[-1][key]
            continue
        given = [record[key] for record in records if key in record]
        known = [value for value in given if value is not None]
        found[key] = sum(known) / len(known) if known else None
    return found


@dataclass
class Followed:
    """What is known of a training.

    Attributes:
        epoch: another number means that points told before count no more: a training went back to
            a checkpoint, or a point is the mean of more steps now. curves: of the kinds "train" and
            "validation". warnings: step -> messages. problems: a line for each part that is
            damaged.
    """

    epoch: int = 0
    curves: dict[str, Curve] = field(default_factory=dict)
    warnings: dict[int, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class MetricsFollower:
    """Reads what a training has published since the last look.

    Args:
        store: of the train stage. most: points of a curve.
    """

    def __init__(self, store: RunStore, most: int = MOST_POINTS) -> None:
        self._store, self._most, self._epoch, self._attempt = store, most, 0, ""
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._epoch += 1
        self._read: dict[str, Part] = {}
        self._damaged: dict[str, str] = {}
        self.found = Followed(
            self._epoch, {kind: Curve(self._most) for kind in ("train", "validation")}
        )

    def look(self) -> Followed:
        """What is known now. Raises: StageFailed if an object store stays away."""
        attempt = self._attempt_now()
        parts = {name: part for name in self._store.names(METRICS) if (part := _part_of(name))}
        goes_back = any(not _holds(parts.values(), part) for part in self._read.values())
        if attempt != self._attempt or goes_back:
            self._begin_anew()
        self._attempt = attempt
        self._read = {name: part for name, part in self._read.items() if name in parts}
        new = sorted(parts.keys() - self._read.keys(), key=lambda name: parts[name])
        warnings = [name for name in self._read if parts[name][2] == "warning"]
        hashes = self._hashes() if new else {}
        before = [curve.every for curve in self.found.curves.values()]
        was_damaged, self._damaged = self._damaged, {}
        for name in (*new, *warnings[-1:]):  # more may have been said at the last one's step
            self._take(name, parts[name], hashes.get(f"{METRICS}/{name}"))
        if was_damaged.keys() & self._read.keys():  # repaired: its steps come before others'
            self._begin_anew()
            return self.look()
        if before != [curve.every for curve in self.found.curves.values()]:
            self._epoch += 1
            self.found.epoch = self._epoch
        self.found.problems = list(self._damaged.values())
        return self.found

    def _take(self, name: str, part: Part, hash_: str | None) -> None:
        try:
            records = read_part(self._store, name, hash_)
        except FileNotFoundError:  # a longer one has replaced it
            return
        except UserError as error:
            self._damaged[name] = str(error)
            return
        self._read[name] = part
        for record in records:
            kind = record.get("kind", "train")
            if kind == "warning":
                self.found.warnings[record["step"]] = list(map(str, record.get("messages", ())))
            elif kind in self.found.curves and record["step"] > self.found.curves[kind].last_step:
                self.found.curves[kind].add(record)

    def _hashes(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = read_manifest(self._store)["outputs"]
        except (FileNotFoundError, UserError):  # not finished; or `status` says so of its stage
            return {}
        return found

    def _attempt_now(self) -> str:
        """The worker group that writes: another one's steps may replace those of before."""
        try:
            return str(read_record(self._store, ATTEMPT, {"attempt": str})["attempt"])
        except (FileNotFoundError, UserError):
            return self._attempt


def _part_of(name: str) -> Part | None:
    """What a part holds by its name; None for a file that is none."""
    pieces = name.removesuffix(".jsonl").split("-")
    if len(pieces) != 4 or pieces[0] != "part" or not (pieces[1] + pieces[2]).isdecimal():
        return None
    return int(pieces[1]), int(pieces[2]), pieces[3]


def _holds(parts: Iterable[Part], read: Part) -> bool:
    """Whether the steps of a part that was read are still there, in it or in a longer one."""
    first, last, kind = read
    return any((low, mine) == (first, kind) and high >= last for low, high, mine in parts)
