"""A checkpoint's weights and optimizer state, put back by any number of ranks."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipelines.errors import DamagedCheckpoint, UserError
from pipelines.storage import RunStore
from pipelines.train.checkpoint_contents import STARTS, read_state, stored_parameters
from pipelines.train.steps import step_folder
from pipelines.train.strategy import Strategy


def load_checkpoint(
    store: RunStore,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    strategy: Strategy,
    base: str | None = None,
) -> None:
    """Copy a checkpoint's weights into live objects, bit for bit.

    The optimizer state is copied too if an optimizer is given. The files are compared with their
    checksums before: by check_files, or where the step was chosen.

    Args:
        base: fingerprint of the model's weights that do not train.
    Raises: UserError if the state is damaged, or the checkpoint's adapters belong to another base.
    """
    state = read_state(store, step)
    if state["base"] != base:
        raise UserError(
            f"{store.root}/{step_folder(step)} holds adapters of a base with fingerprint "
            f"{state['base']}, the base here has {base}: restore model.name_or_path as it was, or "
            "choose another run_dir"
        )
    files = state["files"]
    for file, written in files.items():
        if store.size(f"{step_folder(step)}/{file}") != written["bytes"]:
            raise DamagedCheckpoint(
                f"{store.root}/{step_folder(step)}/{file} is missing or damaged"
            )
    with store.as_local_directory(step_folder(step)) as folder:
        opened = [safe_open(folder / file, framework="pt") for file in sorted(files)]
        pieces: dict[str, list[tuple[int, Any]]] = {}
        for source in opened:
            starts = json.loads(source.metadata()[STARTS])
            for name in source.keys():  # noqa: SIM118 - not a dictionary
                pieces.setdefault(name, []).append((starts[name], source))
        parameters = stored_parameters(model)
        assert {name.split("/", 1)[1] for name in pieces} == parameters.keys(), (
            "another model's checkpoint: the stage record refuses it"
        )
        with torch.no_grad():
            for full, parts in sorted(pieces.items()):
                kind, name = full.split("/", 1)
                parameter: Any = parameters[name]
                if kind != "weights" and optimizer is None:
                    continue
                value = _read(full, parts, strategy.local_rows(parameter))
                if kind == "weights":
                    (parameter.to_local() if hasattr(parameter, "to_local") else parameter).copy_(
                        value
                    )
                else:
                    assert optimizer is not None
                    optimizer.state[parameter][kind] = _like(parameter, value, kind)


def _read(name: str, parts: Sequence[tuple[int, Any]], span: tuple[int, int] | None) -> Tensor:
    """The rows [start, stop) of a tensor (None: all).

    They are put together from the files that hold some of them.
    """
    first = parts[0][1].get_slice(name)
    if not first.get_shape():
        scalar: Tensor = parts[0][1].get_tensor(name)
        return scalar
    start, stop = span or (0, sys.maxsize)
    found = []
    for begin, source in sorted(parts, key=lambda part: part[0]):
        piece = source.get_slice(name)
        end = begin + piece.get_shape()[0]
        if begin < stop and end > start:
            found.append(piece[max(start, begin) - begin : min(stop, end) - begin])
    return torch.cat(found) if found else first[0:0]


def _like(parameter: Any, value: Tensor, kind: str) -> Tensor:
    """An optimizer tensor placed like its parameter.

    Step counters stay where the optimizer makes them.
    """
    if value.ndim == 0 and kind == "step":
        return value.to(parameter.device) if parameter.is_cuda else value
    if hasattr(parameter, "to_local"):
        from torch.distributed.tensor import DTensor

        local = value.to(parameter.to_local().device)
        return DTensor.from_local(
            local,
            parameter.device_mesh,
            parameter.placements,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
    return value.to(parameter.device)
