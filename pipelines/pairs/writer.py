"""Write the planned shards of RUN/pairs by tasks.

The rows go from where they were read to the store, never through the driver.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from pipelines.cluster import Resources, require_seen
from pipelines.errors import Failure, StageFailed, UserError
from pipelines.pairs.row_plan import RowPlan, ShardRows
from pipelines.pairs.table import PAIR_SCHEMA, SPLITS, shard_name
from pipelines.storage import RunStore

_SHARDS_PER_CPU = 2


def write_shards(
    plan: RowPlan,
    blocks: Sequence[Any],
    store: RunStore,
    paths: dict[str, str],
    shard_pairs: int,
    quiet: bool,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write every shard; returns the manifest's counts and path -> sha256.

    Args:
        blocks: references to the tables that the plan was made from, in order. paths: `local_paths`
            of the run.
    Raises: UserError or StageFailed of a write.
    """
    sizes: dict[str, list[int]] = {split: [] for split in SPLITS}
    tokens = {
        name: dict.fromkeys(SPLITS, 0)
        for name in ("model_tokens", "shared_tokens", "scored_tokens")
    }
    truncated: Counter[str] = Counter()
    checksums: dict[str, str] = {}
    with tqdm(
        total=sum(map(plan.num_pairs, SPLITS)), desc="prepare", unit="pair", disable=quiet
    ) as progress:
        for written in _written(plan.shards(shard_pairs), blocks, store.root, paths):
            if "failure" in written:
                raise Failure(**written["failure"]).error()
            split = written["split"]
            sizes[split].append(written["pairs"])
            checksums[written["path"]] = written["sha256"]
            truncated.update(written["truncated"])
            for name, counts in tokens.items():
                counts[split] += written[name]
            progress.update(written["pairs"])
    pairs = {split: sum(found) for split, found in sizes.items()}
    return {
        "pairs": pairs,
        "shards": sizes,
        **tokens,
        "truncated": dict(sorted(truncated.items())),
    }, checksums


def _written(
    shards: Iterator[ShardRows], blocks: Sequence[Any], root: str, paths: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """What became of every shard, in order; a few per CPU are under way."""
    import ray

    write = ray.remote(_write)
    most = _SHARDS_PER_CPU * max(1, int(Resources.now().cpus()))
    under_way: list[Any] = []
    for shard in shards:
        # In a list, the references are not fetched before the task starts: it takes one block at a
        # time.
        under_way.append(
            write.remote(shard, [blocks[block] for block, _, _ in shard.parts], root, paths)
        )
        if len(under_way) == most:
            yield ray.get(under_way.pop(0))
    while under_way:
        yield ray.get(under_way.pop(0))


def _write(shard: ShardRows, blocks: list[Any], root: str, paths: dict[str, str]) -> dict[str, Any]:
    """Ray task: collect a shard's rows and publish it."""
    import ray

    parts = []
    for block, (_, rows, occurrences) in zip(blocks, shard.parts, strict=True):
        found = ray.get(block).select(PAIR_SCHEMA.names).take(rows)
        ids = [
            f"{pair}-{occurrence}"
            for pair, occurrence in zip(found["pair_id"].to_pylist(), occurrences, strict=True)
        ]
        parts.append(found.set_column(0, "pair_id", pa.array(ids)))
    table = pa.concat_tables(parts).combine_chunks().cast(PAIR_SCHEMA)
    path = f"{shard_name(shard.split, shard.number)}.parquet"
    try:
        require_seen(paths)
        with RunStore(root).table_writer(path, PAIR_SCHEMA) as file:
            file.write(table)
    except (UserError, StageFailed) as error:
        return {"failure": asdict(Failure.of(error))}
    prompt, chosen, rejected = (
        pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy()
        for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    responses = int(chosen.sum() + rejected.sum())
    sides = 2 - table["rejected_ids"].is_null().to_numpy().astype(np.int64)
    return {
        "split": shard.split,
        "path": path,
        "sha256": file.sha256,
        "pairs": table.num_rows,
        "scored_tokens": responses,
        "shared_tokens": responses + int(prompt.sum()),
        "model_tokens": responses + int((prompt * sides).sum()),
        "truncated": dict(
            Counter(
                name
                for names in table["truncated"].to_pylist()
                for name in names.split(",")
                if name
            )
        ),
    }
