"""What `status` says of a discriminator: of its own run, and of the preference run beside it."""

from typing import Any

from pipelines.discriminator import DISCRIMINATOR, EDIT
from pipelines.pairs import PREPARE
from pipelines.recipe import (
    CONFIG,
    DISCRIMINATOR_RUN,
    STARTED,
    TOKEN_STATES,
    RunPaths,
    Stage,
    read_config,
)
from pipelines.reference import REFERENCE
from pipelines.storage import RunStore, who_works

EDITOR_RUN = "editor"  # below a discriminator's run, where its editor works


def is_discriminators(store: RunStore) -> bool:
    """Whether a run is a discriminator's, or its editor's: its reference keeps states alone."""
    if not store.exists(CONFIG):
        return False
    section = read_config(store, CONFIG)[0].get("reference")
    return isinstance(section, dict) and section.get("features") == [TOKEN_STATES]


def discriminator_status(paths: RunPaths) -> list[dict[str, Any]]:
    """A row for each stage on the way to a head, begun or not; then those of an editor."""
    if _is_begun(EDIT, paths):
        return _rows((PREPARE, EDIT), paths)
    rows = _rows((PREPARE, REFERENCE, DISCRIMINATOR), paths)
    editor = RunPaths.at(f"{paths.root}/{EDITOR_RUN}")
    return [*(EDIT.status(editor) if _is_begun(EDIT, editor) else ()), *rows]


def beside_status(paths: RunPaths) -> list[dict[str, Any]]:
    """One row for the discriminator of a preference run, if it was begun: that of the stage at
    work, else of the first one that is not done.
    """
    store = paths.run.at(DISCRIMINATOR_RUN)
    editor = store.at(EDITOR_RUN)
    if not (is_discriminators(store) or is_discriminators(editor)):
        return []
    rows = discriminator_status(RunPaths.at(store.root))
    left = [row for row in rows if row["state"] != "done"]
    row = next((row for row in left if "pid" in row), (left or rows[-1:])[0])
    detail = row["detail"] if not left else ": ".join(filter(None, (row["stage"], row["detail"])))
    # What no process works on and has not failed waits for the same command.
    state = "stopped" if row["state"] == "not started" else row["state"]
    return [{**row, "stage": DISCRIMINATOR.name, "state": state, "detail": detail,
             "path": row["path"] if not left else store.root}]  # fmt: skip


def _rows(stages: tuple[Stage[Any], ...], paths: RunPaths) -> list[dict[str, Any]]:
    return [
        row
        for stage in stages
        for row in stage.status(paths) or [stage.row("not started", "", stage.folder(paths))]
    ]


def _is_begun(stage: Stage[Any], paths: RunPaths) -> bool:
    store = stage.folder(paths)
    return store.exists(STARTED) or bool(who_works(store))
