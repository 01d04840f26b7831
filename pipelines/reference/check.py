"""`reference --check` and `--repair`: is every file there, whole and this store's own?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.cluster import Bar
from pipelines.errors import UserError
from pipelines.pairs import SPLITS, PairTable, open_pairs, shard_name
from pipelines.recipe import HEAD_FILE, HEAD_SETTINGS, MANIFEST, MARKERS, Recipe, Run, StageRecord
from pipelines.reference.actor import marker_path
from pipelines.reference.store import (
    check_label,
    check_size,
    damaged,
    feature_path,
)
from pipelines.storage import RunStore, parse_json

_READERS = 4


@dataclass(frozen=True)
class Damage:
    """One bad file: what it is of, and a line that names it."""

    feature: str
    split: str
    number: int
    message: str


def find_damage(
    run: Run, record: StageRecord, quiet: bool = False
) -> tuple[dict[str, Any], list[Damage]]:
    """Compare every file of a finished store with the manifest.

    Presence, size, owner, checksum and rows are compared.

    Returns: the manifest, and what is damaged.
    Raises: UserError if the store is unfinished or another recipe's.
    """
    pairs = open_pairs(run)
    if not record.is_complete():
        raise UserError(
            f"{record.store.root} has no finished reference stage: "
            f"{_progress(record.store, pairs)}; run `sparsepo reference`"
        )
    manifest = record.manifest()
    files = list(_files(manifest, pairs))
    found: list[Damage] = []
    with (
        ThreadPoolExecutor(_READERS) as pool,
        Bar(
            total=manifest["counts"]["bytes"],
            desc="check",
            unit="B",
            unit_scale=True,
            disable=quiet,
        ) as progress,
    ):
        for (feature, split, number), problem in zip(
            files,
            pool.map(lambda file: _problem(record.store, manifest, pairs, *file), files),
            strict=True,
        ):
            path = feature_path(feature, split, number) if feature != HEAD_FILE else HEAD_FILE
            progress.update(manifest["outputs"].get(path, {"bytes": 0})["bytes"])
            if problem:
                found.append(Damage(feature, split, number, problem))
    return manifest, found


def forget(recipe: Recipe, record: StageRecord, damage: list[Damage]) -> Recipe:
    """Forget damaged files; returns the recipe that scores them again.

    The manifest no longer promises them from here on.
    """
    manifest = record.manifest()
    counts, outputs = dict(manifest["counts"]), dict(manifest["outputs"])
    # The head comes from the same forward as the hidden states' first shard.
    lost = {"reference_hidden" if item.feature == HEAD_FILE else item.feature for item in damage}
    counts["features"] = {name: how for name, how in counts["features"].items() if name not in lost}
    if counts["features"]:
        record.finish(
            counts,
            {path: value for path, value in outputs.items() if path.split("/")[0] not in lost},
        )
    else:
        record.store.delete(MANIFEST)
    for item in damage:
        feature, split, number = (
            ("reference_hidden", "train", 0)
            if item.feature == HEAD_FILE
            else (item.feature, item.split, item.number)
        )
        record.store.delete(marker_path(feature, split, number))
    wanted = tuple(sorted(set(recipe.reference.features) | lost))
    return recipe.model_copy(
        update={"reference": recipe.reference.model_copy(update={"features": wanted})}
    )


def _files(manifest: dict[str, Any], pairs: PairTable) -> Iterator[tuple[str, str, int]]:
    for feature in sorted(manifest["counts"]["features"]):
        for split in SPLITS:
            for number in range(pairs.num_shards(split)):
                yield feature, split, number
    if HEAD_FILE in manifest["outputs"]:
        yield HEAD_FILE, "", 0


def _problem(
    store: RunStore,
    manifest: dict[str, Any],
    pairs: PairTable,
    feature: str,
    split: str,
    number: int,
) -> str:
    """What is wrong with one file, or an empty string."""
    path = HEAD_FILE if feature == HEAD_FILE else feature_path(feature, split, number)
    expected = manifest["outputs"].get(path)
    try:
        if expected is None:
            raise damaged(store, path, "the manifest does not know it")
        check_size(store, path, expected["bytes"])
        if feature != HEAD_FILE:
            try:
                with store.open_parquet(path) as file:
                    check_label(
                        store,
                        path,
                        file.schema_arrow,
                        manifest["fingerprint"],
                        feature,
                        shard_name(split, number),
                    )
                    rows = file.metadata.num_rows
            except (pa.ArrowInvalid, OSError) as error:
                raise damaged(store, path, str(error)) from error
            if rows != pairs.shard_rows(split, number):
                raise damaged(
                    store,
                    path,
                    f"it has {rows} rows, the pairs have {pairs.shard_rows(split, number)}",
                )
        else:
            settings = manifest["outputs"].get(HEAD_SETTINGS)
            try:
                parse_json(store.read_bytes(HEAD_SETTINGS))
                found = store.checksum(HEAD_SETTINGS)
            except (OSError, ValueError) as error:
                raise damaged(store, HEAD_SETTINGS, str(error)) from error
            if settings is not None and found != settings["sha256"]:
                raise damaged(store, HEAD_SETTINGS, "its sha256 is not the manifest's")
        if store.checksum(path) != expected["sha256"]:
            raise damaged(store, path, "its sha256 is not the manifest's")
    except (UserError, OSError, ValueError) as error:
        return str(error)
    return ""


def _progress(store: RunStore, pairs: PairTable) -> str:
    total = sum(pairs.num_shards(split) for split in SPLITS)
    scored = [
        f"{feature} {len(store.names(f'{MARKERS}/{feature}'))} of {total} shards"
        for feature in store.names(MARKERS)
    ]
    return ", ".join(scored) or "nothing is scored"
