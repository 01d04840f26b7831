"""plan: what a recipe would read, store and compute; runs nothing and writes nothing."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UserError
from pipelines.evaluate import check_evaluation, check_kept
from pipelines.models import (
    Placement,
    activation_bytes_per_token,
    compute_device,
    device_kind,
    dtype_name,
    hf_config,
    load_tokenizer,
    micro_batch_tokens,
    reference_dtype,
    resolve_model,
    sustained_tflops,
)
from pipelines.pairs import (
    SPLITS,
    PairEncoder,
    RowRejected,
    check_lengths,
    chunks_of,
    column_names,
    detect_form,
    pairs_of_row,
    pairs_store,
    read_chunk,
)
from pipelines.recipe import MANIFEST, Recipe
from pipelines.reference import (
    batch_tokens,
    check_hooks,
    count_parameters,
    formats_of,
    head_bytes,
    reference_model_dir,
    settle_mode,
    stored_bytes,
)
from pipelines.sweep import SharedStores, Sweep, trial_recipe
from pipelines.train import build_masks, count_adapter_parameters, starting_model
from sparsepo.backbone import state_size
from sparsepo.batching.sampling import Sampler
from sparsepo.features import FEATURES
from sparsepo.kernels.token_scoring import CHUNK_ELEMENTS, FUSED_CHUNK_ELEMENTS

_SAMPLED_ROWS = 300
_ESTIMATED = ("pairs", "model_tokens", "shared_tokens", "scored_tokens")


def run_plan(recipe: Recipe, tflops: float | None = None, evaluates: bool = True) -> dict[str, Any]:
    """Rows, tokens, storage, memory and step counts.

    They are exact after prepare and estimated from sampled rows before.

    Memory is per process. state_gib of training are weights, gradients and Adam's moments.
    memory_gib is that and a frozen reference, activations of a micro-batch and the head's chunks.
    The reference's hours are those of one device; parts that run side by side divide them.
    Training's are those of all its workers.

    Args:
        tflops: what one device sustains; by default an assumption by its name (hardware.py).
        evaluates: whether the trained model will be evaluated; one without preferences is not.
    Raises: UserError for what `run` would refuse, whenever it found out.
    """
    check_hooks(recipe)
    evaluates = evaluates and recipe.objective.declared.uses_rejected
    if evaluates:
        check_evaluation(recipe)
    data = _data(recipe)
    check_kept(recipe, data["pairs"], evaluates=evaluates, is_expected=not data["exact"])
    device = compute_device()
    recipe = settle_mode(recipe, device.type)
    rate = tflops or sustained_tflops(device.type)
    sampler = Sampler(max(1, data["pairs"]["train"]), recipe.train.global_batch_size, 0)
    steps = sampler.num_steps(recipe.train.epochs, recipe.train.max_steps)
    epochs = steps / sampler.steps_per_epoch
    return {
        "data": data,
        "reference": _reference(recipe, data, device, epochs, rate),
        "train": {
            "steps": steps,
            "pairs_per_step": recipe.train.global_batch_size,
            **_train(recipe, data, device, epochs, rate),
        },
        "evaluate": {
            "benchmarks": list(recipe.evaluate.benchmarks),
            "prompts": recipe.evaluate.num_prompts,
        },
    }


def plan_sweep(sweep: Sweep, tflops: float | None = None) -> dict[str, Any]:
    """What a sweep would run: pairs with their reference, made once, and the trainings.

    It lists every such combination that its points need.

    The hours are of one worker group after the other; as many run side by side as the cluster
    holds.
    """
    rate = tflops or sustained_tflops(device_kind())
    points, seeds = sweep.sample_of_points(), max(1, len(sweep.seeds))
    stores = SharedStores.of(sweep)
    shared = []
    for recipe, served in stores.makers():
        plan = run_plan(recipe, rate, sweep.evaluates())
        reference = {
            key: plan["reference"][key]
            for key in ("features", "storage_bytes", "storage_gib", "memory_gib", "hours_stored")
        }
        shared.append({"points": served, "pairs": plan["data"]["pairs"], **reference})
    trials = [
        run_plan(stores.shared(trial_recipe(sweep, point, sweep.run_dir)), rate, sweep.evaluates())[
            "train"
        ]
        for point in points
    ]
    mean_hours = sum(trial["hours"] for trial in trials) / len(trials)
    return {
        "trials": sweep.num_trials(),
        "seeds_per_trial": seeds,
        "runs": sweep.num_trials() * seeds,
        "searched": {
            key: sweep.space[key].model_dump(exclude_none=True, exclude_defaults=True)
            for key in sweep.space
        },
        "stores": shared,
        "train": {
            "steps": _range([trial["steps"] for trial in trials]),
            "memory_gib": _range([trial["memory_gib"] for trial in trials]),
            "hours_per_run": mean_hours,
            "hours": mean_hours * sweep.num_trials() * seeds,
            "assumed_tflops": rate,
        },
        "evaluates": sweep.evaluates(),
    }


def _range(values: list[Any]) -> Any:
    return values[0] if min(values) == max(values) else [min(values), max(values)]


def _reference(
    recipe: Recipe, data: dict[str, Any], device: torch.device, epochs: float, tflops: float
) -> dict[str, Any]:
    """Storage, memory and hours of the reference, stored and online.

    One forward computes 2 FLOP per parameter and token.
    """
    directory = reference_model_dir(recipe)
    dtype = reference_dtype(recipe.reference.dtype, device)
    name = dtype_name(recipe.reference.dtype, device.type)
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
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
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


def _train(
    recipe: Recipe, data: dict[str, Any], device: torch.device, epochs: float, tflops: float
) -> dict[str, Any]:
    """What one worker holds, and how long all of them take.

    FLOP per parameter and token: 2 forward, 2 to the states, 2 to the weights.
    """
    train, directory = recipe.train, starting_model(recipe)
    config = hf_config(directory).get_text_config()
    parameters, adapters, masks = (
        count_parameters(directory),
        count_adapter_parameters(recipe),
        _mask_parameters(recipe),
    )
    placement = Placement.choose(train.precision, device, 0, train.num_workers, train.strategy)
    # Weights, their gradients, and Adam's two moments.
    per_trained = 4 * placement.weights.itemsize
    sharers = train.num_workers if train.strategy == "fsdp" else 1
    base = (
        parameters * (per_trained if train.lora is None else placement.compute.itemsize) / sharers
    )
    online = bool(recipe.online_features())
    reference_bytes = reference_dtype(recipe.reference.dtype, device).itemsize
    frozen = parameters * reference_bytes / sharers if online else 0
    head = (
        config.vocab_size * state_size(config) * reference_bytes
        if "reference_hidden" in recipe.required_features()
        else 0
    )
    budget = micro_batch_tokens(recipe, device)
    activations = budget * activation_bytes_per_token(
        config, placement.compute.itemsize, train.gradient_checkpointing
    )
    chunk = 2 * 2 * FUSED_CHUNK_ELEMENTS if device.type == "cuda" else 4 * 4 * CHUNK_ELEMENTS
    state = base + adapters * per_trained + masks * 16
    tokens = data["model_tokens" if train.layout == "padded" else "shared_tokens"]["train"] * epochs
    flops = (
        (
            (6 if train.lora is None else 4)
            + (2 if train.gradient_checkpointing else 0)
            + (2 if online else 0)
        )
        * parameters
        * tokens
    )
    return {
        "parameters": parameters,
        "adapter_parameters": adapters,
        "mask_parameters": masks,
        "workers": train.num_workers,
        "micro_batch_tokens": budget,
        "state_gib": state / 2**30,
        "memory_gib": (state + frozen + head + activations + chunk) / 2**30,
        "flops": int(flops),
        "hours": flops / (tflops * 1e12 * train.num_workers) / 3600,
        "assumed_tflops": tflops,
    }


def _mask_parameters(recipe: Recipe) -> int:
    with torch.device("meta"):
        masks = build_masks(recipe)
    return sum(p.numel() for p in masks.parameters() if p.requires_grad)


def _data(recipe: Recipe) -> dict[str, Any]:
    store = pairs_store(recipe)
    if store.exists(MANIFEST):
        counts = store.read_json(MANIFEST)["counts"]
        return {
            "exact": True,
            **{
                key: counts[key]
                for key in (
                    "pairs",
                    "shards",
                    "model_tokens",
                    "shared_tokens",
                    "scored_tokens",
                    "rejected",
                )
            },
        }
    directory = resolve_model(
        recipe.model.tokenizer or recipe.model.name_or_path, tokenizer_only=True
    )
    check_lengths(recipe, directory)
    tokenizer = load_tokenizer(str(directory))
    encoder = PairEncoder(tokenizer, recipe.data)
    data = recipe.data
    held = {"validation": data.validation_fraction, "test": data.test_fraction}
    shares = {
        "sources": {"train": 1 - sum(held.values()), **held},
        "validation": {"validation": 1.0},
        "test": {"test": 1.0},
    }
    totals = {split: [0.0] * len(_ESTIMATED) for split in SPLITS}
    reasons: Counter[str] = Counter()
    for group, parts in shares.items():
        for source in getattr(data, group):
            estimate, rejected = _estimate(recipe, source, encoder, tokenizer)
            reasons.update(rejected)
            for split, share in parts.items():
                copies = share * (source.weight if split == "train" else 1.0)
                totals[split] = [
                    total + copies * value
                    for total, value in zip(totals[split], estimate, strict=True)
                ]
    for split, limit in (
        ("train", data.max_train_pairs),
        ("validation", data.max_validation_pairs),
        ("test", data.max_test_pairs),
    ):
        kept = 1.0 if limit is None else min(1.0, limit / max(1.0, totals[split][0]))
        totals[split] = [value * kept for value in totals[split]]
    found: dict[str, Any] = {
        name: {split: round(totals[split][i]) for split in SPLITS}
        for i, name in enumerate(_ESTIMATED)
    }
    sizes = {
        split: [data.shard_pairs] * math.ceil(found["pairs"][split] / data.shard_pairs)
        for split in SPLITS
    }
    if not any(totals["train"]):
        shown = (
            ", ".join(f"{reason}: {n}" for reason, n in reasons.most_common(5))
            or "the sources are empty"
        )
        raise UserError(
            "no usable training pair among the sampled rows of "
            f"{', '.join(s.path for s in data.sources)} ({shown})"
        )
    return {"exact": False, **found, "shards": sizes, "rejected": dict(sorted(reasons.items()))}


def _estimate(
    recipe: Recipe, source: Any, encoder: PairEncoder, tokenizer: Any
) -> tuple[tuple[float, ...], dict[str, int]]:
    """The quantities of _ESTIMATED of a source, and its rejected rows by reason.

    Both come from rows taken evenly over its chunks.
    """
    chunks = chunks_of(source, recipe.data.rows_per_task)
    if not chunks:
        raise UserError(f"data source {source.path!r} holds no row")
    columns, first = column_names(chunks[0])
    form = detect_form(columns, source.columns, first) if source.form == "auto" else source.form
    rows = seen = pairs = tokens = shared = scored = 0
    reasons: Counter[str] = Counter()
    per_chunk = max(1, _SAMPLED_ROWS // len(chunks))
    for chunk in chunks:
        for number, (_, row) in enumerate(read_chunk(chunk)):
            rows += 1
            if number >= per_chunk or row is None:
                continue
            seen += 1
            try:
                for pair in pairs_of_row(row, form, recipe.data, source.columns, tokenizer):
                    encoded = encoder.encode(pair)
                    responses = len(encoded.chosen) + len(encoded.rejected or ())
                    pairs, scored = pairs + 1, scored + responses
                    tokens += responses + len(encoded.prompt) * (
                        1 if encoded.rejected is None else 2
                    )
                    shared += responses + len(encoded.prompt)
            except RowRejected as reason:
                reasons[str(reason)] += 1
    scale = rows / max(1, seen)
    estimate = (pairs * scale, tokens * scale, shared * scale, scored * scale)
    return estimate, {reason: round(n * scale) for reason, n in reasons.items()}
