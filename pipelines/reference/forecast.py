"""What the reference will take: storage, memory and hours, stored and online."""

from pathlib import Path
from typing import Any

from pipelines.models import (
    SCORING_START,
    Duration,
    compute_device,
    device_kind,
    dtype_name,
    feed_forward_size,
    forward_seconds,
    hf_config,
    num_layers,
    padded_vocabularies,
    reference_dtype,
)
from pipelines.recipe import Recipe, Run
from pipelines.reference.cost import count_parameters
from pipelines.reference.formats import formats_of, head_bytes, stored_bytes
from pipelines.reference.model import batch_tokens
from pipelines.reference.origins import reference_model_dir
from sparsepo.batching.sampling import Sampler
from sparsepo.features import FEATURES
from sparsepo.kernels.token_scoring import CHUNK_ELEMENTS


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
    name = dtype_name(recipe.reference.dtype, device.type)
    epochs = planned_steps(recipe, data)[1]
    features = sorted(recipe.stored_features())
    formats = formats_of(recipe, features, name)
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
    total = stored_bytes(formats, data) + head_bytes(recipe, features, name)
    config = hf_config(directory).get_text_config()
    inner = feed_forward_size(config)
    budget = batch_tokens(recipe.reference, device)
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
    sizes = padded_vocabularies(recipe)
    return {
        "mode": recipe.reference_mode() if recipe.required_features() else "not needed",
        "features": features,
        **({} if sizes is None else {"vocabulary": str(sizes)}),
        "bytes_per_scored_token": sum(per_token.values()),
        "bytes_per_token_by_feature": per_token,
        "bytes_per_pair": sum(per_pair.values()),
        "storage_bytes": total,
        "storage_gib": total / 2**30,
        "memory_gib": (parameters * dtype.itemsize + working + kept) / 2**30,
        "hours_stored": pass_hours,
        "hours_online": training,
        "assumed_tflops": tflops,
        "disk_bytes": total,
        **_duration(recipe, features, pass_hours, sum(tokens.values()) / budget, config, tflops),
    }


def _duration(
    recipe: Recipe,
    features: list[str],
    pass_hours: float,
    batches: float,
    config: Any,
    tflops: float,
) -> dict[str, float]:
    """Seconds of the stage; none where it stores nothing."""
    if not features:
        return Duration(0.0, 0.0).as_keys()
    device = device_kind()
    launches = forward_seconds(0, 0, batches, num_layers(config), tflops, device)
    return Duration(SCORING_START, 3600 * pass_hours + launches).as_keys()
