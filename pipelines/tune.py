"""tune: a sweep over any config key with Ray Tune; prepare and reference run once and serve every trial.

Each trial is the same training stage as `sparsepo train`, in its own run directory below SWEEP/trials.
"""

import contextlib
import csv
import io
import os
from typing import Any

import pyarrow as pa

from pipelines.cluster import ray_session
from pipelines.config import Recipe
from pipelines.errors import StageFailed, UserError
from pipelines.evaluate import run_evaluate
from pipelines.prepare import prepare_record, run_prepare
from pipelines.recipe import write_yaml
from pipelines.reference import reference_record, run_reference, scoring_device
from pipelines.reference_cost import settle_mode
from pipelines.reference_features import stored_origins
from pipelines.report import CONFIG
from pipelines.run import Say
from pipelines.stage_record import digest
from pipelines.store import RunStore
from pipelines.sweep import Range, Sweep
from pipelines.train import run_train, train_record

TABLE, BEST = "trials", "best.yaml"


def run_tune(sweep: Sweep, say: Say, quiet: bool = False) -> str:
    """Run the sweep; writes trials.csv, trials.parquet and best.yaml and returns the path of best.yaml.

    Raises: UserError for resources the cluster lacks or a metric no trial reports; StageFailed if every trial failed.
    """
    store = RunStore(sweep.run_dir)
    first = trial_recipe(sweep, next(sweep.combinations()), sweep.run_dir)
    with ray_session(first.ray):
        stores = _shared_stores(sweep, say, quiet)
        rows = _trials(sweep, stores, quiet)
    finished = [row for row in rows if row["status"] == "finished"]
    if not finished:
        raise StageFailed(f"no trial of the sweep finished: {rows[0]['error'] if rows else 'none was started'}")
    if sweep.metric not in finished[0]:
        shown = ", ".join(sorted(key for key, value in finished[0].items() if isinstance(value, float) and "/" in key))
        raise UserError(f"metric {sweep.metric!r} is reported by no trial: reported are {shown}")
    _write_table(store, rows)
    best = (max if sweep.mode == "max" else min)(finished, key=lambda row: row[sweep.metric])
    recipe = trial_recipe(sweep, {key: best[key] for key in sweep.space}, best["run_dir"])
    recipe = _with_stores(recipe, stores)
    store.write_bytes(BEST, f"# best of {len(rows)} trials: {sweep.metric} = {best[sweep.metric]:.6g}\n{write_yaml(recipe)}".encode())
    say(f"tune: {len(finished)} of {len(rows)} trials finished; best {sweep.metric} = {best[sweep.metric]:.6g} with " + _point(best, sweep))
    return f"{store.root}/{BEST}"


def trial_recipe(sweep: Sweep, values: dict[str, Any], run_dir: str) -> Recipe:
    """The recipe of one point of the space; all trials share what it takes to score the reference."""
    return settle_mode(sweep.trial_recipe(values, run_dir), scoring_device(), sweep.num_trials())


def _shared_stores(sweep: Sweep, say: Say, quiet: bool) -> dict[str, dict[str, str]]:
    """Make the pairs and references that the trials share: one per distinct setting of those stages."""
    stores: dict[str, dict[str, str]] = {}
    features: dict[str, set[str]] = {}
    for values in sweep.combinations():
        recipe = trial_recipe(sweep, values, sweep.run_dir)
        features.setdefault(_store_key(recipe), set()).update(recipe.stored_features())
    for values in sweep.combinations():
        recipe = trial_recipe(sweep, values, sweep.run_dir)
        key = _store_key(recipe)
        if key in stores:
            continue
        stores[key] = {"pairs": f"{sweep.run_dir}/stores/{key}/pairs", "reference": f"{sweep.run_dir}/stores/{key}/reference"}
        shared = _with_stores(recipe, stores)
        wanted = shared.reference.model_copy(update={"features": tuple(sorted(features[key]))})
        shared = shared.model_copy(update={"reference": wanted})
        if not prepare_record(shared).is_complete():
            say(f"tune: prepare for {len(stores)} distinct data settings: {key}")
            run_prepare(shared, quiet)
        record = reference_record(shared)
        if features[key] and not (record.is_complete() and features[key] <= set(record.manifest()["counts"]["features"])):
            say(f"tune: reference with {', '.join(sorted(features[key]))}")
            run_reference(shared, quiet)
    return stores


def _store_key(recipe: Recipe) -> str:
    """Distinct for every setting that changes the pairs or what the reference says about them."""
    return digest([reference_record(recipe).fingerprint(), stored_origins(recipe)])[:12]


