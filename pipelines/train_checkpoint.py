"""Training checkpoints: safetensors and JSON, published whole under a step-numbered name.

A folder counts only with its state.json, which is written last; a partial one is never resumed from.
"""

import json
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipelines.store import RunStore

FOLDER, STATE = "checkpoints", "state.json"
_POLICY, _OPTIMIZER = "policy.safetensors", "optimizer.safetensors"


def step_folder(step: int) -> str:
    return f"{FOLDER}/step-{step:08d}"


def completed_steps(store: RunStore) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    names = [name for name in store.names(FOLDER) if name.startswith("step-")]
    return [int(name.removeprefix("step-")) for name in names if store.exists(f"{FOLDER}/{name}/{STATE}")]


def save_checkpoint(
    store: RunStore, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> None:
    """Publish the state after `step` optimizer steps and drop all but the newest `keep` checkpoints. Rank 0 only."""
    folder = store.staging_directory()
    names = {id(p): name for name, p in model.named_parameters()}
    save_file({name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, folder / _POLICY)
    tensors = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            tensors[f"{key}/{names[id(parameter)]}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(tensors, folder / _OPTIMIZER)
    (folder / STATE).write_text(json.dumps({"step": step, **state}, sort_keys=True))
    store.publish_directory(folder, step_folder(step))
    for old in completed_steps(store)[:-keep]:
        store.delete(step_folder(old))


def load_checkpoint(store: RunStore, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Copy a checkpoint's weights and optimizer state into live objects, bit for bit."""
    with store.as_local_directory(step_folder(step)) as folder:
        weights = load_file(folder / _POLICY)
        moments = load_file(folder / _OPTIMIZER)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys(), "the checkpoint is of another model: the stage record should have refused it"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for key, value in moments.items():
        kind, name = key.split("/", 1)
        parameter = parameters[name]
        moved = value if kind == "step" else value.to(parameter.device)
        optimizer.state[parameter][kind] = moved


def read_state(store: RunStore, step: int) -> dict[str, Any]:
    loaded: dict[str, Any] = store.read_json(f"{step_folder(step)}/{STATE}")
    return loaded
