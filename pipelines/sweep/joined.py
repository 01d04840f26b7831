"""Several directories of one sweep, such as its shards, reported as one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.errors import UserError
from pipelines.recipe import DEFINITION, MANIFEST, TRIAL, TRIALS, Say
from pipelines.storage import RunStore, digest
from pipelines.sweep.definition import Definition, read_definition
from pipelines.sweep.results import publish_results, read_trials
from pipelines.sweep.sharded_status import shards_below
from pipelines.sweep.space import RECIPE, Point, Sweep
from pipelines.sweep.status import is_sweep_folder
from pipelines.sweep.trial_record import Trial, read_trial

_BETTER = ("finished", "diverged", "stopped", "failed")  # of two trials of one point
_SHOWN = 12


def sweeps_of(run_dirs: Sequence[str]) -> list[RunStore] | None:
    """The sweep directories that `report` is to join; None if none is a sweep's.

    Raises: UserError for sweeps beside runs.
    """
    found: list[RunStore] = []
    runs = []
    for run_dir in run_dirs:
        store = RunStore(run_dir)
        below = [store] if is_sweep_folder(store) else shards_below(store)
        found += below
        if not below:
            runs.append(run_dir)
    if found and runs:
        raise UserError(
            f"{runs[0]} holds no sweep, and {found[0].root} does: report runs and sweeps apart"
        )
    return list({store.root: store for store in found}.values()) or None


def report_sweeps(
    stores: Sequence[RunStore], run_dirs: Sequence[str], output: str | None, say: Say
) -> str:
    """Tables, front, best.yaml and page of the trials of all directories; returns the page's path.

    Trials count once per point. Where two directories have one, the one that came further does,
    then the one of the first directory.

    Raises: UserError for sweeps whose space, recipes, data or models differ, named; StageFailed if
        no trial finished.
    """
    target = RunStore(output or _common(stores, run_dirs)).root
    if len(stores) > 1 and target in {store.root for store in stores}:
        raise UserError(f"--output {output}: it is one of the sweeps; name another directory")
    definitions = [_definition(store) for store in stores]
    for store, definition in zip(stores[1:], definitions[1:], strict=True):
        _check_same(stores[0], definitions[0], store, definition)
    dump = definitions[0].sweep.model_dump(mode="json", by_alias=True)
    shard = dump["shard"] if len(stores) == 1 else None
    sweep = Sweep.model_validate({**dump, "run_dir": target, "shard": shard})
    trials, twice = joined_trials([_trials(store) for store in stores])
    parts = [d.sweep.shard or s.root for s, d in zip(stores, definitions, strict=True)]
    lines = [f"joined from {len(stores)}: {', '.join(parts)}"] if len(stores) > 1 else []
    if twice:
        lines.append(f"{twice} trials stand in more than one of them and count once")
    lines += _missing(sweep, trials)
    for line in lines:
        say(f"report: {line}")
    publish_results(sweep, trials, say, "; ".join(lines))
    return f"{target}/report/index.html"


def joined_trials(each: Sequence[Sequence[Trial]]) -> tuple[list[Trial], int]:
    """(the trials of several directories, each point once, by number; how many stood in several).

    Trials of searchers may share a number; the later ones get new ones.
    """
    found: dict[str, Trial] = {}
    twice = set()
    for trial in (trial for trials in each for trial in trials):
        key = point_key(trial.point)
        if key in found:
            twice.add(key)
            if _BETTER.index(trial.status) >= _BETTER.index(found[key].status):
                continue
        found[key] = trial
    numbered: dict[int, Trial] = {}
    for trial in found.values():
        free = max(numbered, default=-1) + 1
        number = free if trial.number in numbered else trial.number
        numbered[number] = trial.model_copy(update={"number": number})
    return [numbered[number] for number in sorted(numbered)], len(twice)


def point_key(point: Point) -> str:
    """A point, whatever folder its recipe lies in."""
    return digest({key: _file(value) if key == RECIPE else value for key, value in point.items()})


def _file(recipe: Any) -> str:
    return str(recipe).rsplit("/", 1)[-1]


def _common(stores: Sequence[RunStore], run_dirs: Sequence[str]) -> str:
    """Where a report goes that names no place: the one directory that was named."""
    if len(run_dirs) == 1:
        return run_dirs[0]
    raise UserError(
        f"a report of {len(stores)} sweeps has tables of its own: say where with --output DIR"
    )


def _definition(store: RunStore) -> Definition:
    try:
        return read_definition(store)
    except FileNotFoundError as error:
        raise UserError(
            f"{store.root}/{DEFINITION} is missing: give the sweep's command again, which writes it"
        ) from error


def _trials(store: RunStore) -> list[Trial]:
    """The trials of a directory that have ended, with the places where they lie now."""
    if store.exists(MANIFEST):
        found = read_trials(store)
    else:
        places = (store.at(TRIALS, name) for name in store.names(TRIALS))
        found = [read_trial(place) for place in places if place.exists(TRIAL)]
    placed = []
    for trial in found:
        here = store.at(TRIALS, f"{trial.number:04d}-{digest(trial.point)[:8]}")
        placed.append(trial.model_copy(update={"run_dir": here.root}) if here.exists() else trial)
    return placed


def _missing(sweep: Sweep, trials: Sequence[Trial]) -> list[str]:
    """What is said of listed points that no directory has; nothing of a searcher's."""
    if sweep.points is None:
        return []
    known = {point_key(trial.point) for trial in trials}
    left = [number for number, point in sweep.own_points or () if point_key(point) not in known]
    if not left:
        return []
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    numbers = ", ".join(map(str, left[:_SHOWN])) + more
    return [f"{len(left)} of {sweep.num_trials()} trials are missing ({numbers})"]


def _check_same(first: RunStore, ours: Definition, store: RunStore, theirs: Definition) -> None:
    """UserError naming the first thing in which two sweeps are not one."""
    for what, mine, other in (
        ("setting", _plain(ours.settings), _plain(theirs.settings)),
        ("input", _plain(ours.inputs), _plain(theirs.inputs)),
        ("setting", _goals(ours.sweep), _goals(theirs.sweep)),
    ):
        for key in sorted({*mine, *other}):
            if mine.get(key) != other.get(key):
                raise UserError(
                    f"{store.root} is no part of the sweep of {first.root}: {what} {key} is "
                    f"{_short(other.get(key))}, there it is {_short(mine.get(key))}"
                )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings or inputs without the shard, and without the folders that files lie in.

    Where data lies is no setting: its content is among the inputs.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        head, colon, tail = key.partition(": ")
        what, of, recipe = key.partition(" of ")
        name = f"{_file(head)}{colon}{tail}" if colon else f"{what}{of}{_file(recipe)}"
        if tail.startswith("data.") and tail.endswith(".path"):
            continue
        is_path = isinstance(value, str) and value.startswith("/")
        found[name] = _file(value) if is_path else value
        if key == "space":
            found[name] = _without_folders(value)
    found.pop("shard", None)
    return found


def _without_folders(space: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return _file(value) if isinstance(value, str) else value

    found = {}
    for key, values in space.items():
        when = values.get("when") or {}
        own = {name: plain(v) for name, v in values.items()} if key == RECIPE else dict(values)
        own["when"] = {k: plain(v) if k == RECIPE else v for k, v in when.items()}
        found[key] = own
    return found


def _goals(sweep: Sweep) -> dict[str, Any]:
    return sweep.model_dump(mode="json", include={"objectives", "pick"})


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