def _with_stores(recipe: Recipe, stores: dict[str, dict[str, str]]) -> Recipe:
    found = stores.get(_store_key(recipe))
    if found is None:
        raise UserError(
            "a range (uniform, loguniform, int) over a key of prepare or reference would need a store per trial: use grid or choice"
        )
    return recipe.model_copy(update={"paths": recipe.paths.model_copy(update=found)})


def _trials(sweep: Sweep, stores: dict[str, dict[str, str]], quiet: bool) -> list[dict[str, Any]]:
    import ray
    from ray import tune

    recipe = trial_recipe(sweep, next(sweep.combinations()), sweep.run_dir)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    concurrent = sweep.max_concurrent_trials or max(1, cpus // max(1, recipe.train.num_workers * int(recipe.train.cpus_per_worker or 1)))
    per_trial = max(1, cpus // concurrent)
    if recipe.train.num_workers > per_trial:
        raise UserError(f"train.num_workers = {recipe.train.num_workers} with {concurrent} trials at once: the cluster has {cpus} CPUs")
    settings = {"sweep": sweep.model_dump(mode="json", by_alias=True), "stores": stores, "cpus_per_run": per_trial}
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    tuner = tune.Tuner(
        # Nested trainers hold the resources: the trial function itself takes next to none (0 is refused), and the number at once is bounded here.
        tune.with_resources(tune.with_parameters(run_trial, settings=settings), {"CPU": 0.001}),
        param_space={key: _domain(values) for key, values in sweep.space.items()},
        tune_config=tune.TuneConfig(
            metric=None,
            num_samples=sweep.num_samples,
            max_concurrent_trials=concurrent,
            search_alg=tune.search.BasicVariantGenerator(random_state=sweep.seed, max_concurrent=concurrent),
        ),
        run_config=tune.RunConfig(
            name=f"tune-{digest([sweep.run_dir, os.getpid()])[:8]}", storage_path=RunStore(f"{sweep.run_dir}/.ray").root, verbose=0
        ),
    )
    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        grid = tuner.fit()
    rows = []
    for result in grid:
        values = result.config or {}
        row: dict[str, Any] = {key: values.get(key) for key in sweep.space}
        row["run_dir"] = f"{sweep.run_dir}/trials/{digest({k: values.get(k) for k in sweep.space})[:12]}"
        metrics = {key: float(value) for key, value in (result.metrics or {}).items() if "/" in key and isinstance(value, (int, float))}
        row |= {
            "status": "failed" if result.error else "finished",
            "error": str(result.error).splitlines()[-1] if result.error else "",
            **metrics,
        }
        rows.append(row)
    return rows


def run_trial(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """Ray Tune trainable: train one point of the space (and evaluate it, if the sweep says so), then report."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    sweep = Sweep.model_validate(settings["sweep"])
    recipe = trial_recipe(sweep, config, f"{sweep.run_dir}/trials/{digest(config)[:12]}")
    recipe = _with_stores(recipe, settings["stores"])
    recipe = recipe.model_copy(update={"ray": recipe.ray.model_copy(update={"cpus_per_run": settings["cpus_per_run"]})})
    RunStore(recipe.run_dir).write_bytes(CONFIG, write_yaml(recipe).encode())
    record = train_record(recipe)
    counts = (record.manifest() if record.is_complete() else run_train(recipe, quiet=True, callbacks=[TuneReportCallback()]))["counts"]
    metrics = {f"train/{key}": value for key, value in counts["final"].items() if key != "step"}
    metrics |= {key: value for key, value in counts.get("validation", {}).items() if key.startswith("validation/")}
    if sweep.evaluate:
        for name, result in run_evaluate(recipe, quiet=True)["counts"]["results"].items():
            for key, value in result.items():
                mean = value.get("mean") if isinstance(value, dict) else value
                if isinstance(mean, (int, float)):
                    metrics[f"evaluation/{name}/{key}"] = mean
    tune.report({**metrics, "step": counts["steps"]})


def _domain(values: Range) -> Any:
    from ray import tune

    if values.grid is not None:
        return tune.grid_search(list(values.grid))
    if values.choice is not None:
        return tune.choice(list(values.choice))
    if values.uniform is not None:
        return tune.uniform(*values.uniform)
    if values.loguniform is not None:
        return tune.loguniform(*values.loguniform)
    assert values.int is not None
    return tune.randint(values.int[0], values.int[1] + 1)


def _write_table(store: RunStore, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows(rows)
    store.write_bytes(f"{TABLE}.csv", buffer.getvalue().encode())
    plain = [{c: row.get(c) if isinstance(row.get(c), (int, float, str, type(None))) else str(row.get(c)) for c in columns} for row in rows]
    store.write_table(f"{TABLE}.parquet", pa.Table.from_pylist(plain))


def _point(row: dict[str, Any], sweep: Sweep) -> str:
    return ", ".join(f"{key}={row[key]}" for key in sweep.space)
