"""Wait for the machines of an autoscaled cluster before its devices are counted; a cluster that has them passes at once."""

import math
from collections.abc import Callable

from pipelines.config import Recipe
from pipelines.errors import UserError

_HEAD = "node:__internal_head__"  # Ray's mark
Say = Callable[[str], None]


def wait_for_workers(recipe: Recipe, say: Say) -> None:
    """Ask for what training takes where it is not there (yet, or any more): with ray.autoscaling, or where the head has no CPUs.

    Such a head schedules for machines that come with work and go without, or that are still starting.

    The request is a placement group of this job's own, taken back once it is met: the machines stay for the cluster's idle
    time, and a driver that dies asks for nothing any more.

    Raises: UserError if the machines do not come within ray.scale_up_timeout_s.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    grows = _head_only_schedules() if recipe.ray.autoscaling is None else recipe.ray.autoscaling
    if not grows:
        return
    have = ray.cluster_resources()
    is_empty = not have.get("CPU", 0) and not have.get("GPU", 0)
    bundle, count = _wanted(recipe, has_gpus=is_empty or have.get("GPU", 0) > 0)
    if all(have.get(name, 0) >= value * count for name, value in bundle.items()):
        return
    shown = f"{count} x {' and '.join(f'{value:g} {name}' for name, value in bundle.items())}"
    hint = "; train.use_gpu=false for a cluster without GPUs" if recipe.train.use_gpu is None and "GPU" in bundle else ""
    say(f"cluster: has {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU; waiting for {shown}{hint}")
    group = placement_group([bundle] * count)
    try:
        if not group.wait(recipe.ray.scale_up_timeout_s):
            raise UserError(
                f"ray.scale_up_timeout_s = {recipe.ray.scale_up_timeout_s}: {shown} did not come; `ray status` says what the cluster"
                f" could not start{hint}"
            )
    finally:
        remove_placement_group(group)


def _head_only_schedules() -> bool:
    import ray

    heads = [node["Resources"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]]
    return any(not head.get("CPU", 0) and not head.get("GPU", 0) for head in heads)


def _wanted(recipe: Recipe, has_gpus: bool) -> tuple[dict[str, float], int]:
    """(what one worker takes, how many): of the larger of training and one copy of the reference."""
    train = recipe.train
    workers = train.min_workers or train.num_workers
    bundle: dict[str, float] = {"CPU": float(train.cpus_per_worker or 1)}
    if has_gpus if train.use_gpu is None else train.use_gpu:
        share = recipe.ray.gpus_per_run or math.inf
        bundle["GPU"] = min(1.0, share)
        workers = max(workers, recipe.reference.gpus_per_model)
    return bundle, workers
