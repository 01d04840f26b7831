"""What `status` says of a sweep: one row per trial, and one of the whole."""

from typing import Any

from pipelines.recipe import (
    BEST,
    MANIFEST,
    PAGE,
    STARTED,
    TRIAL,
    TRIALS,
    RunPaths,
    read_manifest,
    read_started,
    row_of,
)
from pipelines.storage import RunStore, newest_note, whereabouts
from pipelines.sweep.extent import Extent
from pipelines.sweep.trial_record import read_trial
from pipelines.train import TRAIN


def is_sweep_folder(store: RunStore) -> bool:
    return store.exists(STARTED) and read_started(store).get("stage") == "tune"


def sweep_status(store: RunStore) -> list[dict[str, Any]]:
    """Rows of `status`: stage, state, detail, path; of what runs host, pid and since too."""
    done = store.exists(MANIFEST) and bool(read_manifest(store))
    note = {} if done else newest_note(store)
    at_work = whereabouts(note)
    rows: list[dict[str, Any]] = []
    for name in store.names(TRIALS):
        place = store.at(TRIALS, name)
        label = f"trial {int(name.split('-')[0])}"
        if place.exists(TRIAL):
            trial = read_trial(place)
            detail = trial.message or f"{len(trial.runs)} runs, {trial.seconds:.0f} s"
            rows.append(row_of(label, trial.status, detail, place))
        else:
            state = "running" if at_work else "stopped"
            rows.append({**row_of(label, state, trial_progress(place), place), **at_work})
    detail = (
        f"{BEST}, report/{PAGE}, {TRIALS}.csv"
        if done
        else ""
        if at_work
        else "add --resume to the same command to go on"
    )
    if at_work:
        ended = sum(row["state"] != "running" for row in rows)
        detail = f"{ended} of {note.get('trials', '?')} trials ended"
    extent = Extent.of(store)
    if extent is not None and extent.shard is not None:
        of_all = f"{extent.trials} of {extent.trials_of_all} trials"
        detail = f"shard {extent.shard} ({of_all}): {detail}"
    state = "done" if done else "running" if at_work else "stopped"
    return [*rows, {**row_of("tune", state, detail, store), **at_work}]


def trial_progress(place: RunStore) -> str:
    """How far the run of a trial has come that trains, by its files; of the last seed's run."""
    seeds = [name for name in place.names() if name.startswith("seed-")]
    for root in (*(place.at(name).root for name in reversed(seeds)), place.root):
        paths = RunPaths.at(root)
        if paths.train.exists(MANIFEST):
            return "trained, evaluating"
        if paths.train.exists(STARTED):
            return TRAIN.progress(paths)
    return ""
