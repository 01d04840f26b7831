"""tune: a sweep over any config key with Ray Tune.

prepare and reference run once and serve every trial.

Each trial is the same training stage as `sparsepo train`, in its own run directory below
SWEEP/trials (trial.py). Ray Tune schedules, stops and retries them; its own files, from which an
interrupted sweep goes on, are in SWEEP/.ray.
"""

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from pipelines.cluster import (
    EarlySession,
    Resources,
    Share,
    check_shared,
    cluster_address,
    failure_of,
    interruptible,
    wait_for_workers,
)
from pipelines.errors import StageFailed, UserError
from pipelines.evaluate import EVALUATE, check_kl_name
from pipelines.pairs import PREPARE, open_pairs
from pipelines.recipe import STARTED, TRIAL, Recipe, Run, Say, Stage, StageRecord
from pipelines.reference import REFERENCE, run_facts, usable_rows
from pipelines.storage import RunStore, digest, present
from pipelines.sweep.ahead import Ahead
from pipelines.sweep.definition import write_definition
from pipelines.sweep.display import shown_trials
from pipelines.sweep.own_processes import in_own_processes
from pipelines.sweep.results import publish_results, published_tables, read_trials
from pipelines.sweep.shared_stores import SharedStores, trial_recipe
from pipelines.sweep.space import ASHA, Sweep
from pipelines.sweep.trial import keep_of_trial, missing_metric, run_trial
from pipelines.sweep.trial_record import (
    Trial,
    is_number,
    read_trial,
)
from pipelines.sweep.tune_state import (
    LISTED,
    NAME,
    RAY,
    Lost,
    check_point,
    chosen,
    forget,
    go_on,
)
from pipelines.train import (
    TRAIN,
    free_places_of_dead,
    require_validation,
)
from sparsepo.batching.sampling import Sampler

_FREEING_SECONDS = 1.0  # between two looks for places of the dead
# Settings that a check looks at.
_CHECKED_OF_TRAIN = {"lora", "strategy", "layout", "gradient_checkpointing", "compile", "trackers"}
_CHECKED_OF_MASK = {"kind", "hooks", "mapping"}


def run_tune(sweep: Sweep, say: Say, quiet: bool = False, resume: bool = False) -> str:
    """Run the sweep, or go on with it; returns the path of best.yaml.

    A finished sweep is not run again, only its results are written again.

    Args:
        resume: go on with an interrupted sweep (or begin one), and try its failed trials again.
    Raises: UserError for resources the cluster lacks, a metric no trial reports, or an interrupted
        sweep without `resume`; StageFailed if every trial failed.
    """
    record = sweep_record(sweep)
    store = record.store
    if record.is_complete():
        write_definition(sweep, store)
        trials = read_trials(store)
        if not (resume and any(trial.status == "failed" for trial in trials)):
            say("tune: already done, skipped")
            for trial in trials:
                keep_of_trial(sweep, trial)
            return publish_results(sweep, trials, say)
    elif store.exists(STARTED):
        record.check()
        if not resume:
            raise UserError(
                f"{store.root} holds a sweep that was interrupted: add --resume to go on with it, "
                "or choose another run_dir"
            )
    first = sweep.first_recipe()
    with contextlib.ExitStack() as works:
        with EarlySession(first.ray) as ray:
            ray.begin()
            check_trials(sweep)
            ray.start()
            if cluster_address(first.ray):
                wait_for_workers(first, say)
                check_shared(first)
            share = share_of(sweep, Resources.now().machines)
            ahead = Ahead(sweep.num_trials(), share.trials, first.train.num_workers)
            stores = SharedStores.of(sweep)
            record.begin()
            write_definition(sweep, store)
            works.enter_context(present(store, stage="tune", trials=sweep.num_trials()))
            started = time.monotonic()
            ahead.first()
            runs = stores.make(say, quiet, partial(_check_kept, sweep))
            shared_seconds = time.monotonic() - started
            part = (
                "" if sweep.part is None else f" of {sweep.num_trials_of_all()}: shard {sweep.part}"
            )
            say(f"tune: {sweep.num_trials()} trials{part}, {share.trials} at a time")
            session = uuid.uuid4().hex[:12]
            with shown_trials(store, sweep.num_trials(), quiet):
                if cluster_address(first.ray) is None:
                    works.enter_context(in_own_processes())
                trials = _run_trials(sweep, stores, share, session, say, resume, ahead)
            seconds = time.monotonic() - started
        message = missing_metric(sweep, session)
        if message is not None:
            raise UserError(message)
        best = publish_results(sweep, trials, say)
        counts: dict[str, Any] = {
            status: sum(trial.status == status for trial in trials)
            for status in ("finished", "diverged", "failed", "stopped")
        }
        record.finish(
            {
                "trials": len(trials),
                **counts,
                "stage_runs": runs,
                "shared_seconds": shared_seconds,
                "seconds": seconds,
            },
            published_tables(store),
        )
    return best


