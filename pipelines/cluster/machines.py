"""Wait for the machines of an autoscaled cluster before its devices are counted.

A cluster that has them passes at once.
"""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from pipelines.cluster.resources import Places, Resources, free_of_machines
from pipelines.cluster.session import cluster_address
from pipelines.errors import UserError
from pipelines.recipe import RaySection, Recipe, Say

_HEAD = "node:__internal_head__"  # Ray's mark
_LOOK_SECONDS = 0.5
_SOON_SECONDS = 5.0  # what a stage before has given back is free by then
# of the resource that tells machines of the second choice: all of a machine's bundles fit
_MARK = 0.001


def wait_for_workers(recipe: Recipe, say: Say) -> None:
    """Ask for what training takes where it is not there (yet, or any more).

    This happens with ray.autoscaling, or where the head has no CPUs. Such a head schedules for
    machines that come with work and go without, or that are still starting.

    The request is a placement group of this job's own, taken back once it is met. The machines stay
    for the cluster's idle time, and a driver that dies asks for nothing any more.

    Raises: UserError if the machines do not come within ray.scale_up_timeout_s.
    """
    if not _grows(recipe):
        return
    have = Resources.now(recipe.ray)
    wanted = have.wanted(recipe.train, recipe.reference.gpus_per_model)
    if not _missing(wanted):
        return
    hint = (
        "; train.use_gpu=false for a cluster without GPUs"
        if recipe.train.use_gpu is None and "GPU" in wanted.bundle
        else ""
    )
    say(
        f"cluster: has {have.total('CPU'):g} CPU and {have.total('GPU'):g} GPU; waiting for "
        f"{wanted.shown(wanted.count)}{hint}"
    )
    config = recipe.ray
    deadline = time.monotonic() + config.scale_up_timeout_s
    is_second_turn = False
    while (left := deadline - time.monotonic()) > 0:
        bundles = (
            _partly_of_second_choice(wanted, config, say)
            if is_second_turn
            else [dict(wanted.bundle)] * wanted.count
        )
        with _asked_for(bundles) as group:
            turn = left if config.fallback_resource is None else min(left, config.fallback_after_s)
            if group.wait(math.ceil(turn)):  # Ray cuts fractions of a second off
                return
        is_second_turn = (
            not is_second_turn and config.fallback_resource is not None and _missing(wanted) > 0
        )
    raise UserError(
        f"ray.scale_up_timeout_s = {config.scale_up_timeout_s}: {wanted.shown(wanted.count)} did "
        f"not come; `ray status` says what the cluster could not start{hint}"
    )


def tell_of_wait(work: str, wanted: Places) -> None:
    """Print a line if others have what the work takes: Ray waits for it without a word.

    It returns after a few seconds at most, whether the places are free or not.
    """
    end = time.monotonic() + _SOON_SECONDS
    while wanted.room(free_of_machines()) < wanted.count:
        if time.monotonic() > end:
            free = ", ".join(
                f"{sum(machine.get(name, 0.0) for machine in free_of_machines()):g} of "
                f"{Resources.now().total(name):g} {name}"
                for name in wanted.bundle
            )
            tqdm.write(
                f"cluster: {work} waits for {wanted.shown(wanted.count)}; free: {free}, other work "
                "has the rest",
                file=sys.stderr,
            )
            return
        time.sleep(0.1)


def known_resources(recipe: Recipe) -> Resources | None:
    """What the run may take of the machines that it will work on, as far as this process knows.

    None for a cluster that it is not connected to, and for one whose machines come with work.
    """
    ray = sys.modules.get("ray")  # where nobody has imported it, it does not run
    if ray is not None and ray.is_initialized():
        return None if _grows(recipe) else Resources.now(recipe.ray)
    if cluster_address(recipe.ray) is not None:
        return None
    return Resources.of_this_machine(recipe.ray)


@contextlib.contextmanager
def second_choice(recipe: Recipe, wanted: Places, say: Say) -> Iterator[None]:
    """Ask for what is missing of `wanted` on machines with ray.fallback_resource, by turns.

    It asks while the block waits for `wanted` by itself.
    """
    if recipe.ray.fallback_resource is None or not _grows(recipe):
        yield
        return
    stop = threading.Event()
    asking = threading.Thread(
        target=_ask_by_turns, args=(recipe.ray, wanted, say, stop), daemon=True
    )
    asking.start()
    try:
        yield
    finally:
        stop.set()
        asking.join()


def _ask_by_turns(config: RaySection, wanted: Places, say: Say, stop: threading.Event) -> None:
    import ray

    def is_missing_for(seconds: float) -> bool:
        """Whether something is missing all the time."""
        end = time.monotonic() + seconds
        while _missing(wanted) and not stop.wait(_LOOK_SECONDS):
            if time.monotonic() > end:
                return True
        return False

    while not stop.wait(_LOOK_SECONDS):
        with contextlib.suppress(
            ray.exceptions.RayError
        ):  # a head that does not answer now is asked again
            if is_missing_for(config.fallback_after_s):
                with _asked_for(_partly_of_second_choice(wanted, config, say)):
                    is_missing_for(config.fallback_after_s)


@contextlib.contextmanager
def _asked_for(bundles: list[dict[str, float]]) -> Iterator[Any]:
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group(bundles)
    try:
        yield group
    finally:
        remove_placement_group(group)


def _grows(recipe: Recipe) -> bool:
    if cluster_address(recipe.ray) is None:
        return False
    if recipe.ray.autoscaling is not None:
        return recipe.ray.autoscaling
    return any(
        not head.get("CPU", 0) and not head.get("GPU", 0)
        for head in Resources.now().machines
        if _HEAD in head
    )


def _missing(wanted: Places) -> int:
    """How many of them the living machines have no room for, were they empty."""
    return wanted.count - wanted.room(Resources.now().machines)


def _partly_of_second_choice(
    wanted: Places, config: RaySection, say: Say
) -> list[dict[str, float]]:
    """Bundles for all, some of them on machines with ray.fallback_resource.

    These are as many as the other machines have no room for.

    Ray's autoscaler asks again and again for the kind of machine with the highest priority,
    whether the cloud has any or not. Only work that other machines cannot take makes it start
    another kind.
    """
    resource = str(config.fallback_resource)
    say(
        f"cluster: {wanted.shown(_missing(wanted))} missing for {config.fallback_after_s} s; "
        f"asking for machines with {resource!r}"
    )
    first = wanted.room(
        [machine for machine in Resources.now().machines if not machine.get(resource)]
    )
    return [dict(wanted.bundle)] * first + [{**wanted.bundle, resource: _MARK}] * (
        wanted.count - first
    )
