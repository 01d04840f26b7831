"""Places of training workers go back when their controller is dead, however it died."""

from types import SimpleNamespace
from typing import Any

import pytest
from processes import wait_while_it_goes_on
from ray_tables import places

from pipelines.train.places import free_places_of_dead, name_of_places


def _freed(count: int) -> set[str]:
    """So many groups, which Ray's table shows as the dead's in a moment, and as removed in another
    one.
    """
    found: set[str] = set()

    def has_all() -> bool:
        found.update(free_places_of_dead())
        return len(found) >= count

    wait_while_it_goes_on(has_all, lambda: len(found))
    return found


@pytest.mark.slow
def test_places_of_a_dead_controller_are_free_and_others_stay(ray_cluster: None) -> None:
    """One was killed while it had places, one while it waited for some, one is alive; a group of
    somebody else has another name.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    @ray.remote(num_cpus=0)
    class Controller:
        def ask(self, cpus: int) -> str:
            name = name_of_places()
            self.group: Any = placement_group([{"CPU": cpus}], name=name)
            return name

    others = placement_group([{"CPU": 1}], name="of somebody else")
    dead, waiting, alive = (Controller.remote() for _ in range(3))
    asked = [ray.get(dead.ask.remote(1)), ray.get(waiting.ask.remote(2))]
    kept = ray.get(alive.ask.remote(2))
    assert free_places_of_dead() == []
    for controller in (dead, waiting):
        ray.kill(controller)
    assert _freed(2) == set(asked)
    names = {told["name"] for told in places().values()}
    assert {kept, "of somebody else"} <= names and not names & set(asked)
    remove_placement_group(others)
    more = ray.get(alive.ask.remote(1))
    ray.kill(alive)
    assert _freed(2) == {kept, more}, "a controller's groups have names of their own"


@pytest.mark.slow
def test_a_trainings_places_tell_whose_they_are(ray_cluster: None) -> None:
    """They are those that Ray Train would ask for, with the controller's id in their name."""
    import ray
    from ray.train.v2._internal.execution.worker_group import worker_group

    from pipelines.train import lean_trainer

    asked = SimpleNamespace(
        resources_per_worker={"CPU": 1.0}, num_workers=2, placement_strategy="PACK",
        label_selector=None,
    )  # fmt: skip
    scaling = SimpleNamespace(use_tpu=False, topology=None, accelerator_type=None)

    @ray.remote(num_cpus=0)
    class Controller:
        def ask(self) -> tuple[str, list[dict[str, Any]]]:
            found = []
            for group in (lean_trainer.WorkerGroup, worker_group.WorkerGroup):
                group = group.__new__(group)
                handle = group._create_placement_group(scaling, asked)
                assert handle.wait(30)
                found.append(ray.util.placement_group_table(handle.placement_group))
                handle.shutdown()
            return ray.get_runtime_context().get_actor_id(), found

    controller, (ours, own) = ray.get(Controller.remote().ask.remote())
    assert controller in ours["name"] and not own["name"]
    assert all(ours[key] == own[key] for key in ("bundles", "strategy"))
    assert len(ours["bundles"]) == 2
