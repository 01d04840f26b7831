"""What the page of `watch` is told of a run: its state, its curves, what was held out."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from evaluation.report.live import chart_groups
from pipelines.commands.status import is_something, no_run, run_status, status_lines
from pipelines.errors import StageFailed, UserError
from pipelines.recipe import (
    CHECKPOINTS,
    CONFIG,
    MANIFEST,
    SAMPLES,
    TOKENS,
    RunPaths,
    checkpoint_folder,
    read_config,
    read_manifest,
)
from pipelines.storage import RunStore, digest, read_lines
from pipelines.train import MetricsFollower

_SHOWN = 8  # prompts, and responses with weights
_DIGITS = 6
_LEAST_SECONDS, _SHARE = 1.0, 0.1  # between two looks; of the time that is spent looking
_MOST_SECONDS_HERE, _MOST_SECONDS = 2.0, 60.0  # of a local disk, of an object store
_AGAIN = "the evaluation that wrote it, given again, writes it anew"
_SAMPLING = ("sentiment", "dialogue", "summarization")
_WEIGHING = ("preference", "masks")
LookFailed = (UserError, StageFailed, OSError)


class Pace:
    """When to look again: once a second, less often at a store where a look takes long."""

    def __init__(self, store: RunStore) -> None:
        self._due, self.seconds = 0.0, _LEAST_SECONDS
        self._most = _MOST_SECONDS_HERE if store.is_local else _MOST_SECONDS

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """The look is made in this block."""
        began = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            self.seconds = min(self._most, max(_LEAST_SECONDS, (now - began) / _SHARE))
            self._due = now + self.seconds


class WatchedRun:
    """A run, looked at when somebody asks and no more often than its pace.

    Args:
        run_dir: need not be there yet.
    """

    def __init__(self, run_dir: str) -> None:
        self._run_dir, self._store = run_dir, RunStore(run_dir)
        self._lock = threading.Lock()
        self._pace, self._slow = Pace(self._store), Pace(self._store)
        self._follower = MetricsFollower(self._store.at("train"))
        self._state: dict[str, Any] = {}
        self._damage: list[str] = []
        self._held_out: dict[str, Any] = {}
        self._known = ""  # by which files of an evaluation that is

    def told(self, query: Mapping[str, str]) -> dict[str, Any]:
        """What is new to somebody who has seen so much.

        Args:
            query: epoch; train and validation, the points that were seen of it; state and rest,
                the digests that came with what was told of these last.
        """
        with self._lock:
            self._look_if_due()
            found = self._follower.found
            seen = query if query.get("epoch") == str(found.epoch) else {}
            curves = {
                kind: points_since(curve, _number(seen.get(kind)))
                for kind, curve in found.curves.items()
            }
            rest = {
                "groups": chart_groups(
                    key for curve in found.curves.values() for key in _keys(curve)
                ),
                "held_out": self._held_out,
            }
            state = {
                **self._state,
                "damage": self._damage,
                "warnings": sorted(found.warnings.items()),
            }
            return {
                "kind": "run",
                "poll_seconds": self._pace.seconds,
                "epoch": found.epoch,
                "curves": curves,
                **_news("state", state, query),
                **_news("rest", rest, query),
            }

    def _look_if_due(self) -> None:
        if self._pace.is_due():
            with self._pace.looking():
                try:
                    self._damage = self._follower.look().problems
                except LookFailed as error:
                    self._damage = [str(error)]
        if self._slow.is_due():
            with self._slow.looking():
                self._state = run_state(self._run_dir)
                try:
                    self._look_at_evaluations()
                except LookFailed as error:
                    self._held_out, self._known = {"absent": [str(error)]}, ""

    def _look_at_evaluations(self) -> None:
        if not self._store.exists(CONFIG):
            self._held_out = {}
            return
        recipe = read_config(self._store, CONFIG)[0]
        name, place = newest_evaluation(RunPaths.at(self._run_dir))
        wanted = "" if place is None else str(read_manifest(place)["written_at"])
        if (known := f"{name} {wanted} {digest(recipe)}") != self._known:
            self._held_out = held_out(recipe, f"{self._store.root}/{CONFIG}", name, place)
            self._known = known


def _news(name: str, value: dict[str, Any], query: Mapping[str, str]) -> dict[str, Any]:
    """A part of what is told, with its digest; not to somebody who has it already."""
    known = digest(value)
    return {} if query.get(name) == known else {name: {**value, "digest": known}}


def run_state(run_dir: str) -> dict[str, Any]:
    """The headline of a run, what each stage does, and whether there is a run at all."""
    try:
        store = RunStore(run_dir)
        if not is_something(store):
            said = f"Waiting: {no_run(store, run_dir)}"
            return {"headline": said, "is_there": False, "stages": []}
        rows = run_status(run_dir)
        lines = status_lines(rows)
        stages = [{key: row[key] for key in ("stage", "state", "detail")} for row in rows]
        return {"headline": lines[0], "is_there": True, "stages": stages}
    except LookFailed as error:
        return {"headline": str(error), "is_there": True, "stages": []}


def points_since(curve: Any, seen: int) -> dict[str, Any]:
    """A curve's complete points after the first `seen`, and the one that is not complete yet."""
    points = curve.points[seen:] if 0 <= seen <= len(curve.points) else curve.points
    tail = curve.tail()
    return {
        "from": len(curve.points) - len(points),
        "to": len(curve.points),
        "every": curve.every,
        **columns(points),
        "tail": columns([tail]) if tail else None,
    }


