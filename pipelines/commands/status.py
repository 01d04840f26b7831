"""status: what of a run is done, what is under way or failed, and where the outputs are."""

from typing import Any

from pipelines.errors import UserError
from pipelines.recipe import CONFIG, MANIFEST, STARTED, from_yaml
from pipelines.storage import RunStore
from pipelines.sweep import TRIAL, TRIALS, Trial
from pipelines.train import MEMORY, completed_steps


def run_status(run_dir: str) -> list[dict[str, str]]:
    """One row per stage (or trial of a sweep): stage, state, detail, path.

    The state is "done", "unfinished" or "not started". Reads stage records only.

    Raises: UserError if the directory holds no run.
    """
    store = RunStore(run_dir)
    if store.exists(STARTED) and store.read_json(STARTED)["stage"] == "tune":
        return _sweep_status(store)
    if not store.exists(CONFIG) and not any(
        store.exists(f"{name}/{STARTED}") for name in ("pairs", "sample", "train")
    ):
        raise UserError(f"{store.root}: no run here (no {CONFIG})")
    places = {
        name: store.at(folder)
        for name, folder in (("sample", "sample"), ("train", "train"), ("evaluate", "evaluation"))
    }
    shared = _shared_paths(store)
    places |= {"prepare": RunStore(shared["pairs"]), "reference": RunStore(shared["reference"])}
    rows = []
    for stage in ("sample", "prepare", "reference", "train", "evaluate"):
        place = places[stage]
        if place.exists(MANIFEST):
            manifest = place.read_json(MANIFEST)
            rows.append(
                _row(
                    stage,
                    "done",
                    f"{_detail(stage, manifest['counts'])}, {manifest['written_at']}",
                    place,
                )
            )
        elif place.exists(STARTED):
            rows.append(_row(stage, "unfinished", _progress(stage, place), place))
        elif stage != "sample":
            rows.append(_row(stage, "not started", "", place))
    page = store.at("report")
    rows.append(
        _row(
            "report",
            "done" if page.exists("index.html") else "not started",
            "index.html" if page.exists("index.html") else "",
            page,
        )
    )
    return rows


def _sweep_status(store: RunStore) -> list[dict[str, str]]:
    done = store.exists(MANIFEST)
    rows = []
    for name in store.names("trials"):
        place = store.at("trials", name)
        label = f"trial {int(name.split('-')[0])}"
        if place.exists(TRIAL):
            trial = Trial.model_validate(place.read_json(TRIAL))
            rows.append(
                _row(
                    label,
                    trial.status,
                    trial.message or f"{len(trial.runs)} runs, {trial.seconds:.0f} s",
                    place,
                )
            )
        else:
            rows.append(_row(label, "stopped" if done else "unfinished", "", place))
    detail = (
        f"best.yaml, report/index.html, {TRIALS}.csv"
        if done
        else "add --resume to the same command to go on"
    )
    return [*rows, _row("tune", "done" if done else "unfinished", detail, store)]


def _row(stage: str, state: str, detail: str, place: RunStore) -> dict[str, str]:
    return {"stage": stage, "state": state, "detail": detail, "path": place.root}


def _shared_paths(store: RunStore) -> dict[str, str]:
    found: dict[str, Any] = {}
    if store.exists(CONFIG):
        found = from_yaml(store.read_bytes(CONFIG).decode())["paths"]
    return {name: found.get(name) or f"{store.root}/{name}" for name in ("pairs", "reference")}


def _detail(stage: str, counts: dict[str, Any]) -> str:
    if stage == "prepare":
        return ", ".join(f"{n} {split}" for split, n in counts["pairs"].items())
    if stage == "reference":
        return f"{counts['mode']}, {counts['tokens']:,} tokens"
    if stage == "train":
        return f"{counts['steps']} steps"
    if stage == "sample":
        return f"{counts['candidates']} candidates"
    return ", ".join(counts["benchmarks"])


def _progress(stage: str, place: RunStore) -> str:
    failures = [
        place.read_json(name)["message"] for name in place.names() if name.startswith("failure-")
    ]
    if failures:
        return f"failed: {failures[0]}"
    if stage == "train":
        steps = completed_steps(place)
        memory = ""
        if place.exists(MEMORY):
            found = place.read_json(MEMORY)
            memory = (
                f"; out of memory at step {found['step']}: micro-batches of "
                f"{found['micro_batch_tokens']} tokens since, {found['was']} before"
            )
        return (f"last checkpoint: step {steps[-1]}" if steps else "no checkpoint yet") + memory
    if stage == "reference":
        scored = [
            f"{feature} {len(place.names(f'shards/{feature}'))}"
            for feature in place.names("shards")
        ]
        return f"shards scored: {', '.join(scored) or 0}"
    return "run the same command again to finish it"