def _counted(sweep: Sweep) -> str:
    trials = f"{sweep.num_trials()} trials"
    if sweep.part is None:
        return trials
    return f"{trials} of {sweep.num_trials_of_all()} (shard {sweep.part})"


def check_trials(sweep: Sweep) -> None:
    """UserError for what a stage of a trial will refuse, before any work; equal ones are looked at
    once.
    """
    recipes = [sweep.recipe_at(point, sweep.run_dir) for point in sweep.sample_of_points()]
    different = {digest(_looked_at(recipe)): recipe for recipe in recipes}
    evaluates = (EVALUATE,) if sweep.evaluates() else ()
    stages: tuple[Stage[Any], ...] = (PREPARE, REFERENCE, TRAIN, *evaluates)
    named = [goal.metric for goal in sweep.objectives] + sweep.pick.metrics()
    for recipe in different.values():
        for stage in stages:
            stage.check_recipe(recipe)
        check_kl_name(recipe, "objectives and pick", named, "evaluation/")
        run = Run(recipe)
        for stage in stages:
            stage.check(run)


def _looked_at(recipe: Recipe) -> list[Any]:
    """What the checks of stages depend on: no rate, no seed and no weight of a loss."""
    parts = (recipe.data, recipe.model, recipe.reference, recipe.evaluate)
    return [
        recipe.objective.name,
        sorted(recipe.required_features() | recipe.stored_features()),
        recipe.mask.model_dump(mode="json", include=_CHECKED_OF_MASK),
        recipe.train.model_dump(mode="json", include=_CHECKED_OF_TRAIN),
        *(part.model_dump(mode="json") for part in parts),
    ]


def _check_kept(sweep: Sweep, recipe: Recipe, kept: dict[str, int]) -> None:
    if sweep.evaluates():
        EVALUATE.check_pairs(recipe, kept)
    TRAIN.check_pairs(recipe, kept)
    if any(goal.metric.startswith("validation/") for goal in sweep.objectives):
        require_validation("validation metrics", kept)


def sweep_record(sweep: Sweep) -> StageRecord:
    return StageRecord("tune", RunStore(sweep.run_dir), sweep.settings(), {})


def share_of(sweep: Sweep, machines: tuple[Mapping[str, float], ...]) -> Share:
    """Fit as many trials into a cluster as it holds whole.

    Raises: UserError if not even one fits.
    """
    recipes = [trial_recipe(sweep, point, sweep.run_dir) for point in sweep.sample_of_points()]
    most = min(sweep.max_concurrent_trials or sweep.num_trials(), sweep.num_trials())
    shares = (
        Resources(machines, recipe.ray.cpus_per_run, recipe.ray.gpus_per_run).share(
            recipe.train, most
        )
        for recipe in recipes
    )
    return min(shares, key=lambda share: share.trials)


def _run_trials(
    sweep: Sweep,
    stores: SharedStores,
    share: Share,
    session: str,
    say: Say,
    resume: bool,
    ahead: Ahead,
) -> list[Trial]:
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback

    settings = {
        "sweep": sweep.model_dump(mode="json", by_alias=True),
        "stores": stores.to_json(),
        "session": session,
        "cpus_per_run": share.cpus_per_run,
        "gpus_per_run": share.gpus_per_run,
    }
    # Our own files are the record; Tune's JSON lines are what it reads itself of trials that were
    # stopped.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault(
        "TUNE_DISABLE_STRICT_METRIC_CHECKING", "1"
    )  # a trial that diverged has none
    logging.getLogger("ray.tune").setLevel(
        logging.CRITICAL
    )  # what happens to a trial is said in one line of ours
    # The trial function only waits: its trainer's workers take CPUs and GPUs. Tune refuses a trial
    # that takes nothing.
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, settings=settings), {"memory": 1}
    )
    if resume and (found := _gone_on(sweep, trainable, say)):
        return found
    points = sweep.own_points
    listed = None if points is None else [{"number": i, "point": point} for i, point in points]
    tuner = tune.Tuner(
        trainable,
        param_space=None if listed is None else {LISTED: tune.grid_search(listed)},
        tune_config=tune.TuneConfig(
            num_samples=1 if points is not None else sweep.num_samples,
            max_concurrent_trials=None if points is not None else share.trials,
            search_alg=_search_algorithm(sweep, share),
            scheduler=_scheduler(sweep, stores),
            trial_dirname_creator=_folder_of,
            time_budget_s=None if sweep.hours is None else sweep.hours * 3600,
        ),
        run_config=tune.RunConfig(
            name=NAME,
            storage_path=RunStore(f"{sweep.run_dir}/{RAY}").root,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=[_follower(sweep, say), _freeing(), ahead.callback(), JsonLoggerCallback()],
        ),
    )
    return _trials_of(sweep, interruptible(tuner.fit))


