"""What Ray Tune keeps of a sweep in SWEEP/.ray, and whether it can be gone on with.

Trials have files of their own, so that Tune may forget everything: it begins anew then, and every
trial that has ended is read at once.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.errors import DamagedFile, StageFailed
from pipelines.recipe import TRIAL, TRIALS, Say
from pipelines.storage import RunStore, parse_json
from pipelines.sweep.space import Sweep
from pipelines.sweep.trial_record import read_trial

RAY, NAME = ".ray", "sweep"
LISTED = "listed"  # where Ray Tune's config holds a point that was listed beforehand
_STATES = "experiment_state-"


class Lost(Exception):
    """Tune does not know, or knows otherwise, what became of a trial."""


def chosen(config: dict[str, Any]) -> dict[str, Any]:
    """Number and point of a trial, in Ray Tune's config of it."""
    found: dict[str, Any] = config.get(LISTED, config)
    return found


def go_on(sweep: Sweep, restore: Callable[[str], Any], say: Say) -> Any:
    """What `restore` makes of Tune's state, given its path; None if there is none, or no more.

    A trial whose file is damaged is gone on with, which Tune would not do with what it has ended.
    """
    store = RunStore(sweep.run_dir)
    path = f"{store.root}/{RAY}/{NAME}"
    try:
        for name in store.names(TRIALS):
            _check_trial(store.at(TRIALS, name))
        _check_points(sweep, store)
        return restore(path)
    except StageFailed:  # a store that is away, files that cannot be opened now
        raise
    except Exception as error:  # pickle's and Tune's own, of any kind
        forget(sweep, error, say)
        return None


def forget(sweep: Sweep, error: Exception, say: Say) -> None:
    """Remove Tune's state, and say why."""
    why = (str(error).splitlines() or [""])[0] or type(error).__name__
    named = why if isinstance(error, DamagedFile) else f"{sweep.run_dir}/{RAY} is damaged: {why}"
    say(f"tune: {named}; Ray Tune begins anew, trials that have ended are kept")
    RunStore(sweep.run_dir).delete(RAY)


def _check_trial(store: RunStore) -> None:
    try:
        read_trial(store)
    except FileNotFoundError:
        pass
    except DamagedFile:
        store.delete(TRIAL)
        raise


def _check_points(sweep: Sweep, store: RunStore) -> None:
    """Raises: Lost if a trial of Tune's is none of the sweep's; KeyError, TypeError, ValueError."""
    states = [name for name in store.names(f"{RAY}/{NAME}") if name.startswith(_STATES)]
    if not states:
        return
    path = f"{RAY}/{NAME}/{states[-1]}"
    for trial, _ in parse_json(store.read_bytes(path))["trial_data"]:
        check_point(sweep, parse_json(trial)["config"])


def check_point(sweep: Sweep, config: dict[str, Any]) -> None:
    """Raises: Lost if Tune's config names a point that the sweep does not have."""
    told: Mapping[str, Any] = chosen(config)
    number, point = told["number"], told["point"]
    points = sweep.points
    if points is None:
        known = set(point) <= set(sweep.space)
    else:
        known = _plain(dict(sweep.own_points or ()).get(number)) == _plain(point)
    if not known:
        raise Lost(f"trial {number} of {_plain(point)} is none of the sweep's")


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
