"""The reference's features on disk: one Parquet file per feature and shard, rows aligned with the pairs' shards.

Narrow features are lists of floats; wide ones raw little-endian bytes, uncompressed, in row groups of at most 4 MiB, so
that one row is read without its neighbours. bfloat16 is stored as its bit pattern.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load, save
from torch import Tensor

from pipelines.errors import UserError
from pipelines.pair_table import PairTable, shard_name
from pipelines.store import RunStore
from sparsepo.kernels.token_scoring import LMHead
from sparsepo.records import FEATURES, Features

WIDE = frozenset({"reference_hidden", "reference_layers"})
HEAD_FILE, HEAD_SETTINGS = "lm_head.safetensors", "lm_head.json"
_OPEN_FILES, _CACHED_GROUPS = 64, 256


def feature_path(feature: str, split: str, number: int) -> str:
    return f"{feature}/{shard_name(split, number)}.parquet"


def write_pair_feature(store: RunStore, feature: str, split: str, number: int, rows: Tensor) -> None:
    """Publish one feature of one shard that has one vector per pair: [rows, e]."""
    values = pa.array(list(rows.float().cpu().numpy()), pa.list_(pa.float32()))
    store.write_table(feature_path(feature, split, number), pa.table([values], names=["pair"]))


def write_feature(store: RunStore, feature: str, split: str, number: int, sides: list[tuple[Tensor, Tensor | None]]) -> None:
    """Publish one feature of one shard; `sides` holds (chosen, rejected) per row, each [tokens, ...]."""
    names = ("chosen", "rejected")
    if feature in WIDE:
        columns = [[None if pair[i] is None else to_bytes(pair[i]) for pair in sides] for i in range(2)]  # type: ignore[arg-type]
        table = pa.table([pa.array(c, pa.large_binary()) for c in columns], names=names)
        store.write_table(feature_path(feature, split, number), table, compression=None)
        return
    lists = [[None if pair[i] is None else pair[i].float().cpu().numpy() for pair in sides] for i in range(2)]  # type: ignore[union-attr]
    table = pa.table([pa.array(c, pa.list_(pa.float32())) for c in lists], names=names)
    store.write_table(feature_path(feature, split, number), table)


def write_head(store: RunStore, head: LMHead) -> None:
    """Publish the reference's LM head once per store."""
    tensors = {"weight": head.weight.detach().cpu().contiguous()}
    if head.bias is not None:
        tensors["bias"] = head.bias.detach().cpu().contiguous()
    store.write_json(HEAD_SETTINGS, {"softcap": head.softcap, "scale": head.scale})
    store.write_bytes(HEAD_FILE, save(tensors))


def read_head(store: RunStore) -> LMHead:
    """The stored head on CPU in its stored dtype; UserError if the store has none."""
    if not store.exists(HEAD_FILE):
        raise UserError(f"{store.root} has no {HEAD_FILE}: run the reference stage with the feature reference_hidden")
    tensors = load(store.read_bytes(HEAD_FILE))
    settings = store.read_json(HEAD_SETTINGS)
    return LMHead(tensors["weight"], tensors.get("bias"), settings["softcap"], settings["scale"])


def to_bytes(values: Tensor) -> bytes:
    """Contiguous bytes of a float32 or bfloat16 tensor."""
    flat = values.detach().cpu().contiguous()
    return bytes((flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy().tobytes())


class ReferenceStore:
    """Read access to RUN/reference of a finished stage; answers the same call as the online reference.

    Args:
        store: the stage's directory. manifest: its manifest. pairs: the pairs it was scored on.
    """

    def __init__(self, store: RunStore, manifest: dict[str, Any], pairs: PairTable) -> None:
        self._store, self._pairs = store, pairs
        counts = manifest["counts"]
        self._trailing: dict[str, list[int]] = counts["trailing_shape"]
        self._dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[counts["dtype"]]
        self.available = frozenset(counts["features"])
        self._files: OrderedDict[str, tuple[pq.ParquetFile, list[int]]] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def head(self) -> LMHead:
        return read_head(self._store)

    def features(self, split: str, rows: Sequence[int], wanted: Iterable[str]) -> Features:
        """Features of the given rows' scored tokens in canonical order, on CPU.

        Raises: UserError naming a feature the store lacks.
        """
        found: dict[str, Tensor] = {}
        for feature in wanted:
            if feature not in self.available:
                raise UserError(f"{self._store.root} lacks the feature {feature}: it holds {', '.join(sorted(self.available))}")
            parts = [part for row in rows for part in self._row(feature, split, row)]
            found[feature] = torch.stack(parts) if FEATURES[feature].per == "pair" else torch.cat(parts)
        return Features(**found)

    def _row(self, feature: str, split: str, row: int) -> list[Tensor]:
        shard, offset = self._pairs.locate(split, row)
        path = feature_path(feature, split, shard)
        file, ends = self._open(path)
        group = bisect_right(ends, offset)
        table = self._group(path, file, group)
        at = offset - (ends[group - 1] if group else 0)
        parts = []
        for side in table.column_names:  # chosen and rejected, or the pair's own
            value = table[side][at]
            if not value.is_valid:
                continue
            if feature in WIDE:
                raw = np.frombuffer(value.as_buffer(), dtype=np.uint16 if self._dtype == torch.bfloat16 else np.float32).copy()
                flat = torch.from_numpy(raw)
                flat = flat.view(torch.bfloat16) if self._dtype == torch.bfloat16 else flat
                parts.append(flat.view(-1, *self._trailing[feature]))
            else:
                parts.append(torch.from_numpy(value.values.to_numpy().copy()))
        return parts

    def _open(self, path: str) -> tuple[pq.ParquetFile, list[int]]:
        if path not in self._files:
            if not self._store.exists(path):
                raise UserError(f"{self._store.root}/{path} is missing: the reference store is incomplete")
            file = self._store.open_parquet(path)
            ends = list(accumulate(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)))
            self._files[path] = (file, ends)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1][0].close()
        self._files.move_to_end(path)
        return self._files[path]

    def _group(self, path: str, file: pq.ParquetFile, group: int) -> pa.Table:
        key = (path, group)
        if key not in self._groups:
            self._groups[key] = file.read_row_group(group).combine_chunks()
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]
