"""Write the planned shards of RUN/pairs by tasks.

The rows go from where they were read to the store. The driver writes them where they are so few
that a process for it costs more, and lie in this machine's memory.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cluster import Bar, Resources, require_seen
from pipelines.errors import Failure
from pipelines.pairs.mismatches import with_mismatches
from pipelines.pairs.row_plan import Parts, RowPlan, ShardRows
from pipelines.pairs.table import (
    LENGTH_SCHEMA,
    PAIR_SCHEMA,
    SPLITS,
    TokenLengths,
    lengths_path,
    shard_name,
)
from pipelines.pairs.tasks import Start, here, in_order, outcome_of, result_of, value_of
from pipelines.storage import RunStore, Span, add_spans, recorded, spent


@dataclass(frozen=True)
class Labelled:
    """What rows with labels need: the most tokens of a prompt and a response, None for any."""

    max_tokens: int | None


@dataclass(frozen=True)
class WrittenShard:
    """A published shard.

    Attributes:
        lengths: of its rows. truncated: part of a pair -> how many were cut. straddling:
            tokens of responses that hold text of the prompt too, or would.
        spans: where the time of the task went.
    """

    split: str
    path: str
    sha256: str
    lengths: TokenLengths
    truncated: Counter[str]
    straddling: int
    spans: tuple[Span, ...] = ()


def write_shards(
    plan: RowPlan,
    blocks: Sequence[Any],
    store: RunStore,
    paths: dict[str, str],
    shard_pairs: int,
    quiet: bool,
    start: Start,
    labelled: Labelled | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write every shard, and the lengths of every split's rows in one file.

    Returns the manifest's counts and path -> sha256.

    Args:
        blocks: references to the tables that the plan was made from, in order. paths: `local_paths`
            of the run. start: how tasks are. labelled: what rows with labels need; None of pairs.
    Raises: UserError or StageFailed of a write.
    """
    written: dict[str, list[TokenLengths]] = {split: [] for split in SPLITS}
    truncated: Counter[str] = Counter()
    straddling = 0
    checksums: dict[str, str] = {}
    with Bar(
        total=sum(map(plan.num_pairs, SPLITS)), desc="prepare", unit="pair", disable=quiet
    ) as progress:
        shards = plan.shards(shard_pairs, labelled is not None)
        for outcome in _written(shards, blocks, store.root, paths, start, labelled):
            shard = result_of(outcome)
            add_spans(shard.spans)
            written[shard.split].append(shard.lengths)
            checksums[shard.path] = shard.sha256
            truncated.update(shard.truncated)
            straddling += shard.straddling
            progress.update(shard.lengths.num_rows)
    lengths = {split: TokenLengths.joined(parts) for split, parts in written.items()}
    for split, rows in lengths.items():
        if rows.num_rows:
            with spent("write"), store.table_writer(lengths_path(split), LENGTH_SCHEMA) as file:
                file.write(rows.table())
            checksums[lengths_path(split)] = file.sha256
    return {
        "pairs": {split: rows.num_rows for split, rows in lengths.items()},
        "shards": {split: [part.num_rows for part in parts] for split, parts in written.items()},
        "model_tokens": {s: int(rows.model_tokens().sum()) for s, rows in lengths.items()},
        "shared_tokens": {s: int(rows.model_tokens(True).sum()) for s, rows in lengths.items()},
        "scored_tokens": {s: int(rows.scored_tokens().sum()) for s, rows in lengths.items()},
        "truncated": dict(sorted(truncated.items())),
        "straddling_tokens": straddling,
    }, checksums


def _written(
    shards: Iterator[ShardRows],
    blocks: Sequence[Any],
    root: str,
    paths: dict[str, str],
    start: Start,
    labelled: Labelled | None,
) -> Iterator[WrittenShard | Failure]:
    """What became of every shard, in order."""
    write = start(_write)
    # One task per CPU: a task that asks for its blocks gives its CPU away meanwhile, and Ray would
    # start a process on it for one more.
    most = 1 if start is here else max(1, int(Resources.now().cpus()))

    def started() -> Iterator[Any]:
        for shard in shards:
            # In a list, the references are not fetched before the task starts: it takes one block
            # at a time.
            read = {block: blocks[block] for block, _, _ in (*shard.parts, *shard.mismatches)}
            yield write(shard, read, root, paths, labelled)

    return in_order(started(), most)


def _write(
    shard: ShardRows,
    blocks: dict[int, Any],
    root: str,
    paths: dict[str, str],
    labelled: Labelled | None = None,
) -> WrittenShard | Failure:
    """Ray task: collect a shard's rows and publish it."""
    with recorded() as spans, spent("write"):
        outcome = _published(shard, blocks, root, paths, labelled)
    if isinstance(outcome, Failure):
        return outcome
    return replace(outcome, spans=tuple(spans))


def _published(
    shard: ShardRows,
    blocks: dict[int, Any],
    root: str,
    paths: dict[str, str],
    labelled: Labelled | None,
) -> WrittenShard | Failure:
    table = _rows_of(shard.parts, blocks)
    if labelled is not None:
        others = _rows_of(shard.mismatches, blocks)
        table = with_mismatches(table, others, labelled.max_tokens).combine_chunks()
    path = f"{shard_name(shard.split, shard.number)}.parquet"

    def publish() -> WrittenShard:
        require_seen(paths)
        with RunStore(root).table_writer(path, PAIR_SCHEMA) as file:
            file.write(table)
        names = (name for names in table["truncated"].to_pylist() for name in names.split(","))
        return WrittenShard(
            shard.split,
            path,
            file.sha256,
            TokenLengths.counted(table),
            Counter(name for name in names if name),
            pc.sum(table["straddling"]).as_py() or 0,
        )

    return outcome_of(publish)


def _rows_of(parts: Parts, blocks: dict[int, Any]) -> pa.Table:
    """The rows of some parts, in order, with PAIR_SCHEMA."""
    tables = []
    for block, rows, occurrences in parts:
        found = value_of(blocks[block]).select(PAIR_SCHEMA.names).take(rows)
        ids = [
            f"{pair}-{occurrence}"
            for pair, occurrence in zip(found["pair_id"].to_pylist(), occurrences, strict=True)
        ]
        tables.append(found.set_column(0, "pair_id", pa.array(ids)))
    return pa.concat_tables(tables).combine_chunks().cast(PAIR_SCHEMA)
