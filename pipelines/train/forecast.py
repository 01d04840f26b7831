"""What training will take: steps, memory per worker, hours."""

from typing import Any

import torch

from pipelines.models import (
    TRAINING_START,
    Duration,
    Placement,
    activation_bytes_per_token,
    compile_forecast,
    compute_device,
    hf_config,
    micro_batch_tokens,
    num_experts,
    num_layers,
    reference_dtype,
    training_seconds,
)
from pipelines.recipe import Recipe, Run
from pipelines.reference import count_parameters, planned_steps, reference_model_dir
from pipelines.train.builders import build_mask
from pipelines.train.policy import count_adapter_parameters
from pipelines.train.start import starting_model
from sparsepo.backbone import state_size
from sparsepo.kernels.token_scoring import CHUNK_ELEMENTS, FUSED_CHUNK_ELEMENTS

_ROUTERS = "the routers' balancing loss and jitter are off, the objective alone is trained"


def forecast_training(run: Run, data: dict[str, Any], tflops: float) -> dict[str, Any]:
    """Steps, what one worker holds, and how long all of them take.

    Memory is per process. state_gib are weights, gradients and Adam's moments; memory_gib is that
    and a frozen reference, activations of a micro-batch and the head's chunks. FLOP per parameter
    and token: 2 forward, 2 to the states, 2 to the weights.

    Args:
        data: prepare's forecast.
    """
    recipe, device = run.recipe, compute_device()
    steps, epochs = planned_steps(recipe, data)
    train, directory = recipe.train, starting_model(recipe)
    config = hf_config(directory).get_text_config()
    parameters, adapters, masks = (
        count_parameters(directory),
        count_adapter_parameters(recipe),
        _mask_parameters(recipe),
    )
    placement = Placement.choose(train.precision, device, 0, train.num_workers, train.strategy)
    is_frozen = train.lora is not None or recipe.trains_control()
    # Weights, their gradients, and Adam's two moments.
    per_trained = 4 * placement.weights.itemsize
    sharers = train.num_workers if train.strategy == "fsdp" else 1
    base = parameters * (placement.compute.itemsize if is_frozen else per_trained) / sharers
    online = bool(recipe.online_features())
    reference_bytes = reference_dtype(recipe.reference.dtype, device).itemsize
    frozen = parameters * reference_bytes / sharers if online else 0
    head = (
        config.vocab_size * state_size(config) * reference_bytes
        if "reference_hidden" in recipe.required_features()
        else 0
    )
    budget = micro_batch_tokens(train, recipe.model.name_or_path, recipe.ray.gpus_per_run, device)
    activations = budget * activation_bytes_per_token(
        config, placement.compute.itemsize, train.gradient_checkpointing
    )
    chunk = 2 * 2 * FUSED_CHUNK_ELEMENTS if device.type == "cuda" else 4 * 4 * CHUNK_ELEMENTS
    state = base + adapters * per_trained + masks * 16
    tokens = data["model_tokens" if train.layout == "padded" else "shared_tokens"]["train"] * epochs
    flops = (
        (
            (4 if is_frozen else 6)
            + (2 if train.gradient_checkpointing else 0)
            + (2 if online else 0)
        )
        * parameters
        * tokens
    )
    experts = num_experts(config)
    # Workers on CPUs share the cores that the rate is of.
    parallel = train.num_workers if device.type == "cuda" else 1
    trained = (adapters if is_frozen else parameters) + masks
    work = training_seconds(
        flops,
        max(tokens / budget, steps),
        steps * parallel,
        num_layers(config),
        tflops,
        device.type,
    )
    compiled = _compiled(
        run, flops, tokens / budget, config.num_hidden_layers, tflops, device.type == "cuda"
    )
    compiling = 0.0
    if compiled["compile"] and "compile_seconds" in compiled:
        compiling = compiled["compile_seconds"] - compiled["compile_saves_seconds"]
    return {
        "steps": steps,
        "pairs_per_step": train.global_batch_size,
        "epochs": epochs,
        "learning_rate": train.learning_rate,
        "parameters": parameters,
        "adapter_parameters": adapters,
        "mask_parameters": masks,
        "workers": train.num_workers,
        "micro_batch_tokens": budget,
        "state_gib": state / 2**30,
        "memory_gib": (state + frozen + head + activations + chunk) / 2**30,
        "flops": int(flops),
        "hours": flops / (tflops * 1e12 * parallel) / 3600,
        "assumed_tflops": tflops,
        "disk_bytes": _disk_bytes(recipe, steps, trained, placement.weights.itemsize),
        **Duration(TRAINING_START + compiling, work / parallel).as_keys(),
        **({"routers": f"{experts} experts: {_ROUTERS}"} if experts > 1 else {}),
        **compiled,
    }


def _disk_bytes(recipe: Recipe, steps: int, trained: int, itemsize: int) -> int:
    """Of checkpoints with both of Adam's moments, the last one's weights, and the model."""
    train = recipe.train
    written = max(1, -(-steps // train.checkpoint_every))
    kept = min(train.keep_checkpoints + train.selection.keep_best, written)
    return trained * itemsize * (3 * (kept - 1) + 1 + 1)


def _compiled(
    run: Run, flops: float, micro_batches: float, layers: int, tflops: float, on_gpu: bool
) -> dict[str, Any]:
    """Whether the decoder layers are compiled, and what that is expected to take and to save."""
    wanted, train = run.recipe.train.compile, run.recipe.train
    if not on_gpu:
        return {"compile": bool(wanted)}
    found = compile_forecast(flops, micro_batches, layers, tflops, train.num_workers)
    return {
        "compile": found.pays if wanted is None else wanted,
        "compile_seconds": found.seconds,
        "compile_saves_seconds": found.saved_seconds,
    }


def _mask_parameters(recipe: Recipe) -> int:
    with torch.device("meta"):
        masks = build_mask(recipe.mask, hf_config(reference_model_dir(recipe)), recipe.train.seed)
    return sum(p.numel() for p in masks.parameters() if p.requires_grad)
