"""Ray Train's trainer without what has nothing to do here.

Two parts of Ray Train are taken in hand that it has no options for; both are small, and Ray Train
does the rest. It leaves out actors without work, and in a Ray of our own its controller and workers
take processes that are there already: Ray would start new ones for environment variables which all
of its processes have.
"""

from typing import Any

from pipelines.models import quick_imports

with quick_imports():
    import ray
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution import controller, worker_group

_WITHOUT_WORK = {"DatasetsCallback"}  # there are no Ray data sets to manage
# Frees the places of a dead controller through the state API; a session without that ends with its
# controller.
_NEEDS_STATE_API = {"PlacementGroupCleanerCallback"}


class LeanTrainer(TorchTrainer):
    """For any Ray.

    Attributes:
        has_state_api: whether the Ray has the dashboard's state API.
    """

    has_state_api = True

    def _create_default_callbacks(self) -> list[Any]:
        idle = _WITHOUT_WORK | (set() if self.has_state_api else _NEEDS_STATE_API)
        found = super()._create_default_callbacks()
        return [each for each in found if type(each).__name__ not in idle]


class OwnRayTrainer(LeanTrainer):
    """For a Ray of this command, whose processes have this process's environment."""

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        found = ray.remote(num_cpus=0, label_selector=here)(TrainController).remote(**given)
        ray.get(found.run.remote())
        return ray.get(found.get_result.remote())


# Under Ray's own names, which it shows.
class RayTrainWorker(worker_group.RayTrainWorker):  # type: ignore[misc]
    """Its process imports this module first, and so what the worker needs in the quick way."""


class WorkerGroup(worker_group.WorkerGroup):  # type: ignore[misc]
    _worker_cls = RayTrainWorker

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        return custom_runtime_env


class TrainController(controller.TrainController):  # type: ignore[misc]
    worker_group_cls = WorkerGroup
