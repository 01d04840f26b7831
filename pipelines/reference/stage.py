"""reference: score every pair once with the frozen reference, resumably, shard by shard.

A Ray Data actor pool does the scoring. A shard's files are published before its markers (one per
feature); a restart scores what has no marker. The store does not depend on the number of actors or
on kills.
"""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.cluster import Pool, local_paths, run_tasks
from pipelines.errors import StageFailed, UserError
from pipelines.models import dtype_name, weights_fingerprint
from pipelines.pairs import SPLITS, PairTable, open_pairs, pairs_store, prepare_record
from pipelines.recipe import MANIFEST, Recipe, StageRecord
from pipelines.reference.actor import (
    Scoring,
    ShardScorer,
    ShardTask,
    marker_path,
    reference_store,
)
from pipelines.reference.cost import scoring_device
from pipelines.reference.facts import (
    FrozenReference,
    OtherModels,
    ReferenceFacts,
    reference_facts,
)
from pipelines.reference.family_checks import check_hooks
from pipelines.reference.formats import formats_of, head_bytes, stored_bytes
from pipelines.reference.origins import origins_of, reference_model_dir
from pipelines.reference.store import HEAD_FILE, HEAD_SETTINGS, ReferenceStore, feature_path
from pipelines.storage import RunStore

FAILED_ROWS = "failed_rows.jsonl"
CALLS_AT_ONCE = 3  # shards in work in one actor: one is scored, others are read or written
_READERS = 32  # markers that are read at a time


def reference_record(recipe: Recipe) -> StageRecord:
    """The stage record of a recipe's reference.

    UserError if the model does not exist or has no such hooks.
    """
    prepared = prepare_record(recipe)
    inputs = {"weights": weights_fingerprint(Path(reference_model_dir(recipe)))}
    # Each by name, so that a refusal can say what of the pairs differs: the template, a truncation,
    # a file.
    inputs |= {
        f"pairs.{key}": value for key, value in {**prepared.settings, **prepared.inputs}.items()
    }
    record = StageRecord.of(recipe, "reference", reference_store(recipe), inputs)
    # The dtype that `auto` means depends on the device: record what it resolved to. Hooks matter
    # only to their feature, so that a run without an activation mask can share the store of one
    # that has it.
    dtype = dtype_name(recipe.reference.dtype, scoring_device())
    settings = {
        **{k: v for k, v in record.settings.items() if not k.startswith("mask.")},
        "reference.dtype": dtype,
    }
    return StageRecord(record.stage, record.store, settings, inputs)


def run_reference(recipe: Recipe, quiet: bool = False) -> dict[str, Any]:
    """Score the recipe's pairs for the features it needs and return the manifest.

    Needs a running Ray.

    With the reference online nothing is scored and the manifest says so. Features that an existing
    store lacks are added without scoring the others again.

    Raises: UserError for a store of another recipe or a full disk; StageFailed if more rows fail
        than reference.max_failed_fraction allows.
    """
    record = reference_record(recipe)
    wanted = recipe.stored_features()
    known = _known(record)
    origins = origins_of(recipe, wanted)
    check_origins(record, known["features"], origins)
    missing = sorted(wanted - set(known["features"]))
    if known["features"] and not missing:
        return record.manifest()
    check_hooks(recipe)
    pairs = open_pairs(recipe)
    warnings = record.version_changes()
    record.begin()
    tasks = _tasks(record, pairs, missing)
    _sweep(record.store, missing)
    _check_disk(recipe, missing, tasks, pairs, record.store)
    _score(tasks, scoring_facts(recipe, record, missing), recipe, pairs, quiet)
    _sweep(record.store, missing)
    return _finish(
        record,
        recipe,
        pairs,
        known,
        {name: origins[name] for name in missing},
        len(tasks),
        warnings,
    )


def _known(record: StageRecord) -> dict[str, Any]:
    """What a finished store already holds."""
    if record.is_complete():
        counts: dict[str, Any] = record.manifest()["counts"]
        return counts
    return {"features": {}, "formats": {}, "failed": {}, "devices": [], "tokens": 0}


def _sweep(store: RunStore, features: list[str]) -> None:
    """Remove what killed actors left half written."""
    for folder in ("", *features, *(f"shards/{name}" for name in features)):
        store.sweep_temporary(folder)


