"""plan: what a recipe would read, store and compute; runs nothing and writes nothing."""

from collections.abc import Sequence
from typing import Any

from pipelines.cluster import cluster_address, known_resources
from pipelines.commands.run import check_before, check_room
from pipelines.commands.stages import RUN, STAGES
from pipelines.models import device_kind, sustained_tflops
from pipelines.pairs import PREPARE
from pipelines.recipe import Recipe, Run, Stage
from pipelines.reference import REFERENCE
from pipelines.sweep import SharedStores, Sweep, check_trials, share_of, trial_recipe
from pipelines.train import TRAIN


def run_plan(
    recipe: Recipe, tflops: float | None = None, stages: Sequence[Stage[Any]] = RUN
) -> dict[str, Any]:
    """What every stage forecasts: rows, tokens, storage, memory, steps and hours, by its title.

    They are exact after prepare and estimated from sampled rows before.

    Args:
        tflops: what one device sustains; by default an assumption by its name (hardware.py).
    Raises: UserError for what `run` would refuse, whenever it found out.
    """
    stages = [stage for stage in stages if stage.applies(recipe)]
    for stage in stages:
        stage.check_recipe(recipe)
    for stage in STAGES:
        recipe = stage.settle(recipe)
    run = Run(recipe)
    rate = tflops or sustained_tflops(device_kind())
    found: dict[str, Any] = {}
    is_settled = cluster_address(recipe.ray) is None
    check_before(run, stages, is_settled)
    if is_settled:
        check_room(run, stages)
    for stage in stages:
        forecast = stage.forecast(run, found, rate)
        if forecast is not None:
            found[stage.title] = forecast
        if stage is PREPARE and forecast is not None:
            for other in stages:
                other.check_pairs(recipe, forecast["pairs"], is_expected=not forecast["exact"])
    return found


def plan_sweep(sweep: Sweep, tflops: float | None = None) -> dict[str, Any]:
    """What a sweep would run: pairs with their reference, made once, and the trainings.

    It lists every such combination that its points need.

    The hours are of one worker group after the other; as many run side by side as the cluster
    holds.
    """
    rate = tflops or sustained_tflops(device_kind())
    stages = RUN if sweep.evaluates() else (PREPARE, REFERENCE, TRAIN)
    points, seeds = sweep.sample_of_points(), max(1, len(sweep.seeds))
    first = points[0]
    resources = known_resources(sweep.recipe_at(first, sweep.run_dir))
    if resources is not None:
        share_of(sweep, resources.machines)
    check_trials(sweep)
    stores = SharedStores.of(sweep)
    shared = []
    for recipe, served in stores.makers():
        plan = run_plan(recipe, rate, stages)
        reference = {
            key: plan["reference"][key]
            for key in ("features", "storage_bytes", "storage_gib", "memory_gib", "hours_stored")
        }
        shared.append({"points": served, "pairs": plan["data"]["pairs"], **reference})
    trials = [
        run_plan(
            stores.shared(Run(trial_recipe(sweep, point, sweep.run_dir))).recipe, rate, stages
        )["train"]
        for point in points
    ]
    mean_hours = sum(trial["hours"] for trial in trials) / len(trials)
    return {
        "trials": sweep.num_trials(),
        "seeds_per_trial": seeds,
        "runs": sweep.num_trials() * seeds,
        "searched": {
            key: sweep.space[key].model_dump(exclude_none=True, exclude_defaults=True)
            for key in sweep.space
        },
        "stores": shared,
        "train": {
            "steps": _range([trial["steps"] for trial in trials]),
            "memory_gib": _range([trial["memory_gib"] for trial in trials]),
            "hours_per_run": mean_hours,
            "hours": mean_hours * sweep.num_trials() * seeds,
            "assumed_tflops": rate,
        },
        "evaluates": sweep.evaluates(),
    }


def _range(values: list[Any]) -> Any:
    return values[0] if min(values) == max(values) else [min(values), max(values)]
