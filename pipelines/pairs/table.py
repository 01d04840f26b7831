"""The pairs on disk: Parquet shards per split, read by row number and by column."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.pairs.latest_shards import LatestShards
from pipelines.recipe import LENGTHS, MANIFEST, Run, read_manifest
from pipelines.storage import RunStore, damaged, read_parquet
from sparsepo.batching.layouts import PairLengths, TokenizedPair, tokens_within

SPLITS = ("train", "validation", "test")
_ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
_CONTEXT_COLUMNS = ("chosen_context", "rejected_context")
TOKEN_COLUMNS = (*_ID_COLUMNS, *_CONTEXT_COLUMNS)
_IDS = pa.list_(pa.int32())
_Int32 = npt.NDArray[np.int32]
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
        ("chosen_context", _IDS),
        ("rejected_context", _IDS),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("chosen_weights", pa.list_(pa.float32())),
        ("rejected_weights", pa.list_(pa.float32())),
        ("truncated", pa.string()),
        ("straddling", pa.int32()),
        ("conversation", pa.string()),  # of chat: what the reply answers, see question.py
        ("desirable", pa.bool_()),  # of a labelled row: then `rejected` is its mismatched response
    ]
)
_PARTS = ("prompt", "chosen", "rejected")
_CURE = f"restore it, or remove {MANIFEST} beside it and run `sparsepo prepare` again"
LENGTH_SCHEMA = pa.schema([(part, pa.int32()) for part in (*_PARTS, "context")])


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}"


def lengths_path(split: str) -> str:
    """The file that holds the TokenLengths of all rows of a split."""
    return f"{LENGTHS}/{split}.parquet"


@dataclass(frozen=True)
class TokenLengths:
    """Tokens of the parts of consecutive rows, each int32 [rows].

    Attributes:
        rejected: 0 where there is no rejected response; a response has at least one token.
            context: tokens of both responses that are read but not scored.
    """

    prompt: _Int32
    chosen: _Int32
    rejected: _Int32
    context: _Int32

    @classmethod
    def counted(cls, table: pa.Table) -> "TokenLengths":
        """Of a table with TOKEN_COLUMNS."""
        prompt, chosen, rejected = (
            pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy() for name in _ID_COLUMNS
        )
        contexts = [
            _spanned(table[name]) for name in _CONTEXT_COLUMNS if name in table.column_names
        ]
        none = np.zeros(table.num_rows, np.int32)
        return cls(prompt, chosen, rejected, sum(contexts, none))

    @classmethod
    def joined(cls, parts: "Sequence[TokenLengths]") -> "TokenLengths":
        return cls(
            *(
                np.concatenate([np.zeros(0, np.int32), *(getattr(one, name) for one in parts)])
                for name in LENGTH_SCHEMA.names
            )
        )

    @classmethod
    def read(cls, table: pa.Table) -> "TokenLengths":
        """Of a table with LENGTH_SCHEMA, or with the lengths of the parts alone."""
        prompt, chosen, rejected = (table[name].to_numpy() for name in _PARTS)
        has_context = "context" in table.column_names
        context = table["context"].to_numpy() if has_context else np.zeros(table.num_rows, np.int32)
        return cls(prompt, chosen, rejected, context)

    def table(self) -> pa.Table:
        return pa.table(
            [self.prompt, self.chosen, self.rejected, self.context], schema=LENGTH_SCHEMA
        )

    @property
    def num_rows(self) -> int:
        return len(self.prompt)

    def scored_tokens(self) -> _Int32:
        """Tokens of both responses of every row, [rows]."""
        total: _Int32 = self.chosen + self.rejected - self.context
        return total

    def model_tokens(self, shared: bool = False) -> _Int32:
        """Tokens that a model reads of every row, [rows].

        The prompt counts once per response, or once per pair if it is shared.
        """
        prompts = 1 if shared else 1 + (self.rejected > 0).astype(np.int32)
        total: _Int32 = self.prompt * prompts + self.chosen + self.rejected
        return total


def _spanned(column: pa.ChunkedArray) -> _Int32:
    """Tokens within the spans of every row, [rows]; a null has none."""
    found: _Int32 = np.array([tokens_within(row or ()) for row in column.to_pylist()], np.int32)
    return found


class PairTable:
    """Read access to RUN/pairs of a finished prepare stage.

    Rows of a split are numbered 0..n-1 across its shards. Opening reads the manifest only. Columns
    of a shard are read when they are asked for, and no others; the latest shards' are kept.
    """

    def __init__(self, store: RunStore, manifest: dict[str, Any]) -> None:
        self._store = store
        self._sizes: dict[str, list[int]] = manifest["counts"]["shards"]
        self._outputs: dict[str, str] = manifest["outputs"]
        self._starts = {
            split: np.concatenate([[0], np.cumsum(sizes)]).tolist()
            for split, sizes in self._sizes.items()
        }
        # One cache per choice of columns: texts do not drive out ids.
        self._kept = lru_cache(maxsize=None)(
            lambda names: LatestShards(lambda split, number: self.shard(split, number, names))
        )
        self._token_ids = LatestShards(
            lambda split, number: _TokenIds(self.shard(split, number, TOKEN_COLUMNS))
        )
        self._parts = lru_cache(maxsize=None)(self._read_lengths)
        self._model_tokens = lru_cache(maxsize=None)(
            lambda split, shared: self._parts(split).model_tokens(shared)
        )

    def num_rows(self, split: str) -> int:
        return int(self._starts[split][-1]) if split in self._starts else 0

    def num_shards(self, split: str) -> int:
        return len(self._sizes.get(split, []))

    def shard_rows(self, split: str, number: int) -> int:
        return self._sizes[split][number]

    def shard(self, split: str, number: int, names: Sequence[str]) -> pa.Table:
        """The named columns of PAIR_SCHEMA of one shard, read anew."""
        path = f"{shard_name(split, number)}.parquet"
        if not self._store.exists(path):
            raise UserError(f"{self._store.root}/{path} is missing: the pairs are incomplete")
        needed = [name for name in names if name in _ID_COLUMNS]
        given = (list(names), PAIR_SCHEMA, _CURE, needed)
        table = read_parquet(self._store, path, *given).combine_chunks()
        if table.num_rows != self._sizes[split][number]:
            raise damaged(
                self._store,
                path,
                f"it has {table.num_rows} rows, the manifest says {self._sizes[split][number]}",
                _CURE,
            )
        return table

    def check(self, split: str, part: slice = slice(None)) -> None:
        """Compare the files of some of a split's shards with the manifest.

        What pages and footers have no checksum for is found so, before anything is computed.

        Args:
            part: of the shards' numbers.
        Raises: DamagedFile naming the first shard that is not what prepare wrote.
        """
        for number in range(self.num_shards(split))[part]:
            self._compare(f"{shard_name(split, number)}.parquet")

    def _compare(self, path: str) -> None:
        expected = self._outputs.get(path)
        if not expected or not self._store.exists(path):
            return
        try:
            found = self._store.checksum(path)
        except OSError as error:
            raise damaged(self._store, path, str(error), _CURE) from error
        if found != expected:
            raise damaged(self._store, path, "its sha256 is not the manifest's", _CURE)

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
            found.append(self._token_ids(split, shard).pair(offset))
        return found

    def values(
        self, split: str, rows: Sequence[int], names: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        """The named columns of the given rows.

        A column that the pairs were prepared without counts as missing (None).
        """
        load = self._kept(tuple(names))
        found = []
        for row in rows:
            shard, offset = self.locate(split, row)
            table = load(split, shard)
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
            values += self.shard(split, number, [name])[name].to_pylist()
        return values

    def lengths(self, split: str, shared: bool = False) -> _Int32:
        """Model tokens of every row, [rows], read from one file of 16 bytes a row at most.

        The prompt counts once per response, or once per pair if it is shared. Python's own
        arithmetic on single values may overflow: use numpy's sums, or `tolist`.
        """
        tokens: _Int32 = self._model_tokens(split, shared)
        return tokens

    def pair_lengths(self, split: str, rows: Sequence[int]) -> list[PairLengths]:
        """Tokens of the parts of the given rows, in the given order; no shard is read."""
        parts = self._parts(split)
        at = np.asarray(rows, np.int64)
        sides = (getattr(parts, name)[at].tolist() for name in _PARTS)
        return [PairLengths(*lengths) for lengths in zip(*sides, strict=True)]

    def _read_lengths(self, split: str) -> TokenLengths:
        path = lengths_path(split)
        if path not in self._outputs:  # an empty split, or prepared before lengths were stored
            return TokenLengths.joined(
                [
                    TokenLengths.counted(self.shard(split, number, TOKEN_COLUMNS))
                    for number in range(self.num_shards(split))
                ]
            )
        if not self._store.exists(path):
            raise UserError(f"{self._store.root}/{path} is missing: the pairs are incomplete")
        table = read_parquet(self._store, path, None, LENGTH_SCHEMA, _CURE, _PARTS)
        found = TokenLengths.read(table.combine_chunks())
        if found.num_rows != self.num_rows(split):
            raise UserError(
                f"{self._store.root}/{path} has {found.num_rows} rows, the {split} pairs have "
                f"{self.num_rows(split)}: it is not the file that was written there"
            )
        self._compare(path)
        return found


class _TokenIds:
    """Token ids of a table's rows as flat arrays; a pair is cut when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._columns: list[tuple[Any, Any, Any] | None] = []
        for name in TOKEN_COLUMNS:
            if name not in table.column_names or table[name].null_count == table.num_rows:
                self._columns.append(None)
                continue
            column = table[name].combine_chunks()
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            self._columns.append((column.values.to_numpy(), column.offsets.to_numpy(), valid))
        self.nbytes = sum(part.nbytes for column in self._columns if column for part in column)

    def pair(self, row: int) -> TokenizedPair:
        """A row's ids, as views of the arrays."""
        prompt, chosen, rejected, *contexts = (
            column[0][column[1][row] : column[1][row + 1]]
            if column is not None and column[2][row]
            else None
            for column in self._columns
        )
        assert prompt is not None and chosen is not None
        return TokenizedPair(
            prompt, chosen, rejected, *(() if spans is None else spans for spans in contexts)
        )


def pairs_of(table: pa.Table) -> list[TokenizedPair]:
    """Token ids of every row of a table with TOKEN_COLUMNS, as views of its buffers."""
    ids = _TokenIds(table)
    return [ids.pair(row) for row in range(table.num_rows)]


def open_pairs(run: Run) -> PairTable:
    """The finished pairs of a run."""
    return read_pairs(run.paths.pairs)


def read_pairs(store: RunStore) -> PairTable:
    """The finished pairs in a store."""
    return PairTable(store, read_manifest(store))
