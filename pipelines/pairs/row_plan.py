"""What happens to every row of the sources: its split, its copies, or the reason why it is dropped.

A row's own part is drawn where it is read, from hashes alone. What depends on other rows
(duplicates, held-out prompts, limits) is decided here from a digest of some 50 bytes a row, so that
one process plans many millions.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.pairs.mismatches import mismatched
from pipelines.pairs.table import SPLITS
from pipelines.recipe import DataSection

_KEY = pa.binary(12)  # of a hash of 24 hexadecimal digits
DIGEST = pa.schema(
    [
        ("source", pa.int32()),
        ("row", pa.int64()),
        ("split", pa.int8()),  # its number in SPLITS
        ("copies", pa.int32()),
        ("rank", pa.float64()),
        ("pair", _KEY),
        ("prompt", _KEY),
        ("reason", pa.string()),
        ("place", pa.string()),
    ]
)
_DROPPED = -1
_TRAIN = SPLITS.index("train")
_Numbers = npt.NDArray[Any]
Parts = list[tuple[int, _Numbers, _Numbers]]


def digest_of(block: pa.Table, data: DataSection) -> pa.Table:
    """What the plan needs of a block of rows: their own part, drawn from place and hashes.

    split: by the prompt, so that pairs of one prompt stay together. copies: of a training row by
    its source's weight, a fraction by chance. rank: what a limit goes by; it does not depend on the
    order of the sources.

    Args:
        block: with source, row, pair_id, prompt_hash, and reason and place where a row is no pair.
    """
    roles = (
        ["train"] * len(data.sources)
        + ["validation"] * len(data.validation)
        + ["test"] * len(data.test)
    )
    rows = []
    own = ["source", "row", "reason", "place"]
    for row in block.select([*own, "pair_id", "prompt_hash"]).to_pylist():
        digest = {name: row[name] for name in own}
        if not row["reason"]:
            pair, prompt, split = row["pair_id"], row["prompt_hash"], roles[row["source"]]
            copies = 1
            if split == "train":
                split = _drawn_split(data, prompt)
            if split == "train":
                weight = data.sources[row["source"]].weight
                copies = int(weight) + (
                    _unit("weight", row["source"], row["row"], pair) < weight - int(weight)
                )
            rank = _unit("limit", data.split_seed, pair)
            digest |= {"split": SPLITS.index(split), "copies": copies, "rank": rank}
            digest |= {"pair": bytes.fromhex(pair), "prompt": bytes.fromhex(prompt)}
        rows.append(digest)
    return pa.Table.from_pylist(rows, schema=DIGEST)


def _drawn_split(data: DataSection, prompt_hash: str) -> str:
    at = _unit(data.split_seed, prompt_hash)
    if at < data.test_fraction:
        return "test"
    return "validation" if at < data.test_fraction + data.validation_fraction else "train"


def _unit(*parts: Any) -> float:
    """A uniform number in [0, 1) that depends on the parts alone."""
    return (
        int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big")
        / 2**64
    )


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard, in order.

    `rows` counts within a block of the prepared rows, `occurrences` a pair's copies in its split.

    Attributes:
        parts: (block, rows [n], occurrences [n]) for every block that has some.
        mismatches: the same of labelled rows' mismatched responses, a row for every row; none of
            pairs.
    """

    split: str
    number: int
    parts: Parts
    mismatches: Parts = field(default_factory=list)


