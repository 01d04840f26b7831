"""One trial of a sweep: the train stage (and evaluation) of one point, once per seed.

Ray Tune runs it.

SWEEP/trials/NNNN-xxxxxxxx/trial.json is its result; the runs lie beside it, in seed-S/ where seeds
are repeated.
"""

import difflib
import sys
import time
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from evaluation.intervals import t_interval
from pipelines.errors import DamagedFile, Diverged, StageFailed, Superseded, UserError
from pipelines.evaluate import EVALUATE, numbers_of
from pipelines.recipe import CONFIG, MISSING, TRIAL, Recipe, Run, RunPaths, write_yaml
from pipelines.storage import RunStore, read_record, write_record
from pipelines.sweep.shared_stores import SharedStores, trial_recipe
from pipelines.sweep.space import Point, Sweep
from pipelines.sweep.trial_record import Trial, read_trial, write_trial
from pipelines.sweep.tune_state import chosen
from pipelines.train import TRAIN, drop_weights

STD, LOW, HIGH = "/std", "/low", "/high"
Metrics = dict[str, float]


def run_trial(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """Ray Tune trainable.

    Args:
        config: number and point, below LISTED or (from a searcher) beside its own parameters.
            settings: sweep, stores, session, cpus_per_run and gpus_per_run, as JSON.
    Raises: StageFailed for a point that failed, so that Tune knows; a point that diverged is a
        result.
    """
    from ray import tune

    sweep = Sweep.model_validate(settings["sweep"])
    told = chosen(config)
    number, point = told["number"], told["point"]
    store = RunStore(sweep.trial_dir(number, point))
    known = _known(store)
    if known is not None and (known.status != "failed" or known.session == settings["session"]):
        trial = known
    else:
        started = time.monotonic()
        trial = Trial(
            number=number,
            point=point,
            run_dir=store.root,
            status="finished",
            session=settings["session"],
        )
        try:
            for recipe in seed_recipes(sweep, number, point):
                _check_reported(sweep, settings["session"])
                run = _run(
                    recipe,
                    sweep,
                    settings,
                    reports=sweep.scheduler.name != "none" and not trial.runs,
                )
                trial.runs[str(recipe.train.seed)] = run
                if sweep.keep == "metrics":
                    drop_weights(RunPaths.of(recipe).train)
                missing = missing_objectives(sweep, run)
                if missing and sweep.has_one_method():
                    told = {"session": settings["session"], "message": missing}
                    write_record(RunStore(sweep.run_dir), MISSING, told)
                    raise UserError(missing)
                trial.message = missing
        except Superseded:
            raise
        except Diverged as error:
            trial.status, trial.message = "diverged", str(error)
        except (StageFailed, UserError) as error:
            trial.status, trial.message = "failed", str(error)
        trial.seconds = time.monotonic() - started
        if trial.status == "finished":
            trial.metrics = joined(list(trial.runs.values()))
        write_trial(store, trial)
    keep_of_trial(sweep, trial)
    if trial.status == "failed":
        raise StageFailed(trial.message)
    tune.report(
        {**trial.metrics, "step": trial.metrics.get("train/step", 0.0), "status": trial.status}
    )


def keep_of_trial(sweep: Sweep, trial: Trial) -> None:
    """Remove what the sweep does not keep of a trial that has ended.

    One that failed stays whole: --resume goes on from its checkpoints.
    """
    if sweep.keep == "model" or trial.status == "failed":
        return
    store = RunStore(trial.run_dir)
    seeds = [name for name in store.names() if name.startswith("seed-")]
    for run in (store, *map(store.at, seeds)):
        drop_weights(RunPaths.at(run.root).train)


def _known(store: RunStore) -> Trial | None:
    """What a trial has left; a damaged file counts as none, and its stages say what is done."""
    try:
        return read_trial(store)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        print(f"{error}: gone on with", file=sys.stderr, flush=True)
        store.delete(TRIAL)
        return None


def seed_recipes(sweep: Sweep, number: int, point: Point) -> list[Recipe]:
    """The recipes of a point: one, or one per seed."""
    folder = sweep.trial_dir(number, point)
    if not sweep.seeds:
        return [trial_recipe(sweep, point, folder)]
    found = []
    for seed in sweep.seeds:
        recipe = trial_recipe(
            sweep, point, f"{folder}/seed-{seed}" if len(sweep.seeds) > 1 else folder
        )
        found.append(
            recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
        )
    return found


def _run(recipe: Recipe, sweep: Sweep, settings: dict[str, Any], reports: bool) -> Metrics:
    """Train and evaluate one recipe, or read what is there."""
    shared = SharedStores.from_json(sweep.run_dir, settings["stores"]).shared(Run(recipe))
    share = {key: settings[key] for key in ("cpus_per_run", "gpus_per_run")}
    ray = shared.recipe.ray.model_copy(update=share)
    run = shared.with_places(shared.recipe.model_copy(update={"ray": ray}))
    run.paths.run.write_bytes(CONFIG, write_yaml(run.recipe).encode())
    if TRAIN.is_done(run):
        counts = run.record(TRAIN).manifest()["counts"]
    else:
        counts = TRAIN.run(run, print, True, [_reporter()] if reports else [])["counts"]
    metrics = named_metrics({**counts["final"], **counts.get("validation", {})})
    if sweep.evaluates():
        done = EVALUATE.is_done(run)
        manifest = run.record(EVALUATE).manifest() if done else EVALUATE.run(run, print, True)
        metrics |= evaluation_metrics(manifest["counts"]["results"])
    return metrics


def named_metrics(record: Mapping[str, Any]) -> Metrics:
    """A training record under the names that sweeps use: train/... and validation/..."""
    numbers = {
        key: float(value)
        for key, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {
        key if key.startswith("validation/") else f"train/{key}": value
        for key, value in numbers.items()
    }


def evaluation_metrics(results: dict[str, dict[str, Any]]) -> Metrics:
    """evaluation/<benchmark>/<name>, with /low and /high where there is an interval."""
    return {f"evaluation/{name}": value for name, value in numbers_of(results).items()}


def missing_objectives(sweep: Sweep, run: Metrics) -> str:
    """What to say of an objective that a run did not report; empty if it reported all."""
    for goal in sweep.objectives:
        if goal.metric not in run:
            near = difflib.get_close_matches(goal.metric, run, n=1, cutoff=0.5)
            known = sorted(key for key in run if not key.endswith((LOW, HIGH)))
            hint = f"did you mean {near[0]!r}? " if near else ""
            return f"metric {goal.metric!r} is not reported: {hint}reported are {', '.join(known)}"
    return ""


def missing_metric(sweep: Sweep, session: str) -> str | None:
    """What a trial of this session found missing that no other will report either."""
    store = RunStore(sweep.run_dir)
    if not store.exists(MISSING):
        return None
    found = read_record(store, MISSING, {"session": str, "message": str})
    return str(found["message"]) if found["session"] == session else None


def _check_reported(sweep: Sweep, session: str) -> None:
    message = missing_metric(sweep, session)
    if message is not None:
        raise UserError(message)


def joined(runs: list[Metrics]) -> Metrics:
    """Means over the seeds and, with several, their standard deviations and Student's intervals.

    The intervals of single runs, which are over prompts, are left out then.
    """
    if len(runs) == 1:
        return runs[0]
    found: Metrics = {}
    for key in runs[0]:
        values = [run[key] for run in runs if key in run]
        if len(values) == len(runs) and not key.endswith((LOW, HIGH)):
            interval = t_interval(values)
            found |= {
                key: fmean(values),
                key + STD: stdev(values),
                key + LOW: interval.low,
                key + HIGH: interval.high,
            }
    return found


def _reporter() -> Any:
    """Passes every validation on to Tune's scheduler."""
    from ray.tune.integration.ray_train import TuneReportCallback

    class Reporter(TuneReportCallback):
        def after_report(
            self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
        ) -> None:
            values = named_metrics(metrics[0])
            if any(key.startswith("validation/") for key in values):
                super().after_report(run_context, [{**values, "step": metrics[0]["step"]}], None)

    return Reporter()
