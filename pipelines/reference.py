"""reference: score every pair once with the frozen reference (Ray Data actor pool), resumably, shard by shard.

A shard's batches are a function of the shard alone, so the store does not depend on the number of actors or on kills.
Each shard's files are published before its marker; a restart scores the shards without one.
"""

import math
import os
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipelines.actor_pool import run_tasks
from pipelines.config import Recipe
from pipelines.errors import UserError
from pipelines.mask_config import ActivationMaskConfig
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
    write_pair_feature,
)
from pipelines.sampler import token_budget_batches
from pipelines.scorer_models import PromptEmbedder, embedder_fingerprint, embedding_size, load_scorers, scorer_fingerprints
from pipelines.stage_record import MANIFEST, StageRecord
from pipelines.store import RunStore
from sparsepo import ReferenceModel
from sparsepo.activations import select_hooks
from sparsepo.layouts import TokenizedPair, padded_layout
from sparsepo.records import FEATURES
from sparsepo.scorers import scorer_log_ratios

MARKERS = "shards"


def reference_store(recipe: Recipe) -> RunStore:
    return RunStore(recipe.paths.reference or f"{recipe.run_dir}/reference")


def reference_model_dir(recipe: Recipe) -> str:
    """The starting policy unless another reference is named."""
    return str(resolve_model(recipe.model.reference or recipe.model.name_or_path))


def load_reference(recipe: Recipe, device: torch.device) -> ReferenceModel:
    """The frozen reference model of a recipe on a device, with the recipe's hooks."""
    mask = recipe.mask
    hooks, mapping = (mask.hooks, mask.mapping) if isinstance(mask, ActivationMaskConfig) else ("all", "zn_rescale")
    dtype = reference_dtype(recipe.reference.dtype, device)
    return ReferenceModel(load_causal_lm(reference_model_dir(recipe), dtype, device), hooks, mapping)


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
    origins = _origins(recipe, wanted)
    _check_origins(record, known["features"], origins)
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
    features = {**known["features"], **{name: origins[name] for name in missing}}
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


def has_features(recipe: Recipe) -> bool:
    """Whether the finished store holds what the recipe needs; UserError if it holds a feature made in another way."""
    record = reference_record(recipe)
    wanted = recipe.stored_features()
    known: dict[str, str] = record.manifest()["counts"]["features"]
    _check_origins(record, known, _origins(recipe, wanted))
    return wanted <= set(known)


def feature_origins(recipe: Recipe) -> dict[str, str]:
    """What the recipe's scorers' and embedder's features are made of, by feature: an input of training like the reference."""
    made_elsewhere = frozenset(name for name in recipe.required_features() if FEATURES[name].origin in ("scorers", "embedder"))
    return _origins(recipe, made_elsewhere)


def stored_origins(recipe: Recipe) -> dict[str, str]:
    """What distinguishes the features this recipe stores from others of the same name; recipes that agree can share a store."""
    return {name: how for name, how in _origins(recipe, recipe.stored_features()).items() if how}


def _origins(recipe: Recipe, features: frozenset[str]) -> dict[str, str]:
    """Feature -> how it is made, beyond what the stage's own settings and inputs say."""
    makers = {"activation_mask": _mask_settings, "scorer_log_ratios": scorer_fingerprints, "prompt_embedding": embedder_fingerprint}
    return {name: makers[name](recipe) if name in makers else "" for name in sorted(features)}


def _check_origins(record: StageRecord, known: dict[str, str], wanted: dict[str, str]) -> None:
    for name, how in wanted.items():
        if known.get(name, how) != how:
            raise UserError(
                f"{record.store.root} holds {name} made with {known[name]!r}, now {how!r} is asked for: choose another run_dir or "
                "paths.reference"
            )


def _mask_settings(recipe: Recipe) -> str:
    if not isinstance(recipe.mask, ActivationMaskConfig):
        raise UserError("reference.features names activation_mask: say which with mask.kind=activation")
    hooks = recipe.mask.hooks if isinstance(recipe.mask.hooks, str) else "+".join(recipe.mask.hooks)
    return f"{recipe.mask.mapping}:{hooks}"


