"""What a checkpoint is: its state.json, the checksums of its files, the parameters that it holds.

state.json holds the sha256 of every file and of itself: a flipped bit is found before anything is
read. What is not trained, the base under adapters, is not stored: state.json names its fingerprint.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pipelines.errors import DamagedCheckpoint, DamagedFile, Failure, StageFailed, UserError
from pipelines.models import Placement
from pipelines.recipe import ATTEMPT, CHECKPOINTS, STATE
from pipelines.storage import RunStore, digest, parse_json, read_whole, write_record
from pipelines.train.steps import completed_steps, step_folder

STARTS = "starts"  # in a file's metadata: the first row of every tensor
GOES_ON = "goes_on"  # whether a file holds the optimizer's state too
SEAL = "sha256"  # of state.json's own contents, and of a file in it
_BASE = "causal_lm."  # where parameters that do not train are not stored


def read_state(store: RunStore, step: int) -> dict[str, Any]:
    """The state of a checkpoint. Raises: DamagedCheckpoint if it is not what was written."""
    path = f"{step_folder(step)}/{STATE}"
    try:
        state: dict[str, Any] = parse_json(read_whole(store, path))
        seal = state.pop(SEAL, None)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{store.root}/{path} is missing") from error
    except (ValueError, AttributeError, TypeError, DamagedFile) as error:
        raise DamagedCheckpoint(
            f"{store.root}/{path} is damaged: it is not what was written"
        ) from error
    if seal is None:
        raise DamagedCheckpoint(
            f"{store.root}/{path} has no checksum: it is damaged, or an older version wrote it"
        )
    if seal != digest(state):
        raise DamagedCheckpoint(f"{store.root}/{path} is damaged: its checksum does not fit")
    return state


def write_state(store: RunStore, step: int, state: dict[str, Any]) -> None:
    """Publish the state of a checkpoint, which is complete from here on."""
    state = json.loads(json.dumps(state))  # as it will be read
    store.write_json(f"{step_folder(step)}/{STATE}", {**state, SEAL: digest(state)})


def goes_on(state: Mapping[str, Any]) -> bool:
    """Whether training can go on from a state: there is none yet, or not of a run's last save."""
    return bool(state.get(GOES_ON, True))


def check_files(store: RunStore, step: int, placement: Placement) -> None:
    """Compare every file of a checkpoint with its checksum.

    The ranks share the files, and every rank must call it.

    Raises: DamagedCheckpoint on every rank, naming the first file that is missing or damaged.
    """
    try:
        found = _damage(store, step, placement)
        failure = Failure("checkpoint", found) if found else None
    except StageFailed as error:  # an object store that does not answer is no damage
        failure = Failure.of(error)
    for failed in placement.gather(failure):
        if failed is not None:
            raise failed.error()


def _damage(store: RunStore, step: int, placement: Placement) -> str:
    """What is wrong with this rank's share of the files, or an empty string."""
    try:
        files = read_state(store, step)["files"]
        for file in sorted(files)[placement.rank :: placement.world]:
            path, expected = f"{step_folder(step)}/{file}", files[file]
            if store.size(path) != expected["bytes"]:
                return (
                    f"{store.root}/{path} is missing or damaged: it has not the "
                    f"{expected['bytes']} bytes that were written"
                )
            if store.checksum(path) != expected[SEAL]:
                return f"{store.root}/{path} is damaged: its checksum does not fit"
    except (UserError, OSError) as error:
        return str(error)
    return ""


def newest_intact(
    store: RunStore, steps: Sequence[int], placement: Placement
) -> tuple[int, list[str]]:
    """The last of the steps whose checkpoint is what was written, and a line for each later one.

    Step 0 means that there is none. A later one does not count as a checkpoint any more. Every rank
    must call it, with the same steps.

    Raises: DamagedCheckpoint if every checkpoint is damaged.
    """
    damage: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        try:
            check_files(store, step, placement)
        except DamagedCheckpoint as error:
            damage[step] = str(error)
            continue
        if placement.rank == 0:
            for other in damage:
                store.delete(f"{step_folder(other)}/{STATE}")
        return step, [
            f"{message}; training goes on from step {step} instead of step {other}"
            for other, message in damage.items()
        ]
    if damage:
        raise DamagedCheckpoint(
            f"{damage[max(damage)]}; no checkpoint is left: remove {store.root}/{CHECKPOINTS} to "
            "start from the beginning"
        )
    return 0, []


def claim(store: RunStore, attempt: str) -> list[int]:
    """Make a run this worker group's; returns the steps it can resume from.

    Rank 0 alone; the others are told.

    An older group that still lives commits nothing from here on, so that what all ranks resume from
    stays the newest.
    """
    write_record(store, ATTEMPT, {"attempt": attempt})
    return completed_steps(store)


def stored_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a checkpoint holds: all but the frozen base of a policy with adapters.

    A mask's controller is held although no gradient reaches it.
    """
    return {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad or not name.startswith(_BASE)
    }
