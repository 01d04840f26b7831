"""Which checkpoints of a run are complete; for those who list them and load none."""

from pipelines.recipe import CHECKPOINTS, STATE
from pipelines.storage import RunStore


def step_folder(step: int) -> str:
    return f"{CHECKPOINTS}/step-{step:08d}"


def completed_steps(store: RunStore) -> list[int]:
    """Steps with a complete checkpoint, ascending: one counts when its state is there."""
    names = [name for name in store.names(CHECKPOINTS) if name.startswith("step-")]
    return [
        int(name.removeprefix("step-"))
        for name in names
        if store.exists(f"{CHECKPOINTS}/{name}/{STATE}")
    ]
