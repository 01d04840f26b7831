"""report: one self-contained page for a run, or a comparison of several."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evaluation.report import (
    CURVES_FILE,
    NUMBERS_FILE,
    RunView,
    all_results,
    curves_csv,
    numbers_csv,
    render_report,
)
from pipelines.commands.quickstart_world import TOY_WORLD
from pipelines.commands.timeline import read_times, timeline_lines
from pipelines.errors import UserError
from pipelines.evaluate import read_history, read_results
from pipelines.recipe import (
    CONFIG,
    CONTROLLED,
    GATES,
    MANIFEST,
    MODEL,
    PAGE,
    RESULTS,
    SAMPLES,
    TOKENS,
    RunPaths,
    Say,
    check_config,
    checkpoint_folder,
    read_config,
    read_manifest,
)
from pipelines.storage import RunStore, digest, read_lines, read_record
from pipelines.sweep import report_sweeps, sweeps_of
from pipelines.train import read_metrics

_AGAIN = "restore it, or remove evaluation/manifest.json and run `sparsepo evaluate` again"
_TRAIN_AGAIN = "restore it, or remove train/manifest.json and run `sparsepo train` again"
_LOOK_AGAIN = "remove it and run `sparsepo schedule`, which looks at the gates again"


def run_report(
    run_dirs: Sequence[str], output: str | None = None, say: Say = lambda line: None
) -> str:
    """Write report/index.html and its numbers as JSON and CSV; returns the page's path.

    All go below `output` (default: the first run).

    Of directories of sweeps it writes what a sweep leaves, of all trials together.

    Raises: UserError naming a directory that holds no finished training, or a sweep that is none of
        the first one's.
    """
    if (sweeps := sweeps_of(run_dirs)) is not None:
        return report_sweeps(sweeps, run_dirs, output, say)
    views = [_view(run) for run in run_dirs]
    names = _labels(run_dirs, views)
    views = [replace(view, name=name) for view, name in zip(views, names, strict=True)]
    store = RunStore(f"{output or run_dirs[0]}/report")
    title = f"sparsepo: {views[0].name}" if len(views) == 1 else f"sparsepo: {', '.join(names)}"
    store.write_json(RESULTS, all_results(views))
    store.write_bytes(NUMBERS_FILE, numbers_csv(views).encode())
    store.write_bytes(CURVES_FILE, curves_csv(views).encode())
    store.write_bytes(PAGE, render_report(views, title).encode())
    return f"{store.root}/{PAGE}"


def _view(run_dir: str) -> RunView:
    store = RunStore(run_dir)
    train = store.at("train")
    if not store.exists(CONFIG):
        raise UserError(f"{store.root} holds no finished training run (no {CONFIG})")
    paths, times = RunPaths.at(run_dir), read_times(run_dir)
    recipe, text = read_config(store, CONFIG)
    evaluated = recipe.get("evaluate", {}).get("model")
    others = {
        name: _named(places.evaluation)
        for name, places in paths.named_evaluations().items()
        if places.evaluation.exists(MANIFEST)
    }
    is_trained = train.exists(MANIFEST)
    if not is_trained and not (evaluated and (paths.evaluation.exists(MANIFEST) or others)):
        raise UserError(f"{store.root} holds no finished training run (no train/{MANIFEST})")
    made = read_manifest(train) if is_trained else None
    for manifest in (
        *([made] if made else []),
        *([read_manifest(paths.evaluation)] if paths.evaluation.exists(MANIFEST) else []),
    ):
        check_config(store, CONFIG, recipe, manifest["settings"])
    found = _evaluation(paths.evaluation, recipe, text)
    return replace(
        found,
        results={**found.results, **_discriminator(paths, recipe)},
        name=recipe["objective"]["name"] if made else _folder(evaluated),
        counts=made["counts"] if made else None,
        data_counts=read_manifest(paths.pairs)["counts"],
        metrics=list(read_metrics(train)) if made else [],
        history=_checkpoints(paths.evaluation),
        timeline="\n".join(timeline_lines(times)) if times else "",
        method=_method(made) if made else "",
        seed=made["settings"].get("train.seed") if made else None,
        others={name: replace(other, name=name) for name, other in others.items()},
        is_toy=bool(made and _is_toy(train)),
    )


def _discriminator(paths: RunPaths, recipe: dict[str, Any]) -> dict[str, Any]:
    """The figures of the discriminator that weighs tokens, as the reference stage found them."""
    mask, store = recipe["mask"], paths.reference
    reads = "discriminator" in (mask["kind"], mask.get("value"))
    if not reads or not store.exists(MANIFEST):
        return {}
    figures = read_manifest(store)["counts"].get("discriminator")
    return {"discriminator": figures} if figures else {}


def _is_toy(train: RunStore) -> bool:
    """Whether the trained model says that it comes from the quickstart's world."""
    path = f"{MODEL}/config.json"
    return train.exists(path) and bool(read_record(train, path, cure=_TRAIN_AGAIN).get(TOY_WORLD))


def _method(made: dict[str, Any]) -> str:
    """What was trained, but for the seed: the same of runs that differ in it alone."""
    settings = {key: value for key, value in made["settings"].items() if key != "train.seed"}
    return digest([settings, made["inputs"]])


def _named(store: RunStore) -> RunView:
    """An evaluation with a name, which keeps its own recipe."""
    if not store.exists(CONFIG):
        raise UserError(f"{store.root}/{CONFIG} is missing: give the evaluation's command again")
    recipe, text = read_config(store, CONFIG)
    check_config(store, CONFIG, recipe, read_manifest(store)["settings"])
    return _evaluation(store, recipe, text)


def _evaluation(store: RunStore, recipe: dict[str, Any], text: str) -> RunView:
    """What an evaluation found, by the recipe that it was made with."""
    return RunView(
        name="",
        recipe=recipe,
        recipe_yaml=text,
        counts=None,
        data_counts={},
        results=read_results(store),
        samples=_lines(store, SAMPLES),
        controlled=_lines(store, CONTROLLED),
        responses=_lines(store, TOKENS),
    )


def _checkpoints(evaluation: RunStore) -> list[dict[str, Any]]:
    """The history's rows of checkpoints, with what their gates said."""
    rows = []
    for row in read_history(evaluation):
        if row["step"] is None:
            continue
        gates = f"{checkpoint_folder(row['step'])}/{GATES}"
        found = (
            read_record(evaluation, gates, {"passed": bool, "failures": list}, _LOOK_AGAIN)
            if evaluation.exists(gates)
            else {"passed": None, "failures": []}
        )
        rows.append(
            {
                **row,
                "passed": found["passed"],
                "failed": "; ".join(f["message"] for f in found["failures"]),
            }
        )
    return rows


def _labels(run_dirs: Sequence[str], views: Sequence[RunView]) -> list[str]:
    """Objective names where they differ, else the directories' names."""
    names = [view.name for view in views]
    if len(set(names)) == len(names):
        return names
    folders = [_folder(run) for run in run_dirs]
    return folders if len(set(folders)) == len(folders) else list(run_dirs)


def _folder(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _lines(store: RunStore, path: str) -> list[dict[str, Any]]:
    if not store.exists(path):
        return []
    known = read_manifest(store)["outputs"].get(path) if store.exists(MANIFEST) else None
    return read_lines(store, path, None, known, _AGAIN, may_be_empty=True)
