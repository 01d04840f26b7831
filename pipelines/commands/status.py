"""status: what of a run is done, under way, stopped or failed, and where the outputs are."""

import time
from collections.abc import Callable
from typing import Any

from pipelines.commands.discriminator_status import (
    beside_status,
    discriminator_status,
    is_discriminators,
)
from pipelines.commands.stages import REPORT, RUN, STAGES
from pipelines.commands.timeline import read_times, timeline_lines
from pipelines.errors import UserError
from pipelines.merge import is_merge_folder, merge_status
from pipelines.recipe import CONFIG, MERGE, STARTED, TIMELINE, RunPaths
from pipelines.storage import RunStore, nearest_path, shown_seconds
from pipelines.sweep import is_sweep_folder, sharded_status, sweep_status

AT_WORK = ("running", "resuming")
_POLL_SECONDS, _LOOKS_WITHOUT_WORK = 2.0, 3  # the time between two stages is no end
_LISTED = 8


def run_status(run_dir: str) -> list[dict[str, Any]]:
    """One row per stage (trial of a sweep, point of a merge): stage, state, detail, path.

    Rows of what a process works on have its host, pid and since too. Reads records only.

    Raises: UserError if the directory holds no run.
    """
    store = RunStore(run_dir)
    if is_sweep_folder(store):
        return sweep_status(store)
    if rows := sharded_status(store):
        return rows
    if is_merge_folder(store):
        return merge_status(store)
    paths = RunPaths.at(run_dir)
    if is_discriminators(store):
        return discriminator_status(paths)
    beside = beside_status(paths)  # whose pairs may lie elsewhere
    if not holds_run(store):
        if beside:
            return beside
        raise UserError(no_run(store, run_dir))
    return [*(row for stage in STAGES for row in stage.status(paths)), *beside]


def is_something(store: RunStore) -> bool:
    """Whether `run_status` knows what a directory is."""
    is_other = is_sweep_folder(store) or is_merge_folder(store)
    return is_other or holds_run(store) or bool(beside_status(RunPaths.at(store.root)))


def holds_run(store: RunStore) -> bool:
    """Whether a run has begun in a directory."""
    if store.exists(CONFIG):
        return True
    paths = RunPaths.at(store.root)
    return any(stage.folder(paths).exists(STARTED) for stage in STAGES)


def no_run(store: RunStore, run_dir: str) -> str:
    """What to say of a place without a run, with what may be meant."""
    if not store.exists():
        return f"{store.root}: no run here: no such directory{nearest_path(run_dir)}"
    inside = [
        name
        for name in store.names()[:1000]
        if any(store.exists(f"{name}/{file}") for file in (CONFIG, STARTED, MERGE))
    ]
    if not inside:
        return f"{store.root}: no run here (no {CONFIG})"
    more = f" and {len(inside) - _LISTED} more" if len(inside) > _LISTED else ""
    return f"{store.root}: no run here, but it holds {', '.join(inside[:_LISTED])}{more}"


def status_lines(rows: list[dict[str, Any]]) -> list[str]:
    """What a terminal shows: the state of all in a line, then a line for each row."""
    where = {(row["host"], row["pid"], row["since"]) for row in rows if row["state"] in AT_WORK}
    lines = [_summary(rows, where)]
    width = max(len(row["stage"]) for row in rows)
    for row in rows:
        line = f"{row['stage']:<{width}}  {row['state']:<12} {row['detail']:<60} {row['path']}"
        lines.append(line)
    return lines


def _summary(rows: list[dict[str, Any]], where: set[tuple[Any, Any, Any]]) -> str:
    working = [row for row in rows if row["state"] in AT_WORK]
    if working:
        names = ", ".join(f"{row['stage']}: {row['state']}" for row in working)
        host, pid, since = max(where, key=lambda place: place[2])
        ago = shown_seconds(max(0.0, time.time() - since))
        return f"{names} (on {host}, process {pid}, for {ago})"
    for state, said in (("failed", "failed"), ("stopped", "stopped: no process works on it")):
        if found := [row["stage"] for row in rows if row["state"] == state]:
            return f"{', '.join(found)}: {said}"
    run = {stage.name for stage in RUN}
    is_run = any(row["stage"] == REPORT.name for row in rows)  # the others have rows of their own
    needed = [row for row in rows if row["stage"] in run] if is_run else rows
    left = [row["stage"] for row in needed if row["state"] == "not started"]
    return "finished" if not left else f"nothing is running; not started: {', '.join(left)}"


def follow(
    run_dir: str, show: Callable[[list[str]], None], poll_seconds: float = _POLL_SECONDS
) -> None:
    """Show the lines whenever they change, until nothing works there any more."""
    shown: list[str] = []
    idle = 0
    while True:
        rows = run_status(run_dir)
        lines = status_lines(rows)
        if lines != shown:
            show(lines)
            shown = lines
        is_at_work = any(row["state"] in AT_WORK for row in rows)
        idle = 0 if is_at_work else idle + 1
        if idle >= _LOOKS_WITHOUT_WORK or (not is_at_work and lines[0] == "finished"):
            return
        time.sleep(poll_seconds)


def run_timeline(run_dir: str) -> list[str]:
    """The table of where a run's time went.

    Raises: UserError if no command has kept that.
    """
    found = read_times(run_dir)
    if not found:
        raise UserError(f"{RunStore(run_dir).root}: no stage has worked here (no {TIMELINE})")
    return timeline_lines(found)
