"""The numbers of a map of the hidden state: as a module, and as a file."""

import json
from pathlib import Path
from typing import Any

import torch

from pipelines.storage import RunStore, read_listed
from sparsepo.merging import WeightMap

_AGAIN = "restore it, or remove its folder: the same command fits the map again"


def map_of(numbers: dict[str, Any]) -> WeightMap:
    """The module of a map's numbers: weight [K, d] and bias [K]."""
    weight = torch.tensor(numbers["weight"], dtype=torch.float32)
    found = WeightMap(weight.shape[1], weight.shape[0])
    found.load_state_dict({"linear.weight": weight, "linear.bias": torch.tensor(numbers["bias"])})
    return found.eval().requires_grad_(False)


def numbers_of(weight_map: WeightMap) -> dict[str, Any]:
    """JSON has every digit of a float32: what is read again is equal bit for bit."""
    linear = weight_map.linear
    return {"weight": linear.weight.tolist(), "bias": linear.bias.tolist()}


def write_map(numbers: dict[str, Any], file: Path, about: dict[str, Any]) -> None:
    """Args: about: what the file says of how it was made."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in map_of(numbers).state_dict().items()}
    save_file(tensors, file, {"about": json.dumps(about, sort_keys=True)})


def read_map(store: RunStore, path: str, sha256: str | None) -> dict[str, Any]:
    """Args: sha256: of the file, as its manifest has it.

    Raises: DamagedFile if it is gone or another one.
    """
    from safetensors.torch import load

    found = load(read_listed(store, path, sha256, _AGAIN))
    return {"weight": found["linear.weight"].tolist(), "bias": found["linear.bias"].tolist()}
