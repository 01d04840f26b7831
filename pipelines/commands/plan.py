"""plan: what a recipe would read, store and compute; runs nothing and writes nothing."""

import os
import shutil
from collections.abc import Sequence
from typing import Any

from pipelines.cluster import cluster_address, known_resources, local_cpus
from pipelines.commands.run import check_before, check_room
from pipelines.commands.stages import RUN, STAGES
from pipelines.merge import Merge
from pipelines.models import (
    RAY_START,
    TRIAL_START,
    Duration,
    SideBySide,
    device_kind,
    sustained_tflops,
)
from pipelines.pairs import PREPARE
from pipelines.recipe import MANIFEST, RaySection, Recipe, Run, Stage
from pipelines.reference import REFERENCE
from pipelines.storage import RunStore
from pipelines.sweep import SharedStores, Sweep, check_trials, share_of, trial_recipe
from pipelines.train import TRAIN

_LIGHTER = (
    "lower train.micro_batch_tokens, or set train.strategy=fsdp, train.lora or "
    "reference.gpus_per_model"
)
_SHARED = ("features", "storage_bytes", "storage_gib", "memory_gib", "hours_stored")


def run_plan(
    recipe: Recipe,
    tflops: float | None = None,
    stages: Sequence[Stage[Any]] = RUN,
    name: str = "recipe",
) -> dict[str, Any]:
    """What every stage forecasts, by its title: what it makes, seconds, disk and memory; and all
    of it together under "total".

    Pairs are exact after prepare and estimated from sampled rows before.

    Args:
        tflops: what one device sustains; by default an assumption by its name (hardware.py). name:
            of the recipe.
    Raises: UserError for what `run` would refuse, whenever it found out.
    """
    stages = [stage for stage in stages if stage.applies(recipe)]
    for stage in stages:
        stage.check_recipe(recipe)
    for stage in STAGES:
        recipe = stage.settle(recipe)
    run = Run(recipe)
    rate = tflops or sustained_tflops(device_kind()) * _share_of_cores(recipe.ray)
    found: dict[str, Any] = {}
    is_settled = cluster_address(recipe.ray) is None
    check_before(run, stages, is_settled)
    if is_settled:
        check_room(run, stages)
    for stage in stages:
        forecast = stage.forecast(run, found, rate)
        if forecast is not None:
            found[stage.title] = forecast
            there = stage.folder(run.paths).exists(MANIFEST)  # what needs no work may have none
            if is_settled and there and stage.is_done(run):
                forecast |= {"done": True, **Duration(0.0, 0.0).as_keys()}
        if stage is PREPARE and forecast is not None:
            for other in stages:
                other.check_pairs(recipe, forecast["pairs"], is_expected=not forecast["exact"])
    # Ray starts with the first stage that works, which prepare's own forecast holds.
    works = [part for part in found.values() if part.get("seconds")]
    is_begun = found.get(PREPARE.title, {}).get("done", False)
    seconds = sum(part["seconds"] for part in works) + (RAY_START if is_begun and works else 0.0)
    return found | {"total": _total(recipe.run_dir, found, seconds, rate, name, is_settled)}


def planned(found: dict[str, Any]) -> dict[str, str]:
    """Title of a stage -> what it will make, in words, in the order of the stages."""
    return {
        stage.title: stage.planned(found[stage.title]) for stage in STAGES if stage.title in found
    }


