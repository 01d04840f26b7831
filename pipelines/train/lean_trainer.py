"""Ray Train's trainer without what has nothing to do here.

Some parts of Ray Train are taken in hand that it has no options for; they are small, and Ray Train
does the rest. It leaves out actors without work, one worker has a light one for what workers agree
on, and in a Ray of our own its controller and workers take processes that are there already: Ray
would start new ones for environment variables which all of its processes have. The places of
workers are named after their controller, see places.py.
"""

import os
from typing import Any

from pipelines.models import quick_imports
from pipelines.train import alone
from pipelines.train.places import name_of_places

with quick_imports():
    import ray
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.constants import get_env_vars_to_propagate
    from ray.train.v2._internal.execution import controller, worker_group
    from ray.train.v2._internal.execution.worker_group import worker_group as group_start
    from ray.util.placement_group import placement_group

# There are no Ray data sets to manage, and the driver frees the places of a dead controller.
_WITHOUT_WORK = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
_TOGETHER = group_start.SynchronizationActor
_ALONE = ray.remote(num_cpus=0)(alone.SynchronizationActor)
_QUIET = "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"


class LeanTrainer(TorchTrainer):
    """For any Ray."""

    def _create_default_callbacks(self) -> list[Any]:
        found = super()._create_default_callbacks()
        return [each for each in found if type(each).__name__ not in _WITHOUT_WORK]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        variables = {_QUIET: os.environ.get(_QUIET, "0"), **get_env_vars_to_propagate()}
        return _run(TrainController, given, runtime_env={"env_vars": variables})


class OwnRayTrainer(LeanTrainer):
    """For a Ray of this command, whose processes have this process's environment."""

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        return _run(OwnTrainController, given)


def _run(controller_class: type, given: dict[str, Any], **options: Any) -> Any:
    """Train with a controller on this machine."""
    here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
    actor = ray.remote(num_cpus=0, label_selector=here, **options)(controller_class)
    found = actor.remote(**given)
    ray.get(found.run.remote())
    return ray.get(found.get_result.remote())


class WorkerGroup(worker_group.WorkerGroup):  # type: ignore[misc]
    def _start(self) -> None:
        is_alone = self._worker_group_context.num_workers == 1
        group_start.SynchronizationActor = _ALONE if is_alone else _TOGETHER
        super()._start()

    def _create_placement_group(self, scaling_config: Any, context: Any) -> Any:
        group = placement_group(
            bundles=[context.resources_per_worker] * context.num_workers,
            strategy=context.placement_strategy,
            bundle_label_selector=context.label_selector,
            name=name_of_places(),
        )
        return worker_group.DefaultPlacementGroupHandle(group)


class TrainController(controller.TrainController):  # type: ignore[misc]
    worker_group_cls = WorkerGroup


# Under Ray's own name, which it shows.
class RayTrainWorker(worker_group.RayTrainWorker):  # type: ignore[misc]
    """Its process imports this module first, and so what the worker needs in the quick way."""


class OwnWorkerGroup(WorkerGroup):
    _worker_cls = RayTrainWorker

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        return custom_runtime_env


class OwnTrainController(TrainController):
    worker_group_cls = OwnWorkerGroup