def _gone_on(sweep: Sweep, trainable: Any, say: Say) -> list[Trial]:
    """The trials of a sweep that Ray Tune goes on with; empty if it has to begin anew."""
    from ray import tune
    from ray.exceptions import RayError

    def restore(path: str) -> Any:
        if not tune.Tuner.can_restore(path):
            return None
        return tune.Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True)

    tuner = go_on(sweep, restore, say)
    if tuner is None:
        return []
    try:
        grid = interruptible(tuner.fit)
        for result in grid:
            check_point(sweep, result.config)
            _check_kept_trial(sweep, result)
        listed = sweep.own_points
        if listed is not None and sweep.hours is None and len(grid) < len(listed):
            raise Lost(f"it knows {len(grid)} of {len(listed)} trials")
        return _trials_of(sweep, grid)
    except (UserError, StageFailed, RayError):
        raise
    except Exception as error:  # of reading its state
        forget(sweep, error, say)
        return []


def _check_kept_trial(sweep: Sweep, result: Any) -> None:
    """Raises: Lost if a trial has ended and its file is gone."""
    told = chosen(result.config)
    status = (result.metrics or {}).get("status")
    if status is not None and not RunStore(sweep.trial_dir(told["number"], told["point"])).exists(
        TRIAL
    ):
        raise Lost(f"trial {told['number']} has ended, and its {TRIAL} is gone")


def _trials_of(sweep: Sweep, grid: Any) -> list[Trial]:
    trials = sorted((_trial_of(sweep, result) for result in grid), key=lambda trial: trial.number)
    for trial in trials:
        keep_of_trial(sweep, trial)
    return trials


def _folder_of(trial: Any) -> str:
    return str(trial.trial_id)


def _search_algorithm(sweep: Sweep, share: Share) -> Any:
    from ray import tune

    if sweep.points is not None:
        return tune.search.BasicVariantGenerator(max_concurrent=share.trials)
    from pipelines.sweep.search import searcher_of

    return searcher_of(sweep)


def _scheduler(sweep: Sweep, stores: SharedStores) -> Any:
    from ray import tune

    asha = sweep.scheduler
    if not isinstance(asha, ASHA):
        return None
    guide = sweep.guide()
    steps = max(
        _num_steps(stores.shared(Run(trial_recipe(sweep, point, sweep.run_dir))))
        for point in sweep.sample_of_points()
    )
    if asha.grace_steps >= steps:
        raise UserError(
            f"scheduler.grace_steps = {asha.grace_steps}: a trial has {steps} steps, so nothing "
            "could be stopped early"
        )
    return tune.schedulers.ASHAScheduler(
        time_attr="step",
        metric=guide.metric,
        mode=guide.mode,
        max_t=steps,
        grace_period=asha.grace_steps,
        reduction_factor=asha.reduction_factor,
        # the last step is not the end: the model is written and evaluated after it
        stop_last_trials=False,
    )


def _num_steps(run: Run) -> int:
    pairs = len(usable_rows(run_facts(run), open_pairs(run), "train"))
    train = run.recipe.train
    return Sampler(pairs, train.global_batch_size, train.seed).num_steps(
        train.epochs, train.max_steps
    )


def _follower(sweep: Sweep, say: Say) -> Any:
    """Says what became of every trial."""
    from ray import tune

    class Follower(tune.Callback):  # type: ignore[misc]
        def on_trial_complete(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            self._say(trial, trial.last_result.get("status", "stopped"))

        def on_trial_error(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            self._say(trial, "failed")

        def _say(self, trial: Any, status: str) -> None:
            config, result = chosen(trial.config), trial.last_result or {}
            shown = [
                f"{goal.metric} {result[goal.metric]:.4g}"
                for goal in sweep.objectives
                if goal.metric in result
            ]
            say(
                f"trial {config['number']}: {status}: {sweep.title(config['point'])}"
                + (f": {', '.join(shown)}" if shown else "")
            )

    return Follower()


def _freeing() -> Any:
    """Frees the places of controllers that went with their trials, as long as the sweep lasts: one
    may ask for places when Ray takes it for dead already.
    """
    from ray import tune

    class Freeing(tune.Callback):  # type: ignore[misc]
        looked_at = 0.0

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if time.monotonic() - self.looked_at >= _FREEING_SECONDS:
                self.looked_at = time.monotonic()
                free_places_of_dead()

    return Freeing()


def _trial_of(sweep: Sweep, result: Any) -> Trial:
    """What Ray Tune knows of a trial, and the trial's own file if it came so far."""
    config = chosen(result.config)
    store = RunStore(sweep.trial_dir(config["number"], config["point"]))
    if store.exists(TRIAL):
        trial = read_trial(store)
        if trial.status != "failed" or result.error is not None:
            return trial
        # Tune stopped it: its process saw its workers go, and had time to call that a failure.
        store.delete(TRIAL)
    common = {"number": config["number"], "point": config["point"], "run_dir": store.root}
    if result.error is not None:
        message = failure_of(
            result.error, "the trial", "lower max_concurrent_trials", "go on with --resume"
        ).message
        return Trial(**common, status="failed", message=message)
    known = result.metrics or {}
    reported = {
        key: value
        for key, value in known.items()
        if key.startswith(("train/", "validation/")) and is_number(value)
    }
    return Trial(
        **common, status="stopped", metrics=reported, seconds=known.get("time_total_s", 0.0)
    )
