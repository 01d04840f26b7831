"""The places of training workers, and freeing those whose controller is dead.

A placement group of Ray stays while its job does, also when the actor that made it has been killed,
as Ray Tune does to a trial that it stops. Ray Train's own remedy is an actor per training that asks
the dashboard: it learns of a group when its workers have started, goes when it has freed one, and
misses what a controller asked for before or after. Here a group tells by its name whose it is, and
whoever drives the trainings frees those of the dead, as often as it looks.
"""

import contextlib
import uuid

_OF = "sparsepo-places-of-"  # then the controller's actor id, and what tells its groups apart


def name_of_places() -> str:
    """For a placement group of the actor that calls."""
    import ray

    return f"{_OF}{ray.get_runtime_context().get_actor_id()}-{uuid.uuid4().hex[:8]}"


def free_places_of_dead() -> list[str]:
    """Remove the placement groups of controllers that are dead; returns their names.

    It asks Ray's own table, so that it needs no dashboard. A Ray that does not answer ends nothing:
    who needs it finds that, or asks again.
    """
    from ray._private.state import state
    from ray._raylet import PlacementGroupID
    from ray.exceptions import RayError
    from ray.util.placement_group import (
        PlacementGroup,
        placement_group_table,
        remove_placement_group,
    )

    found: list[str] = []
    with contextlib.suppress(RayError):
        for group, told in placement_group_table().items():
            if not told["name"].startswith(_OF) or told["state"] == "REMOVED":
                continue
            controller = told["name"].removeprefix(_OF).split("-")[0]
            if state.actor_table(controller).get("State", "DEAD") == "DEAD":
                remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))
                found.append(told["name"])
    return found
