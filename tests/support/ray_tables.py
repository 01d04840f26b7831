"""What the Ray that a test is connected to knows of actors and places, without its dashboard."""

from pathlib import Path
from typing import Any, NamedTuple


class Living(NamedTuple):
    class_name: str
    pid: int
    job: str
    is_running: bool  # Ray says so, and its process is there; Ray learns a moment later of a kill


def living_actors() -> list[Living]:
    """Actors that are not dead, also those that wait for a process or for another one."""
    from ray._private.state import state

    return [
        Living(
            told["ActorClassName"],
            told["Pid"],
            told["JobID"],
            told["State"] == "ALIVE" and Path(f"/proc/{told['Pid']}").exists(),
        )
        for told in state.actor_table(None).values()
        if told["State"] != "DEAD"
    ]


def places() -> dict[str, dict[str, Any]]:
    """Placement groups that are not removed, by their id."""
    from ray.util.placement_group import placement_group_table

    table = placement_group_table()
    return {group: told for group, told in table.items() if told["state"] != "REMOVED"}
