"""reference: score every pair once with the frozen reference (Ray Data actor pool), resumably, shard by shard.

A shard's batches are a function of the shard alone, so the store does not depend on the number of actors or on kills.
Each shard's files are published before its marker; a restart scores the shards without one.
"""

import math
import os
from typing import Any

import torch
from torch import Tensor

from pipelines.actor_pool import run_tasks
from pipelines.config import ActivationMaskSection, Recipe
from pipelines.errors import UserError
from pipelines.models import (
    compute_device,
    load_causal_lm,
    reference_dtype,
    resolve_model,
    weights_fingerprint,
)
from pipelines.pair_table import SPLITS, PairTable, pair_at, shard_name
from pipelines.prepare import open_pairs, pairs_store, prepare_record
from pipelines.reference_store import (
    WIDE,
    ReferenceStore,
    feature_path,
    write_feature,
    write_head,
)
from pipelines.sampler import token_budget_batches
from pipelines.stage_record import MANIFEST, StageRecord
from pipelines.store import RunStore
from sparsepo import ReferenceModel
from sparsepo.activations import select_hooks
from sparsepo.layouts import padded_layout

MARKERS = "shards"


def reference_store(recipe: Recipe) -> RunStore:
    return RunStore(recipe.paths.reference or f"{recipe.run_dir}/reference")


def reference_model_dir(recipe: Recipe) -> str:
    """The starting policy unless another reference is named."""
    return str(resolve_model(recipe.model.reference or recipe.model.name_or_path))


def reference_record(recipe: Recipe) -> StageRecord:
    """The stage record of a recipe's reference. UserError if the model does not exist or has no such hooks."""
    directory = resolve_model(recipe.model.reference or recipe.model.name_or_path)
    inputs = {"pairs": prepare_record(recipe).fingerprint(), "weights": weights_fingerprint(directory)}
    record = StageRecord.of(recipe, "reference", reference_store(recipe), inputs)
    # The dtype that `auto` means depends on the device: record what it resolved to. Hooks matter only to their feature,
    # so that a run without an activation mask can share the store of one that has it.
    dtype = str(reference_dtype(recipe.reference.dtype, _scoring_device())).removeprefix("torch.")
    settings = {**{k: v for k, v in record.settings.items() if not k.startswith("mask.")}, "reference.dtype": dtype}
    return StageRecord(record.stage, record.store, settings, inputs)


def run_reference(recipe: Recipe, quiet: bool = False) -> dict[str, Any]:
    """Score the recipe's pairs for the features it needs and return the manifest. Needs a running Ray.

    With the reference online nothing is scored and the manifest says so. Features that an existing store lacks are added
    without scoring the others again.
    """
    record = reference_record(recipe)
    wanted = recipe.stored_features()
    known: dict[str, Any] = record.manifest()["counts"] if record.is_complete() else {"features": {}, "trailing_shape": {}, "tokens": 0}
    mask = _mask_settings(recipe)
    for feature, how in known["features"].items():
        if feature == "activation_mask" and feature in wanted and how != mask:
            raise UserError(
                f"{record.store.root} holds activation masks made with {how}, now {mask} is asked for: choose another run_dir or paths.reference"
            )
    missing = sorted(wanted - set(known["features"]))
    if known["features"] and not missing:
        return record.manifest()
    record.begin()
    _check_disk(recipe, missing, record.store)
    pairs = open_pairs(recipe)
    tasks = [
        {"split": split, "shard": number, "features": missing}
        for split in SPLITS
        for number in range(pairs.num_shards(split))
        if missing and not record.store.exists(_marker(missing, split, number))
    ]
    tokens = _score(tasks, recipe, quiet)
    shapes = {**known["trailing_shape"], **_trailing_shapes(reference_model_dir(recipe), missing)}
    features = {**known["features"], **{name: mask if name == "activation_mask" else "" for name in missing}}
    outputs = {}
    for split in SPLITS:
        for number in range(pairs.num_shards(split)):
            for name in missing:
                marker = record.store.read_json(_marker(missing, split, number))
                outputs[feature_path(name, split, number)] = marker["checksums"][name]
    counts = {
        "mode": "stored" if features else "online",
        "features": features,
        "trailing_shape": shapes,
        "dtype": record.settings["reference.dtype"],
        "tokens": known["tokens"] or tokens,
        "shards_scored": len(tasks),
    }
    earlier = record.manifest()["outputs"] if record.store.exists(MANIFEST) else {}
    return record.finish(counts, {**earlier, **outputs})


def open_reference(recipe: Recipe, pairs: PairTable) -> ReferenceStore:
    """The finished store of a recipe; UserError if it was made by another model, from other pairs or is not there."""
    record = reference_record(recipe)
    if not record.is_complete():
        raise UserError(f"{record.store.root} has no finished reference stage: run `sparsepo reference` first")
    return ReferenceStore(record.store, record.manifest(), pairs)


