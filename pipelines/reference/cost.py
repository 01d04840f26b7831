"""Stored or online: what either costs.

Stored means scoring once and reading back; online, running the frozen reference beside training.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.models import (
    base_dir,
    compute_device,
    hf_config,
    reference_dtype,
    sustained_tflops,
)
from pipelines.recipe import Recipe, Run
from pipelines.reference.formats import formats_of, head_bytes, stored_bytes
from pipelines.reference.model import batch_tokens, reference_model_dir
from sparsepo.batching.sampling import Sampler
from sparsepo.kernels.token_scoring import CHUNK_ELEMENTS
from sparsepo.records import FEATURES

_WRITE_BYTES_PER_SECOND, _READ_BYTES_PER_SECOND = 0.5e9, 1.0e9
_FORWARD_PER_SCORED_TOKEN = (
    3.0  # tokens that run through the model for one that is scored: prompts, and padding
)


@dataclass(frozen=True)
class ReferenceCost:
    """Device seconds per scored token over a whole recipe (or sweep)."""

    stored: float
    online: float


def reference_cost(recipe: Recipe, device: torch.device, trials: int = 1) -> ReferenceCost:
    """Stored: one forward, one write, a read per epoch and trial.

    Online: a forward per epoch and trial.
    """
    directory = reference_model_dir(recipe)
    forward = (
        _FORWARD_PER_SCORED_TOKEN
        * 2
        * count_parameters(Path(directory))
        / (sustained_tflops(device) * 1e12)
    )
    features = [name for name in recipe.required_features() if FEATURES[name].origin == "reference"]
    formats = formats_of(recipe, features, reference_dtype(recipe.reference.dtype, device))
    size, uses = sum(form.token_bytes() for form in formats.values()), recipe.train.epochs * trials
    return ReferenceCost(
        forward + size / _WRITE_BYTES_PER_SECOND + uses * size / _READ_BYTES_PER_SECOND,
        uses * forward,
    )


def settle_mode(recipe: Recipe, device: torch.device, trials: int = 1) -> Recipe:
    """The recipe with reference.mode=auto decided.

    Without states of all layers the store is small and always taken.
    """
    if recipe.reference.mode != "auto" or "reference_layers" not in recipe.required_features():
        return recipe
    cost = reference_cost(recipe, device, trials)
    mode = "stored" if cost.stored < cost.online else "online"
    return recipe.model_copy(
        update={"reference": recipe.reference.model_copy(update={"mode": mode})}
    )


def count_parameters(directory: Path) -> int:
    """Parameters of a model directory, read from the safetensors headers.

    For an adapter, they are those of the base.
    """
    total = 0
    for file in sorted(base_dir(directory).glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for extent in entry["shape"]:
                    size *= extent
                total += size
    return total


def planned_steps(recipe: Recipe, data: dict[str, Any]) -> tuple[int, float]:
    """Steps that training will take, and the epochs that they are.

    Args:
        data: prepare's forecast.
    """
    train = recipe.train
    sampler = Sampler(max(1, data["pairs"]["train"]), train.global_batch_size, 0)
    steps = sampler.num_steps(train.epochs, train.max_steps)
    return steps, steps / sampler.steps_per_epoch


def forecast_reference(run: Run, data: dict[str, Any], tflops: float) -> dict[str, Any]:
    """Storage, memory and hours of the reference, stored and online.

    One forward computes 2 FLOP per parameter and token. Hours are those of one device; parts that
    run side by side divide them.

    Args:
        data: prepare's forecast.
    """
    recipe, device = run.recipe, compute_device()
    directory = reference_model_dir(recipe)
    dtype = reference_dtype(recipe.reference.dtype, device)
    epochs = planned_steps(recipe, data)[1]
    features = sorted(recipe.stored_features())
    formats = formats_of(recipe, features, dtype)
    parameters = count_parameters(Path(directory))
    shared = recipe.reference.layout != "padded"
    tokens = data["shared_tokens" if shared else "model_tokens"]
    pass_hours = 2 * parameters * sum(tokens.values()) / (tflops * 1e12) / 3600
    per_token = {
        name: form.token_bytes() for name, form in formats.items() if FEATURES[name].per == "token"
    }
    per_pair = {
        name: form.token_bytes() for name, form in formats.items() if FEATURES[name].per == "pair"
    }
    total = stored_bytes(formats, data) + head_bytes(recipe, features, dtype)
    config = hf_config(directory).get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    budget = batch_tokens(recipe, device)
    # One layer's working set, the states that are kept, and the head's chunk in float32 with its
    # softmax.
    working = (
        budget * dtype.itemsize * (5 * config.hidden_size + 2 * inner) + 3 * 4 * CHUNK_ELEMENTS
    )
    kept = (
        budget * dtype.itemsize * config.hidden_size * config.num_hidden_layers
        if "reference_layers" in features
        else 0
    )
    training = 2 * parameters * tokens["train"] * epochs / (tflops * 1e12) / 3600
    return {
        "mode": recipe.reference_mode() if recipe.required_features() else "not needed",
        "features": features,
        "bytes_per_scored_token": sum(per_token.values()),
        "bytes_per_token_by_feature": per_token,
        "bytes_per_pair": sum(per_pair.values()),
        "storage_bytes": total,
        "storage_gib": total / 2**30,
        "memory_gib": (parameters * dtype.itemsize + working + kept) / 2**30,
        "hours_stored": pass_hours,
        "hours_online": training,
        "assumed_tflops": tflops,
    }
