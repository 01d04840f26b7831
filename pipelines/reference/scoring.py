"""reference: score every pair once with the frozen reference, resumably, shard by shard.

A Ray Data actor pool does the scoring. A shard's files are published before its markers (one per
feature); a restart scores what has no marker. The store does not depend on the number of actors or
on kills.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from pipelines.cluster import Pool, local_paths, run_tasks
from pipelines.errors import (
    DamagedFile,
    StageFailed,
    UserError,
)
from pipelines.pairs import SPLITS, PairTable, open_pairs
from pipelines.recipe import (
    FAILED_ROWS,
    HEAD_FILE,
    HEAD_SETTINGS,
    MANIFEST,
    MARKERS,
    Recipe,
    Run,
    StageRecord,
    read_manifest,
)
from pipelines.reference.actor import Scoring, ShardScorer, ShardTask, marker_path
from pipelines.reference.discriminators import read_figures
from pipelines.reference.facts import FrozenReference, OtherModels
from pipelines.reference.family_checks import check_hooks
from pipelines.reference.formats import formats_of, head_bytes, stored_bytes
from pipelines.reference.origins import check_origins
from pipelines.reference.store import feature_path
from pipelines.storage import (
    RunStore,
    read_record,
)

CALLS_AT_ONCE = 3  # shards in work in one actor: one is scored, others are read or written
_READERS = 32  # markers that are read at a time
_MARKER = {"bytes": int}


def run_reference(
    run: Run, record: StageRecord, origins: Mapping[str, str], quiet: bool = False
) -> dict[str, Any]:
    """Score a run's pairs for the features that its recipe needs and return the manifest.

    Needs a running Ray.

    With the reference online nothing is scored and the manifest says so. Features that an existing
    store lacks are added without scoring the others again.

    Args:
        record: of the stage. origins: feature -> how it is made.
    Raises: UserError for a store of another recipe or a full disk; StageFailed if more rows fail
        than reference.max_failed_fraction allows.
    """
    recipe = run.recipe
    wanted = recipe.stored_features()
    known = _known(record)
    check_origins(record, known["features"], origins, wanted)
    missing = sorted(wanted - set(known["features"]))
    if known["features"] and not missing:
        return record.manifest()
    check_hooks(recipe)
    pairs = open_pairs(run)
    warnings = record.version_changes()
    record.begin()
    tasks = _tasks(record, pairs, missing)
    _sweep(record.store, missing)
    _check_disk(run, record, missing, tasks, pairs)
    _score(tasks, scoring_facts(run, record, missing), recipe, pairs, quiet)
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
    for folder in ("", *features, *(f"{MARKERS}/{name}" for name in features)):
        store.sweep_temporary(folder)


def scoring_facts(run: Run, record: StageRecord, features: Iterable[str]) -> Scoring:
    """What actors have to know to score these features."""
    recipe = run.recipe
    dtype = record.settings["reference.dtype"]
    return Scoring(
        run.paths.pairs.root,
        record.store.root,
        record.fingerprint(),
        recipe.reference,
        replace(FrozenReference.of(recipe, record.inputs.get("vocabulary")), dtype=dtype),
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
    markers = set(store.names(f"{MARKERS}/{feature}"))
    sizes = {f"{feature}/{path}": size for path, size, _ in store.at(feature).files()}
    found = [
        (split, number)
        for split in SPLITS
        for number in range(pairs.num_shards(split))
        if marker_path(feature, split, number).rpartition("/")[2] in markers
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(lambda shard: _marker(store, marker_path(feature, *shard)), found)
        return {
            shard: marker
            for shard, marker in zip(found, read, strict=True)
            if marker is not None and sizes.get(feature_path(feature, *shard)) == marker["bytes"]
        }


def _marker(store: RunStore, path: str) -> dict[str, Any] | None:
    """What a shard's marker says; None for a damaged one, whose shard is scored again."""
    try:
        return read_record(store, path, _MARKER)
    except DamagedFile as error:
        print(f"{error}: scored again", file=sys.stderr, flush=True)
        store.delete(path)
        return None


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
        "lower reference.num_actors or reference.batch_tokens",
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
            outputs |= markers.get((split, 0), {}).get("head", {})
    if "reference_hidden" in added and HEAD_FILE not in outputs:  # an earlier version's markers
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
        **_judge_of(recipe, known),
        **({"topk_error": topk_error} if topk_error else {}),
    }
    _write_failed_rows(store, pairs, failed)
    return record.finish(counts, outputs)


def _judge_of(recipe: Recipe, known: dict[str, Any]) -> dict[str, Any]:
    """The figures of the discriminator whose values are here: of this recipe's, or a known one."""
    if recipe.judges_tokens():
        assert recipe.model.discriminator is not None
        return {"discriminator": read_figures(recipe.model.discriminator)}
    return {"discriminator": known["discriminator"]} if "discriminator" in known else {}


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


def check_room(run: Run, record: StageRecord) -> None:
    """UserError if the local disk has not the room that prepared pairs will take once scored."""
    missing = sorted(run.recipe.stored_features() - set(_known(record)["features"]))
    if record.store.is_local and missing:
        pairs = open_pairs(run)
        _check_disk(run, record, missing, _tasks(record, pairs, missing), pairs)


def _check_disk(
    run: Run, record: StageRecord, features: list[str], tasks: list[ShardTask], pairs: PairTable
) -> None:
    """UserError if the local disk has not the room that the shards still to be scored will take."""
    recipe, store = run.recipe, record.store
    if not store.is_local or not tasks:
        return
    counts = read_manifest(run.paths.pairs)["counts"]
    dtype = record.settings["reference.dtype"]
    share = len(tasks) / sum(pairs.num_shards(split) for split in SPLITS)
    needed = stored_bytes(formats_of(recipe, features, dtype), counts) * share
    needed += head_bytes(recipe, features, dtype)
    disk = os.statvfs(store.nearest())
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise UserError(
            f"the reference store needs {needed / 2**30:.2f} GiB more and {store.root} has "
            f"{free / 2**30:.2f} GiB free: free some, set paths.reference, or reference.mode=online"
        )
