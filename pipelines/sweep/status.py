"""What `status` says of a sweep: one row per trial, and one of the whole."""

from pipelines.recipe import (
    BEST,
    MANIFEST,
    PAGE,
    STARTED,
    TRIAL,
    TRIALS,
    read_manifest,
    read_started,
)
from pipelines.storage import RunStore
from pipelines.sweep.trial_record import read_trial


def is_sweep_folder(store: RunStore) -> bool:
    return store.exists(STARTED) and read_started(store).get("stage") == "tune"


def sweep_status(store: RunStore) -> list[dict[str, str]]:
    """Rows of `status`: stage, state, detail, path."""
    done = store.exists(MANIFEST) and bool(read_manifest(store))
    rows = []
    for name in store.names(TRIALS):
        place = store.at(TRIALS, name)
        label = f"trial {int(name.split('-')[0])}"
        if place.exists(TRIAL):
            trial = read_trial(place)
            detail = trial.message or f"{len(trial.runs)} runs, {trial.seconds:.0f} s"
            rows.append(_row(label, trial.status, detail, place))
        else:
            rows.append(_row(label, "stopped" if done else "unfinished", "", place))
    detail = (
        f"{BEST}, report/{PAGE}, {TRIALS}.csv"
        if done
        else "add --resume to the same command to go on"
    )
    return [*rows, _row("tune", "done" if done else "unfinished", detail, store)]


def _row(stage: str, state: str, detail: str, place: RunStore) -> dict[str, str]:
    return {"stage": stage, "state": state, "detail": detail, "path": place.root}