def columns(points: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Steps, and a list of equal length for every other key."""
    keys = dict.fromkeys(key for point in points for key in point if key != "step")
    return {
        "steps": [point["step"] for point in points],
        "values": {key: [_short(point.get(key)) for point in points] for key in keys},
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _keys(curve: Any) -> Iterable[str]:
    """The keys of a curve; in long ones those that came first and last."""
    tail = curve.tail()
    for point in (*curve.points[:1], *curve.points[-1:], *([tail] if tail else [])):
        yield from (key for key in point if key != "step")


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() and len(text) < 12 else 0


def newest_evaluation(paths: RunPaths) -> tuple[str, RunStore | None]:
    """The evaluation of the published model, else of the last checkpoint that has one."""
    own = paths.evaluation
    if own.exists(MANIFEST):
        return "the published model", own
    for name in reversed(own.names(CHECKPOINTS)):
        step = name.removeprefix("step-")
        if step.isdecimal() and own.exists(f"{CHECKPOINTS}/{name}/{MANIFEST}"):
            return f"the checkpoint of step {int(step)}", own.at(checkpoint_folder(int(step)))
    return "", None


def held_out(
    recipe: Mapping[str, Any], config: str, name: str, place: RunStore | None
) -> dict[str, Any]:
    """Samples and token weights of an evaluation, and what is not there, with what brings it.

    Args:
        config: where the recipe lies. name: of the evaluated model.
    """
    absent: list[str] = []
    train, data, settings = (recipe.get(key) or {} for key in ("train", "data", "evaluate"))
    weighs = (recipe.get("mask") or {}).get("kind", "none") != "none"
    benchmarks = settings.get("benchmarks") or []
    if not (data.get("validation") or data.get("validation_fraction")):
        absent.append(
            "There are no validation pairs: data.validation_fraction (or data.validation) in "
            "another run brings validation curves."
        )
    elif train.get("validate_every") is None:
        absent.append(
            "Validated before the first step and after the last alone: train.validate_every brings "
            "validations in between."
        )
    if place is None:
        absent.append(
            "No samples and no token weights yet: steps would be slower if training made them. An "
            f"evaluation does. To see one of every checkpoint (train.checkpoint_every = "
            f"{train.get('checkpoint_every')}) while it trains, start beside it: sparsepo schedule "
            f"{config} --cron '*/10 * * * *'"
        )
    if not set(_SAMPLING) & set(benchmarks):
        absent.append(
            f"evaluate.benchmarks = {list(benchmarks)} draws no samples: {', '.join(_SAMPLING)} do."
        )
    if not weighs:
        absent.append("mask.kind = none: every token of a response has the same weight.")
    elif not set(_WEIGHING) & set(benchmarks):
        absent.append(
            f"evaluate.benchmarks = {list(benchmarks)} keeps no token weights: "
            f"{' and '.join(_WEIGHING)} do."
        )
    samples = _first_lines(place, SAMPLES)
    responses = _first_lines(place, TOKENS) if weighs else []
    return {"of": name, "samples": samples, "responses": responses, "absent": absent}


def _first_lines(place: RunStore | None, path: str) -> list[dict[str, Any]]:
    if place is None or not place.exists(path):
        return []
    hash_ = read_manifest(place)["outputs"].get(path)
    try:
        return read_lines(place, path, None, hash_, _AGAIN, may_be_empty=True)[:_SHOWN]
    except FileNotFoundError:
        return []