def check_hooks(recipe: Recipe) -> None:
    """UserError if the activation mask's hooks do not exist in the reference model's family."""
    if isinstance(recipe.mask, ActivationMaskConfig):
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
    per_token = [name for name in features if FEATURES[name].per == "token"]
    shapes = _trailing_shapes(directory, per_token)
    return sum(math.prod(shapes[name]) * dtype_bytes if name in WIDE else 4 for name in per_token)


def bytes_per_pair(recipe: Recipe, features: frozenset[str] | list[str]) -> int:
    """Stored bytes per pair, the sum over the features that are one vector per pair."""
    return 4 * embedding_size(recipe, reference_model_dir(recipe)) if "prompt_embedding" in features else 0


def _check_disk(recipe: Recipe, features: list[str], store: RunStore) -> None:
    if not store.is_local or not features:
        return
    counts = pairs_store(recipe).read_json(MANIFEST)["counts"]
    dtype_bytes = 2 if reference_dtype(recipe.reference.dtype, _scoring_device()) == torch.bfloat16 else 4
    needed = sum(counts["scored_tokens"].values()) * bytes_per_token(reference_model_dir(recipe), features, dtype_bytes)
    needed += sum(counts["pairs"].values()) * bytes_per_pair(recipe, features)
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
    """Actor: scores whole shards and publishes their feature files. Models are loaded when a feature first needs them."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        self._recipe = Recipe.model_validate(recipe)
        self._device = compute_device()
        self._store = reference_store(self._recipe)
        self._pairs = open_pairs(self._recipe)

    @cached_property
    def _reference(self) -> ReferenceModel:
        return load_reference(self._recipe, self._device)

    @cached_property
    def _scorers(self) -> tuple[Any, Any]:
        return load_scorers(self._recipe, self._device)

    @cached_property
    def _embedder(self) -> PromptEmbedder:
        own = self._recipe.model.embedder is not None
        return PromptEmbedder(self._recipe, None if own else self._reference.causal_lm, self._device)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"tokens": self._score_shard(task["split"], task["shard"], task["features"])}
        except UserError as failure:
            return {"error": str(failure)}

    def _score_shard(self, split: str, number: int, features: list[str]) -> int:
        table = self._pairs.shard(split, number)
        pairs = [pair_at(table, i) for i in range(table.num_rows)]
        per_token = [name for name in features if FEATURES[name].per == "token"]
        found: dict[str, list[tuple[Tensor, Tensor | None] | None]] = {name: [None] * len(pairs) for name in per_token}
        embeddings: list[Tensor | None] = [None] * len(pairs)
        tokens = 0
        for rows in token_budget_batches(range(len(pairs)), [p.width() for p in pairs], 2, self._recipe.reference.batch_tokens):
            batch = [pairs[i] for i in rows]
            lengths = [len(r) for pair in batch for r in pair.responses()]
            tokens += sum(lengths)
            for name, values in self._scored(batch, per_token).items():
                parts = iter(values.cpu().split(lengths))
                for i in rows:
                    found[name][i] = (next(parts), next(parts) if pairs[i].rejected is not None else None)
            if "prompt_embedding" in features:
                vectors = self._embedder.embed([table["prompt"][i].as_py() for i in rows], batch)
                for i, vector in zip(rows, vectors, strict=True):
                    embeddings[i] = vector
        if "reference_hidden" in features:
            write_head(self._store, self._reference.head)
        for name in per_token:
            write_feature(self._store, name, split, number, [sides for sides in found[name] if sides is not None])
        if "prompt_embedding" in features:
            write_pair_feature(self._store, "prompt_embedding", split, number, torch.stack([v for v in embeddings if v is not None]))
        checksums = {name: self._store.checksum(feature_path(name, split, number)) for name in features}
        self._store.write_json(_marker(features, split, number), {"tokens": tokens, "checksums": checksums})
        return tokens

    def _scored(self, pairs: list[TokenizedPair], features: list[str]) -> dict[str, Tensor]:
        """Feature -> [S, ...] of the batch's scored tokens."""
        if not features:
            return {}
        inputs = padded_layout(pairs).to(self._device)
        found: dict[str, Tensor] = {}
        of_reference = [name for name in features if FEATURES[name].origin == "reference"]
        if of_reference:
            scored = self._reference.features(inputs, of_reference)
            found = {name: getattr(scored, name) for name in of_reference}
        if "scorer_log_ratios" in features:
            found["scorer_log_ratios"] = scorer_log_ratios(*self._scorers, inputs)
        return found
