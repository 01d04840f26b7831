"""What a sweep leaves: tables, the Pareto front, best.yaml, figures, a page, TensorBoard's HParams.

The tables are those of trials and of runs.
"""

import csv
import io
import operator
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from evaluation.comparison import SeedComparison, numbers_by_seed
from evaluation.frontier import knee_point, pareto_front
from evaluation.report.sweep import SweepView, TrialView, render_sweep, sweep_figures
from pipelines.errors import StageFailed, UserError
from pipelines.recipe import (
    BEST,
    CONFIG,
    FRONT,
    MANIFEST,
    RUNS,
    TRIALS,
    Say,
    check_config,
    read_config,
    read_manifest,
    set_keys,
    to_yaml,
)
from pipelines.storage import RunStore, damaged, read_list
from pipelines.sweep.space import RECIPE, Goal, Point, Sweep
from pipelines.sweep.trial_record import Trial, is_number

REPORT = "report"
_BOARD = "tensorboard"
_COMPARISONS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}


def read_trials(store: RunStore) -> list[Trial]:
    """The trials of a finished sweep, as its table has them.

    Raises: DamagedFile if it is not what was written.
    """
    path, cure = f"{TRIALS}.json", f"restore it, or remove {MANIFEST} and add --resume"
    known = read_manifest(store)["outputs"] if store.exists(MANIFEST) else {}
    rows = read_list(store, path, known.get(path), cure)
    try:
        return [Trial.model_validate(row) for row in rows]
    except ValidationError as error:
        raise damaged(store, path, "it lists no trials", cure) from error


def published_tables(store: RunStore) -> dict[str, str]:
    """sha256 of what is read again of a sweep's results, by path."""
    return {path: store.checksum(path) for path in (f"{TRIALS}.json",)}


def publish_results(sweep: Sweep, trials: Sequence[Trial], say: Say) -> str:
    """Write every result of a sweep; returns the path of best.yaml.

    Raises: StageFailed if no trial finished; UserError if none fulfils the conditions of `pick`.
        The tables are written before.
    """
    store = RunStore(sweep.run_dir)
    store.write_json(f"{TRIALS}.json", [trial.model_dump(mode="json") for trial in trials])
    _write_table(store, TRIALS, [_row(trial) for trial in trials])
    if len(sweep.seeds) > 1:
        _write_table(
            store,
            RUNS,
            [_row(trial, seed, run) for trial in trials for seed, run in trial.runs.items()],
        )
    complete = [
        t
        for t in trials
        if t.status == "finished"
        and all(is_number(t.metrics.get(goal.metric)) for goal in sweep.objectives)
    ]
    if not complete:
        finished = [trial for trial in trials if trial.status == "finished"]
        if finished:
            raise UserError(f"no trial reports every objective: {finished[0].message}")
        raise StageFailed(
            "no trial of the sweep finished: "
            f"{trials[0].message or trials[0].status if trials else 'none was started'}"
        )
    front = _front(sweep, complete)
    store.write_json(
        FRONT,
        {
            "objectives": [goal.model_dump() for goal in sweep.objectives],
            "front": [_row(trial) for trial in front],
        },
    )
    best, why = pick(sweep, complete)
    best = best.model_copy(update={"run_dir": _place_of(sweep, best)})
    header = f"# trial {best.number} of {len(trials)}: {sweep.title(best.point)}\n# {why}\n"
    store.write_bytes(BEST, (header + _recipe_of(best)).encode())
    view = _view(sweep, trials, front, best, why)
    for name, png in sweep_figures(view).items():
        store.write_bytes(f"{REPORT}/{name}.png", png)
    store.write_bytes(f"{REPORT}/index.html", render_sweep(view).encode())
    _write_hparams(sweep, trials, store)
    states = ", ".join(
        f"{n} {s}"
        for s in ("finished", "diverged", "failed", "stopped")
        if (n := sum(t.status == s for t in trials))
    )
    say(f"tune: {states}; trial {best.number}: {why}")
    say(f"tune: report: {store.root}/{REPORT}/index.html")
    return f"{store.root}/{BEST}"


def pick(sweep: Sweep, complete: Sequence[Trial]) -> tuple[Trial, str]:
    """The trial of best.yaml, and the rule that chose it."""
    limits = sweep.pick.limits()
    named = [metric for metric, _, _ in limits] + ([sweep.pick.metric] if sweep.pick.metric else [])
    for metric in named:
        if not any(metric in trial.metrics for trial in complete):
            raise UserError(
                f"pick: metric {metric!r} is reported by no trial: reported are "
                f"{', '.join(sorted(complete[0].metrics))}"
            )
    allowed = [
        t
        for t in complete
        if all(
            _COMPARISONS[sign](t.metrics.get(metric, float("nan")), limit)
            for metric, sign, limit in limits
        )
    ]
    where = f" where {' and '.join(sweep.pick.where)}" if limits else ""
    if not allowed:
        raise UserError(
            f"pick: no trial fulfils {' and '.join(sweep.pick.where)}: choose other limits (the "
            "trials and their table stay)"
        )
    goal = Goal(metric=sweep.pick.metric, mode=sweep.pick.mode) if sweep.pick.metric else None
    if goal is None and len(sweep.objectives) == 1:
        goal = sweep.objectives[0]
    if goal is not None:
        metric, mode = goal.metric, goal.mode
        with_it = [trial for trial in allowed if is_number(trial.metrics.get(metric))]
        best = (max if mode == "max" else min)(with_it, key=lambda trial: trial.metrics[metric])
        return best, f"{mode} of {metric}{where}: {best.metrics[metric]:.6g}"
    best = allowed[knee_point(*_objective_values(sweep, allowed))]
    values = ", ".join(
        f"{goal.metric} {best.metrics[goal.metric]:.6g}" for goal in sweep.objectives
    )
    return best, f"knee of the Pareto front{where}: {values}"


