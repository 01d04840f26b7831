"""What the page of `watch` is told of a sweep: the state of every trial, and a curve of each."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evaluation.report.live import chart_groups
from evaluation.report.sweep_view import distinct_names
from pipelines.commands.status import status_lines
from pipelines.commands.watched import LookFailed, Pace, columns
from pipelines.recipe import CONFIG, PAGE, TRIAL, TRIALS, read_config, read_started
from pipelines.storage import RunStore, digest
from pipelines.sweep import RECIPE, read_trial, sweep_status
from pipelines.train import MetricsFollower

_POINTS = 200  # of a trial's curve
_SEED = "seed-"


@dataclass
class _Trial:
    """A trial of the sweep, as far as it has come.

    Attributes:
        point: searched key -> value. runs: path below the sweep -> what its training writes.
            version: of the last look that found something new. is_over: nothing more comes.
    """

    point: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, MetricsFollower] = field(default_factory=dict)
    seen: tuple[Any, ...] = ()
    version: int = 0
    is_over: bool = False


class WatchedSweep:
    """A sweep's trials, looked at when somebody asks; one that has ended is read once."""

    def __init__(self, sweep_dir: str) -> None:
        self._store = RunStore(sweep_dir)
        self._lock, self._pace = threading.Lock(), Pace(self._store)
        self._trials: dict[str, _Trial] = {}
        self._keys: list[str] | None = None
        self._version = 0
        self._rows: list[dict[str, Any]] = []
        self._headline, self._damage = "", ""

    def runs(self) -> set[str]:
        """Where runs lie, below the sweep."""
        with self._lock:
            self._look_if_due()
            return {path for trial in self._trials.values() for path in trial.runs}

    def told(self, query: Mapping[str, str]) -> dict[str, Any]:
        """What is new to somebody who has seen so much.

        Args:
            query: metric, of the curves; since, the version that was told last of that metric;
                rest, the digest that came with it.
        """
        with self._lock:
            self._look_if_due()
            text = query.get("since", "")
            since = int(text) if text.isdecimal() and len(text) < 12 else 0
            metric = query.get("metric", "loss")
            curves = [
                curve
                for name, trial in self._trials.items()
                if trial.version > since
                for curve in _curves(name, trial, metric)
            ]
            rest = {
                "headline": self._headline,
                "damage": self._damage,
                "rows": self._rows,
                "keys": self._keys or [],
                "metrics": self._metrics(),
                "page": f"{self._store.root}/report/{PAGE}",
            }
            name = digest(rest)
            return {
                "kind": "sweep",
                "poll_seconds": self._pace.seconds,
                "version": self._version,
                "metric": metric,
                "curves": curves,
                "rest": name,
                **(rest if query.get("rest") != name else {}),
            }

    def _metrics(self) -> list[str]:
        """What a curve can show, the usual ones first."""
        keys = {
            key
            for trial in self._trials.values()
            for follower in trial.runs.values()
            for curve in follower.found.curves.values()
            for point in (*curve.points[:1], *curve.points[-1:])
            for key in point
        }
        groups = chart_groups(keys - {"step"})
        return [
            f"{prefix}{key}"
            for group in groups
            for chart in group["charts"]
            for key in chart["keys"]
            for prefix in ("", "validation/")
            if f"{prefix}{key}" in keys
        ]

    def _look_if_due(self) -> None:
        if not self._pace.is_due():
            return
        with self._pace.looking():
            try:
                self._look()
                self._damage = ""
            except LookFailed as error:
                self._damage = str(error)

    def _look(self) -> None:
        if self._keys is None:
            self._keys = list(read_started(self._store)["settings"].get("space", {}))
        rows = sweep_status(self._store)
        self._headline = status_lines(rows)[0]
        states = {row["path"]: row for row in rows}
        self._version += 1
        told: list[dict[str, Any]] = []
        for name in self._store.names(TRIALS):
            trial = self._trials.setdefault(name, _Trial())
            place = self._store.at(TRIALS, name)
            if not trial.is_over:
                self._look_at(trial, f"{TRIALS}/{name}", place)
            row = states.get(place.root, {"state": "", "detail": ""})
            told.append(
                {
                    "number": int(name.split("-")[0]),
                    "state": row["state"],
                    "detail": row["detail"],
                    "point": trial.point,
                    "runs": list(trial.runs),
                }
            )
        names = distinct_names(str(row["point"].get(RECIPE)) for row in told)
        for row in told:
            point = {key: _shown(value) for key, value in row["point"].items()}
            if RECIPE in point:
                point[RECIPE] = names[str(row["point"][RECIPE])]
            row["point"] = point
        self._rows = told

    def _look_at(self, trial: _Trial, path: str, place: RunStore) -> None:
        # Before its curves: what they lack then never comes.
        ended = read_trial(place) if place.exists(TRIAL) else None
        seeds = [name for name in place.names() if name.startswith(_SEED)]
        for root in [f"{path}/{name}" for name in seeds] or [path]:
            if root not in trial.runs:
                trial.runs[root] = MetricsFollower(self._store.at(root, "train"), _POINTS)
        trial.point = ended.point if ended else trial.point or self._point_of(trial)
        found = [follower.look() for follower in trial.runs.values()]
        seen = tuple((one.epoch, curve.last_step) for one in found for curve in one.curves.values())
        if seen != trial.seen:
            trial.seen, trial.version = seen, self._version
        # A failed one is tried again with --resume.
        trial.is_over = ended is not None and ended.status != "failed"

    def _point_of(self, trial: _Trial) -> dict[str, Any]:
        """The searched keys of a trial that runs, by its own recipe."""
        for root in reversed(trial.runs):
            store = self._store.at(root)
            if store.exists(CONFIG):
                recipe = read_config(store, CONFIG)[0]
                found = {key: _at(recipe, key) for key in self._keys or ()}
                if RECIPE in found:  # whose name its own copy does not hold
                    found[RECIPE] = f"({_at(recipe, 'objective.name')})"
                return found
        return {}


def _at(recipe: Mapping[str, Any], key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).rsplit("/", 1)[-1]


def _curves(name: str, trial: _Trial, metric: str) -> list[dict[str, Any]]:
    """A curve per run of a trial, of one metric."""
    number = int(name.split("-")[0])
    kind = "validation" if metric.startswith("validation/") else "train"
    found = []
    for path, follower in trial.runs.items():
        curve = follower.found.curves[kind]
        tail = curve.tail()
        points = [*curve.points, *([tail] if tail else [])]
        seed = path.rpartition(f"/{_SEED}")[2] if f"/{_SEED}" in path else ""
        label = f"trial {number}" + (f", seed {seed}" if seed else "")
        kept = [{"step": p["step"], metric: p[metric]} for p in points if metric in p]
        told = columns(kept)
        values = told["values"].get(metric, [])
        found.append({"run": path, "label": label, "x": told["steps"], "y": values})
    return found
