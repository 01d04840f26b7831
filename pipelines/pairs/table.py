"""The pairs on disk: Parquet shards per split, read by row number."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.storage import RunStore
from sparsepo.batching.layouts import TokenizedPair

SPLITS = ("train", "validation", "test")
_LOADED_SHARDS = 64
_IDS = pa.list_(pa.int32())
PAIR_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("source", pa.int32()),
        ("row", pa.int64()),
        ("prompt_hash", pa.string()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("prompt_ids", _IDS),
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("chosen_weights", pa.list_(pa.float32())),
        ("rejected_weights", pa.list_(pa.float32())),
        ("truncated", pa.string()),
    ]
)


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}"


class PairTable:
    """Read access to RUN/pairs of a finished prepare stage.

    Rows of a split are numbered 0..n-1 across its shards. Opening reads the manifest only; shards
    load when touched.
    """

    def __init__(self, store: RunStore, manifest: dict[str, Any]) -> None:
        self._store = store
        self._sizes: dict[str, list[int]] = manifest["counts"]["shards"]
        self._starts = {
            split: np.concatenate([[0], np.cumsum(sizes)]).tolist()
            for split, sizes in self._sizes.items()
        }
        self._load = lru_cache(maxsize=_LOADED_SHARDS)(self._read)
        self._lengths = lru_cache(maxsize=None)(self._sum_lengths)
        self._pairs = lru_cache(maxsize=_LOADED_SHARDS)(
            lambda split, number: pairs_of(self._load(split, number))
        )

    def num_rows(self, split: str) -> int:
        return int(self._starts[split][-1]) if split in self._starts else 0

    def num_shards(self, split: str) -> int:
        return len(self._sizes.get(split, []))

    def shard_rows(self, split: str, number: int) -> int:
        return self._sizes[split][number]

    def shard(self, split: str, number: int) -> pa.Table:
        """One shard as a table with PAIR_SCHEMA."""
        return self._load(split, number)

    def locate(self, split: str, row: int) -> tuple[int, int]:
        """(shard, row within the shard); IndexError outside the split."""
        starts = self._starts[split]
        if not 0 <= row < starts[-1]:
            raise IndexError(f"row {row} of split {split!r}, which has {starts[-1]}")
        shard = bisect_right(starts, row) - 1
        return shard, row - starts[shard]

    def pairs(self, split: str, rows: Sequence[int]) -> list[TokenizedPair]:
        """Token ids of the given rows, in the given order."""
        found = []
        for row in rows:
            shard, offset = self.locate(split, row)
            found.append(self._pairs(split, shard)[offset])
        return found

    def values(
        self, split: str, rows: Sequence[int], names: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        """The named columns of the given rows.

        A column that the pairs were prepared without counts as missing (None).
        """
        found = []
        for row in rows:
            shard, offset = self.locate(split, row)
            table = self._load(split, shard)
            found.append(
                tuple(
                    table[name][offset].as_py() if name in table.column_names else None
                    for name in names
                )
            )
        return found

    def column(self, split: str, name: str) -> list[Any]:
        """All values of a column of a split, in row order."""
        values: list[Any] = []
        for number in range(self.num_shards(split)):
            values += self._store.read_table(f"{shard_name(split, number)}.parquet", [name])[
                name
            ].to_pylist()
        return values

    def lengths(self, split: str, shared: bool = False) -> list[int]:
        """Model tokens of every row.

        The prompt counts once per response, or once per pair if it is shared.
        """
        return self._lengths(split, shared)

    def _sum_lengths(self, split: str, shared: bool) -> list[int]:
        totals: list[int] = []
        for number in range(self.num_shards(split)):
            table = self.shard(split, number)
            prompt, chosen, rejected = (
                pc.fill_null(pc.list_value_length(table[c]), 0).to_numpy()
                for c in ("prompt_ids", "chosen_ids", "rejected_ids")
            )
            prompts = 1 if shared else 1 + (rejected > 0)
            totals += (prompt * prompts + chosen + rejected).tolist()
        return totals

    def _read(self, split: str, number: int) -> pa.Table:
        path = f"{shard_name(split, number)}.parquet"
        if not self._store.exists(path):
            raise UserError(f"{self._store.root}/{path} is missing: the pairs are incomplete")
        return self._store.read_table(path).combine_chunks()


def pairs_of(table: pa.Table) -> list[TokenizedPair]:
    """Token ids of every row of a pairs table, as views of its buffers."""

    def cut(name: str) -> list[np.ndarray | None]:
        column = table[name].combine_chunks()
        values, ends, valid = (
            column.values.to_numpy(),
            column.offsets.to_numpy(),
            column.is_valid().to_numpy(zero_copy_only=False),
        )
        return [values[ends[i] : ends[i + 1]] if valid[i] else None for i in range(len(column))]

    sides = zip(cut("prompt_ids"), cut("chosen_ids"), cut("rejected_ids"), strict=True)
    return [TokenizedPair(prompt, chosen, rejected) for prompt, chosen, rejected in sides]  # type: ignore[arg-type]
