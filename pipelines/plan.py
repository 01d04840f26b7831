"""plan: what a recipe would read, store and compute; runs nothing and writes nothing."""

import json
import struct
from pathlib import Path
from typing import Any

import torch

from pipelines import sources
from pipelines.config import Recipe
from pipelines.models import (
    load_tokenizer,
    reference_dtype,
    resolve_model,
)
from pipelines.pair_table import SPLITS
from pipelines.prepare import pairs_store
from pipelines.reference import bytes_per_pair, bytes_per_token
from pipelines.sampler import Sampler
from pipelines.stage_record import MANIFEST
from pipelines.text_forms import PairEncoder, RowRejected, detect_form, pairs_of_row

_SAMPLED_ROWS = 300


def run_plan(recipe: Recipe) -> dict[str, Any]:
    """Rows, tokens, storage, memory and step counts, exact after prepare and estimated from sampled rows before.

    Memory is per training process: weights, gradients, Adam state and a frozen reference; activations come on top.
    """
    directory = resolve_model(recipe.model.name_or_path)
    data = _data(recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width = 2 if reference_dtype(recipe.reference.dtype, device) == torch.bfloat16 else 4
    features = sorted(recipe.stored_features())
    reference_dir = str(resolve_model(recipe.model.reference or recipe.model.name_or_path))
    per_token, per_pair = bytes_per_token(reference_dir, features, width), bytes_per_pair(recipe, features)
    steps = Sampler(max(1, data["train_pairs"]), recipe.train.global_batch_size, 0).num_steps(recipe.train.epochs, recipe.train.max_steps)
    parameters = count_parameters(directory)
    precision = recipe.train.precision
    state_bytes = parameters * (8 if precision == "bfloat16" else 16)
    online = bool(recipe.online_features())
    epochs = steps / max(1, Sampler(max(1, data["train_pairs"]), recipe.train.global_batch_size, 0).steps_per_epoch)
    train_tokens = int(data["train_tokens"] * epochs)
    return {
        "data": data,
        "reference": {
            "mode": recipe.reference_mode() if recipe.required_features() else "not needed",
            "features": features,
            "bytes_per_scored_token": per_token,
            "bytes_per_pair": per_pair,
            "storage_gib": (data["scored_tokens"] * per_token + (data["train_pairs"] + data["held_out_pairs"]) * per_pair) / 2**30,
            "forward_flops": 0 if not features else 2 * parameters * data["tokens"],
        },
        "train": {
            "steps": steps,
            "pairs_per_step": recipe.train.global_batch_size,
            "parameters": parameters,
            "mask_parameters": _mask_parameters(recipe, reference_dir),
            "state_gib": (state_bytes + (parameters * width if online else 0)) / 2**30,
            "flops": (6 + (2 if online else 0)) * parameters * train_tokens,
        },
        "evaluate": {"benchmarks": list(recipe.evaluate.benchmarks), "prompts": recipe.evaluate.num_prompts},
    }


def count_parameters(directory: Path) -> int:
    """Parameters of a model directory, read from the safetensors headers."""
    total = 0
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for extent in entry["shape"]:
                    size *= extent
                total += size
    return total


def _mask_parameters(recipe: Recipe, reference_dir: str) -> int:
    from transformers import AutoConfig

    with torch.device("meta"):
        masks = recipe.mask.build(AutoConfig.from_pretrained(reference_dir, local_files_only=True), recipe.train.seed)
    return sum(p.numel() for p in masks.parameters() if p.requires_grad)


def _data(recipe: Recipe) -> dict[str, Any]:
    store = pairs_store(recipe)
    if store.exists(MANIFEST):
        counts = store.read_json(MANIFEST)["counts"]
        return {
            "exact": True,
            "train_pairs": counts["pairs"]["train"],
            "held_out_pairs": counts["pairs"]["validation"] + counts["pairs"]["test"],
            "train_tokens": counts["model_tokens"]["train"],
            "tokens": sum(counts["model_tokens"].values()),
            "scored_tokens": sum(counts["scored_tokens"].values()),
        }
    tokenizer = load_tokenizer(str(resolve_model(recipe.model.tokenizer or recipe.model.name_or_path, tokenizer_only=True)))
    encoder = PairEncoder(tokenizer, recipe.data)
    data = recipe.data
    held = {"validation": data.validation_fraction, "test": data.test_fraction}
    shares = {"sources": {"train": 1 - sum(held.values()), **held}, "validation": {"validation": 1.0}, "test": {"test": 1.0}}
    totals = {split: [0.0, 0.0, 0.0] for split in SPLITS}  # pairs, model tokens, scored tokens
    for group, parts in shares.items():
        for source in getattr(data, group):
            estimate = _estimate(recipe, source, encoder, tokenizer)
            for split, share in parts.items():
                copies = share * (source.weight if split == "train" else 1.0)
                totals[split] = [total + copies * value for total, value in zip(totals[split], estimate, strict=True)]
    for split, limit in (("train", data.max_train_pairs), ("validation", data.max_validation_pairs), ("test", data.max_test_pairs)):
        kept = 1.0 if limit is None else min(1.0, limit / max(1.0, totals[split][0]))
        totals[split] = [value * kept for value in totals[split]]
    return {
        "exact": False,
        "train_pairs": round(totals["train"][0]),
        "held_out_pairs": round(totals["validation"][0] + totals["test"][0]),
        "train_tokens": round(totals["train"][1]),
        "tokens": round(sum(t[1] for t in totals.values())),
        "scored_tokens": round(sum(t[2] for t in totals.values())),
    }


def _estimate(recipe: Recipe, source: Any, encoder: PairEncoder, tokenizer: Any) -> tuple[float, float, float]:
    """Pairs, model tokens and scored tokens of a source, from rows taken evenly over its chunks."""
    chunks = sources.chunks_of(source, recipe.data.rows_per_task)
    columns, first = sources.column_names(chunks[0])
    form = detect_form(columns, source.columns, first) if source.form == "auto" else source.form
    rows = seen = pairs = tokens = scored = 0
    per_chunk = max(1, _SAMPLED_ROWS // len(chunks))
    for chunk in chunks:
        for number, (_, row) in enumerate(sources.read_chunk(chunk)):
            rows += 1
            if number >= per_chunk or row is None:
                continue
            seen += 1
            try:
                for pair in pairs_of_row(row, form, recipe.data, source.columns, tokenizer):
                    encoded = encoder.encode(pair)
                    responses = len(encoded.chosen) + len(encoded.rejected or ())
                    pairs, scored = pairs + 1, scored + responses
                    tokens += responses + len(encoded.prompt) * (1 if encoded.rejected is None else 2)
            except RowRejected:
                continue
    scale = rows / max(1, seen)
    return pairs * scale, tokens * scale, scored * scale
