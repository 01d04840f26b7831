"""What a training may leave behind once it has been evaluated."""

from pipelines.recipe import CHECKPOINTS, MASKS, MODEL
from pipelines.storage import RunStore


def drop_weights(store: RunStore) -> None:
    """Remove model, masks and checkpoints of a training; its record and metrics stay.

    Args:
        store: of the training (RUN/train). What is gone already is no error.
    """
    for name in (CHECKPOINTS, MODEL, MASKS):
        store.delete(name)