def _place_of(sweep: Sweep, trial: Trial) -> str:
    """Where a trial's runs lie now: the whole sweep may have been moved since."""
    here = RunStore(sweep.trial_dir(trial.number, trial.point))
    return here.root if here.exists() else trial.run_dir


def _recipe_of(trial: Trial) -> str:
    """The recipe of a trial (its first seed), free to take the whole cluster.

    In place its stages are skipped.
    """
    folder = (
        f"{trial.run_dir}/seed-{next(iter(trial.runs))}" if len(trial.runs) > 1 else trial.run_dir
    )
    store = RunStore(folder)
    try:
        mapping, _ = read_config(store, CONFIG)
    except FileNotFoundError as error:
        raise UserError(f"{store.root}/{CONFIG} is missing: restore it") from error
    trained = store.at("train")
    if trained.exists(MANIFEST):
        check_config(store, CONFIG, mapping, read_manifest(trained)["settings"])
    share = {"ray.cpus_per_run": None, "ray.gpus_per_run": None}
    return to_yaml(set_keys(mapping, share | _moved(mapping, store.root)))


def _moved(mapping: dict[str, Any], folder: str) -> dict[str, str]:
    """The places of a run below a sweep that lies elsewhere than when the run was made."""
    (then, _, _), (now, _, _) = (place.rpartition(f"/{TRIALS}/") for place in (
        str(mapping.get("run_dir")), folder,
    ))  # fmt: skip
    named = {"run_dir": mapping.get("run_dir")} | {
        f"paths.{key}": place for key, place in mapping["paths"].items()
    }
    return {
        key: now + place.removeprefix(then)
        for key, place in named.items()
        if then and now and place and place.startswith(f"{then}/")
    }


def _front(sweep: Sweep, complete: Sequence[Trial]) -> list[Trial]:
    return [complete[i] for i in pareto_front(*_objective_values(sweep, complete))]


def _objective_values(
    sweep: Sweep, trials: Sequence[Trial]
) -> tuple[list[list[float]], list[bool]]:
    values = [[trial.metrics[goal.metric] for goal in sweep.objectives] for trial in trials]
    return values, [goal.mode == "max" for goal in sweep.objectives]


def _row(
    trial: Trial, seed: str | None = None, metrics: dict[str, float] | None = None
) -> dict[str, Any]:
    head: dict[str, Any] = {
        "trial": trial.number,
        "status": trial.status,
        "message": trial.message,
        "run_dir": trial.run_dir,
    }
    head |= {"seconds": trial.seconds} if seed is None else {"seed": int(seed)}
    return {**head, **trial.point, **(trial.metrics if metrics is None else metrics)}


def _write_table(store: RunStore, name: str, rows: list[dict[str, Any]]) -> None:
    """The same rows as CSV and Parquet; lists and other composite values as text."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    plain = [
        {c: v if isinstance(v := row.get(c), int | float | str | None) else str(v) for c in columns}
        for row in rows
    ]
    # A key searched over numbers and words is text in both.
    for column in columns:
        kinds = {type(row[column]) for row in plain if row[column] is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:
            for row in plain:
                row[column] = None if row[column] is None else str(row[column])
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows(plain)
    store.write_bytes(f"{name}.csv", buffer.getvalue().encode())
    store.write_table(
        f"{name}.parquet", pa.table({c: pa.array([row[c] for row in plain]) for c in columns})
    )


def _view(
    sweep: Sweep, trials: Sequence[Trial], front: Sequence[Trial], best: Trial, why: str
) -> SweepView:
    on_front = {trial.number for trial in front}
    return SweepView(
        title=sweep.run_dir.rstrip("/").rsplit("/", 1)[-1],
        keys=list(sweep.space),
        series_key=RECIPE if RECIPE in sweep.space else None,
        objectives=[(goal.metric, goal.mode) for goal in sweep.objectives],
        trials=[
            TrialView(
                t.number,
                t.status,
                t.message,
                t.point,
                t.metrics,
                t.seconds,
                t.number in on_front,
                t.number == best.number,
                _less_best(sweep, t, best),
            )
            for t in trials
        ],
        rule=why,
        num_seeds=max(1, len(sweep.seeds)),
    )


def _less_best(sweep: Sweep, trial: Trial, best: Trial) -> SeedComparison | None:
    """The first objective less the chosen trial's, seed by seed; None for that trial itself."""
    metric = sweep.objectives[0].metric
    by_seed = [
        {int(seed): run[metric] for seed, run in t.runs.items() if is_number(run.get(metric))}
        for t in (best, trial)
    ]
    return None if trial.number == best.number else numbers_by_seed(*by_seed)


def _write_hparams(sweep: Sweep, trials: Sequence[Trial], store: RunStore) -> None:
    """One TensorBoard run per trial, with its point and its metrics."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        for trial in trials:
            name = f"trial-{trial.number:04d}"
            metrics = {key: value for key, value in trial.metrics.items() if is_number(value)}
            with SummaryWriter(f"{folder}/{name}") as board:
                board.add_hparams(_flat(trial.point), metrics, name=".")
        store.delete(_BOARD)
        for file in sorted(Path(folder).rglob("events.*")):
            store.write_bytes(f"{_BOARD}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def _flat(point: Point) -> dict[str, Any]:
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in point.items()
    }