def scoring_facts(recipe: Recipe, record: StageRecord, features: Iterable[str]) -> Scoring:
    """What actors have to know to score these features."""
    dtype = record.settings["reference.dtype"]
    return Scoring(
        pairs_store(recipe).root,
        record.store.root,
        record.fingerprint(),
        recipe.reference,
        replace(FrozenReference.of(recipe), dtype=dtype),
        OtherModels.of(recipe),
        formats_of(recipe, features, dtype),
    )


def _tasks(record: StageRecord, pairs: PairTable, missing: list[str]) -> list[ShardTask]:
    """The shards that are to be scored, with the features that they lack.

    They have no marker, or their file is not the one the marker saw.
    """
    scored = {name: scored_shards(record.store, name, pairs) for name in missing}
    found = (
        ShardTask(
            split,
            number,
            tuple(name for name in missing if (split, number) not in scored[name]),
        )
        for split in SPLITS
        for number in range(pairs.num_shards(split))
    )
    return [task for task in found if task.features]


def scored_shards(
    store: RunStore, feature: str, pairs: PairTable
) -> dict[tuple[str, int], dict[str, Any]]:
    """(split, shard) -> marker of every shard of a feature whose file is the one the marker saw.

    Two listings and the markers, many at a time: on an object store a request takes tens of
    milliseconds.
    """
    markers = set(store.names(f"shards/{feature}"))
    sizes = {f"{feature}/{path}": size for path, size, _ in store.at(feature).files()}
    found = [
        (split, number)
        for split in SPLITS
        for number in range(pairs.num_shards(split))
        if marker_path(feature, split, number).rpartition("/")[2] in markers
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(lambda shard: store.read_json(marker_path(feature, *shard)), found)
        return {
            shard: marker
            for shard, marker in zip(found, read, strict=True)
            if sizes.get(feature_path(feature, *shard)) == marker["bytes"]
        }


def _score(
    tasks: list[ShardTask], facts: Scoring, recipe: Recipe, pairs: PairTable, quiet: bool
) -> None:
    """Run the scoring actors over the shards."""
    settings = recipe.reference
    allowed = settings.max_failed_fraction * sum(pairs.num_rows(split) for split in SPLITS)
    failed: dict[str, str] = {}
    pool = Pool(
        "reference",
        recipe.ray,
        local_paths(recipe),
        settings.num_actors,
        settings.gpus_per_model,
        CALLS_AT_ONCE,
    )
    for task, result in zip(tasks, run_tasks(tasks, ShardScorer, facts, pool, quiet), strict=True):
        failed |= {
            f"{task.split} shard {task.number} row {row}": reason
            for row, reason in sorted(result.failed.items())
        }
        if len(failed) > allowed:
            row, reason = next(iter(failed.items()))
            raise StageFailed(
                f"{len(failed)} rows could not be scored, reference.max_failed_fraction = "
                f"{settings.max_failed_fraction} allows {int(allowed)}; the first: {row}: {reason}"
            )


def _finish(
    record: StageRecord,
    recipe: Recipe,
    pairs: PairTable,
    known: dict[str, Any],
    added: dict[str, str],
    scored: int,
    warnings: list[str],
) -> dict[str, Any]:
    """Publish the manifest from the shards' markers."""
    store = record.store
    outputs: dict[str, Any] = record.manifest()["outputs"] if store.exists(MANIFEST) else {}
    failed = {split: dict(rows) for split, rows in known["failed"].items()}
    devices = set(known["devices"])
    tokens = dict.fromkeys(added, 0)
    topk_error = known.get("topk_error")
    for name in added:
        markers = scored_shards(store, name, pairs)
        for split in SPLITS:
            start = 0
            for number in range(pairs.num_shards(split)):
                if (split, number) not in markers:
                    lost = feature_path(name, split, number)
                    raise StageFailed(
                        f"{store.root}/{lost} is not what was written there: run the same command "
                        "again"
                    )
                marker = markers[split, number]
                outputs[feature_path(name, split, number)] = {
                    "sha256": marker["sha256"],
                    "bytes": marker["bytes"],
                }
                for row, reason in marker["failed"].items():
                    failed.setdefault(split, {}).setdefault(str(start + int(row)), reason)
                devices.add(marker["device"])
                tokens[name] += marker["tokens"]
                topk_error = marker.get("topk_error", topk_error)
                start += pairs.shard_rows(split, number)
    if "reference_hidden" in added:
        outputs |= {
            name: {"sha256": store.checksum(name), "bytes": store.size(name)}
            for name in (HEAD_FILE, HEAD_SETTINGS)
        }
    if len(devices) > 1:
        warnings = [
            *warnings,
            f"{store.root} was scored on different devices: {', '.join(sorted(devices))}; their "
            "rounding differs",
        ]
    dtype = record.settings["reference.dtype"]
    features = {**known["features"], **added}
    counts = {
        "mode": "stored" if features else "online",
        "features": features,
        "formats": {
            **known["formats"],
            **{name: form.to_json() for name, form in formats_of(recipe, added, dtype).items()},
        },
        "dtype": dtype,
        "tokens": max([known["tokens"], *tokens.values()]),
        "bytes": sum(output["bytes"] for output in outputs.values()),
        "failed": failed,
        "devices": sorted(devices),
        "shards_scored": scored,
        "warnings": warnings,
        **({"topk_error": topk_error} if topk_error else {}),
    }
    _write_failed_rows(store, pairs, failed)
    return record.finish(counts, outputs)


def _write_failed_rows(
    store: RunStore, pairs: PairTable, failed: dict[str, dict[str, str]]
) -> None:
    lines = []
    for split, reasons in failed.items():
        rows = sorted(map(int, reasons))
        for row, (pair_id,) in zip(rows, pairs.values(split, rows, ("pair_id",)), strict=True):
            lines.append(
                json.dumps(
                    {"split": split, "row": row, "pair_id": pair_id, "reason": reasons[str(row)]}
                )
                + "\n"
            )
    if lines:
        store.write_bytes(FAILED_ROWS, "".join(lines).encode())


def open_reference(facts: ReferenceFacts | Recipe, pairs: PairTable) -> ReferenceStore:
    """The finished store of a recipe.

    Raises: UserError if it was made by another model, from other pairs or is not there.
    """
    facts = _facts_of(facts)
    store = RunStore(facts.root)
    if not store.exists(MANIFEST):
        raise UserError(
            f"{store.root} has no finished reference stage: run `sparsepo reference` first"
        )
    manifest = store.read_json(MANIFEST)
    if manifest["fingerprint"] != facts.fingerprint:
        raise UserError(
            f"{store.root} holds another run's reference stage: its fingerprint is "
            f"{manifest['fingerprint']}, not {facts.fingerprint}"
        )
    return ReferenceStore(store, manifest, pairs)


def has_features(recipe: Recipe) -> bool:
    """Whether the finished store holds what the recipe needs.

    Raises: UserError if it holds a feature made in another way.
    """
    record = reference_record(recipe)
    wanted = recipe.stored_features()
    known: dict[str, str] = record.manifest()["counts"]["features"]
    check_origins(record, known, origins_of(recipe, wanted))
    return wanted <= set(known)


def usable_rows(facts: ReferenceFacts | Recipe, pairs: PairTable, split: str) -> list[int]:
    """Rows of a split without those that the reference stage could not score."""
    failed = _facts_of(facts).failed.get(split, frozenset())
    return [row for row in range(pairs.num_rows(split)) if row not in failed]


def _facts_of(facts: ReferenceFacts | Recipe) -> ReferenceFacts:
    """Of a caller that still has the recipe alone."""
    if not isinstance(facts, Recipe):
        return facts
    return reference_facts(facts, reference_record(facts))


def check_origins(record: StageRecord, known: dict[str, str], wanted: dict[str, str]) -> None:
    """UserError if the store holds one of the wanted features made in another way."""
    for name, how in wanted.items():
        if known.get(name, how) != how:
            raise UserError(
                f"{record.store.root} holds {name} made with {known[name]!r}, now {how!r} is "
                "asked for: choose another run_dir or paths.reference"
            )


def _check_disk(
    recipe: Recipe,
    features: list[str],
    tasks: list[ShardTask],
    pairs: PairTable,
    store: RunStore,
) -> None:
    """UserError if the local disk has not the room that the shards still to be scored will take."""
    if not store.is_local or not tasks:
        return
    counts = pairs_store(recipe).read_json(MANIFEST)["counts"]
    dtype = dtype_name(recipe.reference.dtype, scoring_device())
    share = len(tasks) / sum(pairs.num_shards(split) for split in SPLITS)
    needed = stored_bytes(formats_of(recipe, features, dtype), counts) * share
    needed += head_bytes(recipe, features, dtype)
    disk = os.statvfs(store.local_path())
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise UserError(
            f"the reference store needs {needed / 2**30:.2f} GiB more and {store.root} has "
            f"{free / 2**30:.2f} GiB free: free some, set paths.reference, or reference.mode=online"
        )
