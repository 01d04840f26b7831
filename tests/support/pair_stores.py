"""A store of pairs written by hand, without prepare."""

from collections.abc import Sequence

import pyarrow as pa

from pipelines.pairs.forms import Form
from pipelines.pairs.table import PAIR_SCHEMA, PairTable
from pipelines.storage.store import RunStore
from sparsepo import TokenizedPair

TEXT = Form("text", False, "prompt", ("chosen", "rejected"))


def write_pairs(
    store: RunStore,
    pairs: Sequence[TokenizedPair],
    shard_pairs: int,
    texts: Sequence[str] | None = None,
) -> PairTable:
    """Shards of the pairs as the train split, and the lengths of their parts; opened.

    Args:
        texts: of the prompts; `prompt N` without.
    """
    rows = [
        {
            "pair_id": f"{number:024x}-0",
            "source": 0,
            "row": number,
            "prompt": texts[number] if texts else f"prompt {number}",
            "prompt_ids": pair.prompt,
            "chosen_ids": pair.chosen,
            "rejected_ids": pair.rejected,
        }
        for number, pair in enumerate(pairs)
    ]
    shards = [rows[at : at + shard_pairs] for at in range(0, len(rows), shard_pairs)]
    for number, shard in enumerate(shards):
        store.write_table(
            f"train-{number:05d}.parquet", pa.Table.from_pylist(shard, schema=PAIR_SCHEMA)
        )
    lengths = {
        side: pa.array([len(row[f"{side}_ids"] or ()) for row in rows], pa.int32())  # type: ignore[arg-type]
        for side in ("prompt", "chosen", "rejected")
    }
    store.write_table("lengths/train.parquet", pa.table(lengths))
    return PairTable(
        store,
        {
            "counts": {"shards": {"train": [len(shard) for shard in shards]}},
            "outputs": {"lengths/train.parquet": ""},
        },
    )
