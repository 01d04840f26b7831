"""What `status` says of a merge: a row per map and per point, and one of the whole."""

from typing import Any

from pipelines.recipe import (
    FRONTIER,
    MANIFEST,
    MAPS,
    MERGE,
    MERGE_RECORD,
    PAGE,
    POINTS,
    RESULTS,
    STARTED,
    read_manifest,
    read_started,
    row_of,
)
from pipelines.storage import (
    RunStore,
    TaskResults,
    newest_note,
    read_record,
    told_progress,
    whereabouts,
)

_FIELDS = {"points": list, "maps": list, "tasks": int}
_CURE = "remove it and give the merge's command again, which draws only what is missing"


def is_merge_folder(store: RunStore) -> bool:
    return store.exists(MERGE) or store.exists(MERGE_RECORD)


def merge_status(store: RunStore) -> list[dict[str, Any]]:
    """Rows of `status`: stage, state, detail, path; of what runs host, pid and since too.

    They have the points that the last command asked for. Records are read, and nothing else.
    """
    points, maps, tasks = _asked(store)
    note = newest_note(store)
    at_work = whereabouts(note)
    rows = [_row(store.at(MAPS, name), f"map {name}", at_work, 0) for name in maps]
    rows += [_row(store.at(POINTS, name), f"point {name}", at_work, tasks) for name in points]
    done = sum(row["state"] == "done" for row in rows[len(maps) :])
    is_done = done == len(points) and store.exists(RESULTS) and not at_work
    detail = f"report/{PAGE}, {FRONTIER}.png, {RESULTS}"
    if not is_done:
        detail = f"{done} of {len(points)} points drawn"
        if not at_work:
            detail += "; the same command goes on with it"
        elif told := told_progress(note):
            detail += f"; {told}"
    state = "done" if is_done else "running" if at_work else "stopped"
    return [*rows, {**row_of("merge", state, detail, store), **at_work}]


def _asked(store: RunStore) -> tuple[list[str], list[str], int]:
    """Names of points and maps, and tasks of a point (0: not known, of an earlier version)."""
    if not store.exists(MERGE_RECORD):
        return store.names(POINTS), store.names(MAPS), 0
    record = read_record(store, MERGE_RECORD, _FIELDS, _CURE)
    return record["points"], record["maps"], record["tasks"]


def _row(place: RunStore, label: str, at_work: dict[str, Any], tasks: int) -> dict[str, Any]:
    if place.exists(MANIFEST):
        counts = read_manifest(place)["counts"]
        told = (
            f"{counts['samples']} samples of {counts['prompts']} prompts"
            if "samples" in counts
            else f"fitted on {counts.get('train_pairs')} pairs"
        )
        return row_of(label, "done", told, place)
    if not place.exists(STARTED):
        return row_of(label, "not started", "", place)
    read_started(place)  # or says that it is damaged
    kept = TaskResults(place).kept()
    detail = f"{kept} of {tasks} tasks" if tasks and kept else ""
    return {**row_of(label, "running" if at_work else "stopped", detail, place), **at_work}