def _mask_settings(recipe: Recipe) -> str:
    if not isinstance(recipe.mask, ActivationMaskSection):
        return ""
    hooks = recipe.mask.hooks if isinstance(recipe.mask.hooks, str) else "+".join(recipe.mask.hooks)
    return f"{recipe.mask.mapping}:{hooks}"


def check_hooks(recipe: Recipe) -> None:
    """UserError if the activation mask's hooks do not exist in the reference model's family."""
    if isinstance(recipe.mask, ActivationMaskSection):
        from transformers import AutoConfig

        try:
            select_hooks(AutoConfig.from_pretrained(reference_model_dir(recipe), local_files_only=True), recipe.mask.hooks)
        except ValueError as error:
            raise UserError(f"mask.hooks: {error}") from error


def _marker(features: list[str], split: str, number: int) -> str:
    return f"{MARKERS}/{'+'.join(features)}/{shard_name(split, number)}.json"


def _trailing_shapes(directory: str, features: list[str]) -> dict[str, list[int]]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    shapes = {"reference_hidden": [config.hidden_size], "reference_layers": [config.num_hidden_layers, config.hidden_size]}
    return {name: shapes[name] for name in features if name in WIDE}


def bytes_per_token(directory: str, features: frozenset[str] | list[str], dtype_bytes: int) -> int:
    """Stored bytes per scored token, the sum over features."""
    shapes = _trailing_shapes(directory, list(features))
    return sum(math.prod(shapes[name]) * dtype_bytes if name in WIDE else 4 for name in features)


def _check_disk(recipe: Recipe, features: list[str], store: RunStore) -> None:
    if not store.is_local or not features:
        return
    scored = sum(pairs_store(recipe).read_json(MANIFEST)["counts"]["scored_tokens"].values())
    dtype_bytes = 2 if reference_dtype(recipe.reference.dtype, _scoring_device()) == torch.bfloat16 else 4
    needed = scored * bytes_per_token(reference_model_dir(recipe), features, dtype_bytes)
    disk = os.statvfs(store.local_path())
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise UserError(f"the reference store needs {needed / 2**30:.2f} GiB and {store.root} has {free / 2**30:.2f} GiB free")


def _scoring_device() -> torch.device:
    import ray

    gpus = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else float(torch.cuda.is_available())
    return torch.device("cuda" if gpus else "cpu")


def _score(tasks: list[dict[str, Any]], recipe: Recipe, quiet: bool) -> int:
    """Run the scoring actors over the shards; returns the number of scored tokens."""
    check_hooks(recipe)
    tokens = 0
    for result in run_tasks(tasks, ShardScorer, recipe, recipe.reference.num_actors, "reference", quiet):
        if "error" in result:
            raise UserError(result["error"])
        tokens += result["tokens"]
    return tokens


class ShardScorer:
    """Actor: holds the reference model, scores whole shards and publishes their feature files."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        self._recipe = Recipe.model_validate(recipe)
        self._device = compute_device()
        dtype = reference_dtype(self._recipe.reference.dtype, self._device)
        mask = self._recipe.mask
        hooks, mapping = (mask.hooks, mask.mapping) if isinstance(mask, ActivationMaskSection) else ("all", "zn_rescale")
        self._model = ReferenceModel(load_causal_lm(reference_model_dir(self._recipe), dtype, self._device), hooks, mapping)
        self._store = reference_store(self._recipe)
        self._pairs = open_pairs(self._recipe)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"tokens": self._score_shard(task["split"], task["shard"], task["features"])}
        except UserError as failure:
            return {"error": str(failure)}

    def _score_shard(self, split: str, number: int, features: list[str]) -> int:
        table = self._pairs.shard(split, number)
        pairs = [pair_at(table, i) for i in range(table.num_rows)]
        widths = [p.width() for p in pairs]
        found: dict[str, list[tuple[Tensor, Tensor | None] | None]] = {name: [None] * len(pairs) for name in features}
        tokens = 0
        for rows in token_budget_batches(range(len(pairs)), widths, 2, self._recipe.reference.batch_tokens):
            inputs = padded_layout([pairs[i] for i in rows]).to(self._device)
            scored = self._model.features(inputs, features)
            lengths = [len(r) for i in rows for r in pairs[i].responses()]
            tokens += sum(lengths)
            for name in features:
                parts = iter(getattr(scored, name).cpu().split(lengths))
                for i in rows:
                    found[name][i] = (next(parts), next(parts) if pairs[i].rejected is not None else None)
        if "reference_hidden" in features:
            write_head(self._store, self._model.head)
        checksums = {}
        for name in features:
            write_feature(self._store, name, split, number, [sides for sides in found[name] if sides is not None])
            checksums[name] = self._store.checksum(feature_path(name, split, number))
        self._store.write_json(_marker(features, split, number), {"tokens": tokens, "checksums": checksums})
        return tokens
