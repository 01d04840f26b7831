"""Which checkpoints of a run are complete; for those who list them and load none."""

from pipelines.recipe import CHECKPOINTS
from pipelines.storage import RunStore

STATE = "state.json"  # a checkpoint counts when it is there


def step_folder(step: int) -> str:
    return f"{CHECKPOINTS}/step-{step:08d}"


def completed_steps(store: RunStore) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    names = [name for name in store.names(CHECKPOINTS) if name.startswith("step-")]
    return [
        int(name.removeprefix("step-"))
        for name in names
        if store.exists(f"{CHECKPOINTS}/{name}/{STATE}")
    ]