def plan_sweep(sweep: Sweep, tflops: float | None = None, name: str = "sweep") -> dict[str, Any]:
    """What a sweep would run: pairs with their reference, made once, and the trainings.

    It lists every such combination that its points need. Trials run side by side as the machines
    hold them; those on CPUs share the cores.
    """
    rate = tflops or sustained_tflops(device_kind())
    stages = RUN if sweep.evaluates() else (PREPARE, REFERENCE, TRAIN)
    points, seeds = sweep.sample_of_points(), max(1, len(sweep.seeds))
    first = sweep.first_recipe()
    resources = known_resources(first)
    at_once = sweep.max_concurrent_trials or sweep.num_trials()
    cores = float(local_cpus())
    if resources is not None:
        at_once, cores = share_of(sweep, resources.machines).trials, resources.total("CPU")
    check_trials(sweep)
    stores = SharedStores.of(sweep)
    shared = []
    for recipe, served in stores.makers():
        plan = run_plan(recipe, rate, stages)
        data, reference = plan["data"], plan["reference"]
        shared.append(
            {
                "points": served,
                "pairs": data["pairs"],
                **{key: reference[key] for key in _SHARED},
                "seconds": data["seconds"] + reference["seconds"],
                "disk_bytes": data["disk_bytes"] + reference["disk_bytes"],
            }
        )
    plans = [
        run_plan(stores.shared(Run(trial_recipe(sweep, point, sweep.run_dir))).recipe, rate, stages)
        for point in points
    ]
    trials = [plan["train"] for plan in plans]
    parts = [[plan[title] for title in ("train", "evaluate") if title in plan] for plan in plans]
    durations = [
        Duration(
            TRIAL_START / seeds + sum(part["start_seconds"] for part in each),
            sum(part["work_seconds"] for part in each),
        )
        for each in parts
    ]
    runs = sweep.num_trials() * seeds
    side = SideBySide(runs, at_once, cores, device_kind() == "cpu")
    mean_hours = sum(trial["hours"] for trial in trials) / len(trials)
    disk = sum(part["disk_bytes"] for each in parts for part in each) / len(plans)
    seconds = side.seconds(durations)
    everything = {
        "disk_bytes": round(sum(store["disk_bytes"] for store in shared) + disk * runs),
        "memory_gib": max(trial["memory_gib"] for trial in trials),
    }
    shared_seconds = sum(store["seconds"] for store in shared)
    is_settled = cluster_address(first.ray) is None
    return {
        "trials": sweep.num_trials(),
        "shard": sweep.shard,
        "trials_of_all": sweep.num_trials_of_all(),
        "seeds_per_trial": seeds,
        "runs": runs,
        "at_once": at_once,
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
        "seconds_per_run": sum(one.seconds for one in durations) / len(durations),
        "trials_seconds": seconds,
        "disk_bytes_per_run": disk,
        "total": _total(
            first.run_dir,
            {"trials": everything},
            shared_seconds + seconds,
            rate,
            name,
            is_settled,
        ),
    }


def plan_merge(merge: Merge, tflops: float | None = None, name: str = "merge") -> dict[str, Any]:
    """What a merge would fit and draw, as `run_plan` says it of a run.

    Raises: UserError for what `merge` would refuse.
    """
    from pipelines.merge import checked, forecast_merge

    notes: list[str] = []
    job = checked(merge, lambda line: notes.append(line.removeprefix("merge: ")))
    rate = tflops or sustained_tflops(device_kind()) * _share_of_cores(merge.ray)
    parts = forecast_merge(job, rate)
    seconds = sum(part["seconds"] for part in parts.values())
    is_settled = cluster_address(merge.ray) is None
    total = _total(job.store.root, parts, seconds, rate, name, is_settled)
    return {"models": [member.label for member in job.members], "notes": notes, **parts} | {
        "total": total
    }


def _share_of_cores(config: RaySection) -> float:
    """The part of this machine's cores that a run on CPUs may take."""
    if device_kind() != "cpu":
        return 1.0
    cores = os.cpu_count() or 1
    return min(cores, config.cpus_per_run or config.num_cpus or cores) / cores


def _total(
    run_dir: str,
    parts: dict[str, Any],
    seconds: float,
    rate: float,
    name: str,
    is_settled: bool,
) -> dict[str, Any]:
    disk = sum(p.get("disk_bytes", 0) for p in parts.values() if not p.get("done"))
    kind = device_kind()
    return {
        "recipe": name,
        "run_dir": run_dir,
        "seconds": seconds,
        "disk_bytes": disk,
        "assumed_tflops": rate,
        "device": "a GPU" if kind == "cuda" else "these CPUs",
        "warnings": _warnings(run_dir, parts, disk) if is_settled else [],
    }


def _warnings(run_dir: str, parts: dict[str, Any], disk: int) -> list[str]:
    """What will probably not fit, on a local disk and into this machine's memory."""
    found = []
    store = RunStore(run_dir)
    if store.is_local:
        free = shutil.disk_usage(store.nearest()).free
        if disk > free:
            found.append(
                f"about {disk / 2**30:.2f} GiB are to be written and {store.root} has "
                f"{free / 2**30:.2f} GiB free: free some, or choose another run_dir"
            )
    have = _memory_gib()
    for title, part in parts.items():
        needed = 0.0 if part.get("done") else part.get("memory_gib", 0.0)
        if needed > have:
            found.append(
                f"{title} takes about {needed:.0f} GiB of memory a process and this machine's "
                f"device has {have:.0f}: {part.get('lighter', _LIGHTER)}"
            )
    return found


def _memory_gib() -> float:
    """Of one device here: a GPU's, or the machine's."""
    if device_kind() == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory) / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _range(values: list[Any]) -> Any:
    return values[0] if min(values) == max(values) else [min(values), max(values)]
