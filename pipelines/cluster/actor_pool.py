"""Small JSON tasks through a Ray Data actor pool: what reference, sample and evaluate share."""

import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import torch
from tqdm import tqdm

from pipelines.cluster.session import even_cpus, node_cpus
from pipelines.cluster.shared_paths import local_paths, require_seen
from pipelines.errors import Failure, StageFailed, UserError
from pipelines.recipe import Recipe

# Ray Data's driver keeps about 9 KiB per block: more tasks than this share blocks, so that its
# memory does not grow with them. An actor still gets many, so that they end at about the same time.
_MOST_BLOCKS, _BLOCKS_PER_ACTOR = 4000, 32


def run_tasks(
    tasks: list[dict[str, Any]],
    actor: type,
    recipe: Recipe,
    num_actors: int | None,
    label: str,
    quiet: bool,
    gpus_per_actor: int = 1,
    calls_at_once: int = 1,
) -> Iterator[Any]:
    """Yield the result of every task, in task order.

    `actor(recipe as a dictionary)` is built once per actor and called with one task's dictionary;
    what it returns must be JSON. One actor per GPU (or group of GPUs) by default, or per node with
    all its cores.

    Args:
        gpus_per_actor: 0 for work that needs none. calls_at_once: calls of one actor that may
            overlap, from several threads.
    Raises: UserError if the cluster has not the GPUs of one actor; a call's UserError or
        StageFailed.
    """
    import ray
    import ray.data

    if not tasks:
        return
    quieten_ray_data()
    gpus = (
        min(ray.cluster_resources().get("GPU", 0), recipe.ray.gpus_per_run or math.inf)
        if gpus_per_actor
        else 0
    )
    if gpus_per_actor > max(1, gpus):
        raise UserError(
            f"{label}: {gpus_per_actor} GPUs for one model, but the cluster has {gpus:g} for this "
            "run"
        )
    nodes = node_cpus()
    actors = min(
        len(tasks), num_actors or (max(1, int(gpus // gpus_per_actor)) if gpus else len(nodes))
    )
    cpus = 1 if gpus else even_cpus(nodes, actors, recipe.ray.cpus_per_run)
    blocks = min(len(tasks), max(_MOST_BLOCKS, _BLOCKS_PER_ACTOR * actors))
    dataset = ray.data.from_items(
        [{"task": json.dumps(task)} for task in tasks], override_num_blocks=blocks
    ).map_batches(
        _JsonActor,
        fn_constructor_args=(actor, recipe.model_dump(mode="json"), cpus, local_paths(recipe)),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=actors,
            max_tasks_in_flight_per_actor=2 * calls_at_once,
            max_concurrent_calls_per_actor=calls_at_once,
            enable_true_multi_threading=calls_at_once > 1,
        ),
        num_gpus=min(gpus_per_actor, gpus),
        num_cpus=cpus,
    )
    with tqdm(total=len(tasks), desc=label, unit="task", disable=quiet) as progress:
        for batch in dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            for text in batch["result"].to_pylist():
                found = json.loads(text)
                if "failure" in found:
                    raise Failure(**found["failure"]).error()
                progress.update(1)
                yield found["value"]


def quieten_ray_data() -> None:
    """Keep task order, and keep Ray Data's own bars and information lines off the terminal."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class _JsonActor:
    def __init__(
        self, actor: type, recipe: dict[str, Any], threads: int, paths: dict[str, str]
    ) -> None:
        if not torch.cuda.is_available():
            torch.set_num_threads(min(threads, os.cpu_count() or 1))
        self._blind: UserError | None = None
        try:
            require_seen(paths)
        except UserError as error:
            self._blind = error
        else:
            self._actor = actor(recipe)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.table(
            {
                "result": [
                    json.dumps(self._outcome(json.loads(task)))
                    for task in batch["task"].to_pylist()
                ]
            }
        )

    def _outcome(self, task: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._blind is not None:
                raise self._blind
            return {"value": self._actor(task)}
        except (UserError, StageFailed) as error:  # raised where the tasks are read, in one line
            return {"failure": asdict(Failure.of(error))}