class RowPlan:
    """What every shard holds, decided from the digests of all blocks.

    `add` collects every block's digest in order, `settle` decides, `shards` says what every shard
    holds.

    Attributes after `settle`:
        reasons: why rows were dropped -> how many. num_duplicates: rows whose pair came before in
            its split. num_rows: read in all.
    """

    def __init__(self, data: DataSection) -> None:
        self._data = data
        self._digests: list[pa.Table] = []
        self._ends = np.zeros(0, np.int64)  # of the blocks, in rows
        self.num_rows = self.num_duplicates = 0
        self.reasons: Counter[str] = Counter()

    def add(self, digest: pa.Table) -> None:
        """Take the next block's `digest_of`."""
        self._digests.append(_with_coded_reasons(digest))

    def settle(self) -> None:
        """Apply overlap with held-out prompts, duplicates, weights and limits; `add` is over."""
        self._ends = np.cumsum([digest.num_rows for digest in self._digests])
        table = pa.concat_tables(
            self._digests or [_with_coded_reasons(DIGEST.empty_table())]
        ).unify_dictionaries()
        self._digests = []
        # The rows of a chunk come in order; those of a part of the prompts lie between others'.
        self._order = _order_of(table)
        if (np.diff(self._order) != 1).any():
            table = table.take(self._order).combine_chunks()
        self.num_rows = table.num_rows
        self._source, self._row = table["source"].to_numpy(), table["row"].to_numpy()
        self._reason, self._reasons = _coded_reasons(table["reason"])
        self._place = table["place"]
        self._split = pc.fill_null(table["split"], _DROPPED).to_numpy().copy()
        self._copies = pc.fill_null(table["copies"], 0).to_numpy().copy()
        rank, pair, prompt = (
            pc.fill_null(table["rank"], 0.0).to_numpy(),
            _codes(table["pair"]),
            _codes(table["prompt"]),
        )
        del table
        self._prompt = prompt

        held_out = np.zeros(prompt.max(initial=0) + 1, bool)
        held_out[prompt[self._split > _TRAIN]] = True
        self._drop(
            np.flatnonzero((self._split == _TRAIN) & held_out[prompt]),
            "prompt is also in held-out data",
        )
        # A pair counts once per split.
        usable = np.flatnonzero(self._split != _DROPPED)
        pair = pair.astype(np.int64) * len(SPLITS) + self._split
        _, first = np.unique(pair[usable], return_index=True)
        again = np.ones(len(usable), bool)
        again[first] = False
        self.num_duplicates = int(again.sum())
        if self._data.deduplicate:
            self._drop(usable[again], "exact duplicate")
        self._drop(
            np.flatnonzero((self._split != _DROPPED) & (self._copies == 0)),
            "left out by the source's weight",
        )
        for number, name in enumerate(SPLITS):
            limit = getattr(self._data, f"max_{name}_pairs")
            kept = np.flatnonzero(self._split == number)
            if limit is not None and len(kept) > limit:
                self._drop(kept[np.lexsort((kept, rank[kept]))[limit:]], f"beyond max_{name}_pairs")
        self._occurrence = _copies_before(pair, np.where(self._split == _DROPPED, 0, self._copies))
        counted = np.bincount(self._reason[self._reason >= 0], minlength=len(self._reasons))
        self.reasons.update(
            {
                reason: int(count)
                for reason, count in zip(self._reasons, counted, strict=True)
                if count
            }
        )

    def rejected_rows(self) -> Iterator[dict[str, Any]]:
        """source, row and reason of every dropped row, in order; place where it is known."""
        for i in np.flatnonzero(self._reason >= 0):
            place = self._place[int(i)].as_py()
            yield {
                "source": int(self._source[i]),
                "row": int(self._row[i]),
                "reason": self._reasons[self._reason[i]],
                **({"place": place} if place else {}),
            }

    def num_pairs(self, split: str) -> int:
        """Pairs to write, copies counted."""
        return int(self._copies[self._split == SPLITS.index(split)].sum())

    def shards(self, shard_pairs: int, are_labelled: bool = False) -> Iterator[ShardRows]:
        """Every shard of every split, `shard_pairs` long but for the last of a split.

        Args:
            are_labelled: rows are responses with labels, and get mismatched ones of their split.
        """
        for number, split in enumerate(SPLITS):
            rows = np.flatnonzero(self._split == number)
            ends = np.cumsum(self._copies[rows], dtype=np.int64)
            total = int(ends[-1]) if len(ends) else 0
            others = rows[mismatched(self._prompt[rows])] if are_labelled else rows
            for shard, start in enumerate(range(0, total, shard_pairs)):
                positions = np.arange(start, min(start + shard_pairs, total))
                at = np.searchsorted(ends, positions, side="right")
                chosen = rows[at]
                occurrences = (
                    self._occurrence[chosen] + positions - (ends[at] - self._copies[chosen])
                )
                parts = self._by_block(chosen, occurrences)
                mismatches = self._by_block(others[at], occurrences) if are_labelled else []
                yield ShardRows(split, shard, parts, mismatches)

    def _by_block(self, rows: _Numbers, occurrences: _Numbers) -> Parts:
        rows = self._order[rows]
        blocks = np.searchsorted(self._ends, rows, side="right")
        cuts = [0, *(np.flatnonzero(np.diff(blocks)) + 1), len(rows)]
        parts = []
        for start, end in itertools.pairwise(cuts):
            block = int(blocks[start])
            parts.append(
                (
                    block,
                    rows[start:end] - (self._ends[block - 1] if block else 0),
                    occurrences[start:end],
                )
            )
        return parts

    def _drop(self, rows: _Numbers, reason: str) -> None:
        if len(rows):
            self._reasons.append(reason)
            self._reason[rows] = len(self._reasons) - 1
            self._split[rows] = _DROPPED


def _order_of(table: pa.Table) -> _Numbers:
    """The rows by source and number, those of one row as they come."""
    return np.lexsort((table["row"].to_numpy(), table["source"].to_numpy()))


def _with_coded_reasons(digest: pa.Table) -> pa.Table:
    at = digest.schema.get_field_index("reason")
    return digest.set_column(at, "reason", digest["reason"].combine_chunks().dictionary_encode())


def _coded_reasons(column: pa.ChunkedArray) -> tuple[_Numbers, list[str]]:
    """(the number of every row's reason or -1, the reasons)."""
    chunks = column.chunks
    numbers = [
        pc.fill_null(chunk.indices, _DROPPED).to_numpy(zero_copy_only=False) for chunk in chunks
    ]
    return np.concatenate(numbers).astype(np.int32), chunks[0].dictionary.to_pylist()


def _codes(column: pa.ChunkedArray) -> _Numbers:
    """A small number for every value, equal for equal ones; missing values get some number."""
    encoded = column.combine_chunks().dictionary_encode()
    found: _Numbers = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
    return found


def _copies_before(pair: _Numbers, copies: _Numbers) -> _Numbers:
    """For every row the copies of its pair in the rows before it."""
    order = np.argsort(pair, kind="stable")
    running = np.cumsum(copies[order], dtype=np.int64) - copies[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = np.diff(pair[order]) != 0
    starts = np.flatnonzero(is_first)
    lengths = np.diff(np.append(starts, len(order)))
    before = np.empty(len(order), np.int64)
    before[order] = running - np.repeat(running[starts], lengths)
    return before
