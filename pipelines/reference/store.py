"""The reference's features on disk: one Parquet file per feature and shard.

Rows are aligned with the pairs' shards. Plain features are lists of floats; wide ones raw
little-endian bytes in row groups of at most 4 MiB, so that one row is read without its neighbours.
Nothing is compressed: the size is known before. Every file names, in its metadata, the store,
feature and shard it belongs to. A row that could not be scored is null.
"""

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load, save
from torch import Tensor

from pipelines.errors import UserError
from pipelines.pairs import PairTable, shard_name
from pipelines.recipe import (
    HEAD_FILE,
    HEAD_SETTINGS,
    MANIFEST,
    read_manifest,
)
from pipelines.reference.facts import ReferenceFacts
from pipelines.reference.formats import FeatureFormat
from pipelines.storage import RowGroupCache, RunStore
from sparsepo.compression import unpack_states
from sparsepo.features import FEATURES
from sparsepo.kernels.token_scoring import LMHead
from sparsepo.records import Features

SIDES = ("chosen", "rejected")
_METADATA = b"sparsepo"
_OPEN_FILES, _CACHED_GROUPS = 64, 256


def feature_path(feature: str, split: str, number: int) -> str:
    return f"{feature}/{shard_name(split, number)}.parquet"


def feature_schema(
    feature: str, form: FeatureFormat, split: str, number: int, fingerprint: str
) -> pa.Schema:
    """Columns of a feature's file, and what the file belongs to.

    A feature per token has the columns chosen and rejected, one per pair the column pair.
    """
    kind = pa.list_(pa.float32()) if form.encoding == "list" else pa.large_binary()
    names = SIDES if FEATURES[feature].per == "token" else ("pair",)
    label = json.dumps(
        {"store": fingerprint, "feature": feature, "shard": shard_name(split, number)},
        sort_keys=True,
    )
    return pa.schema([(name, kind) for name in names], metadata={_METADATA: label.encode()})


def label_of(schema: pa.Schema) -> dict[str, str]:
    """What a feature file says that it belongs to; empty for a file that is none of ours."""
    found: dict[str, str] = json.loads((schema.metadata or {}).get(_METADATA, b"{}"))
    return found


class ColumnBuilder:
    """The column of one side of some rows, gathered on the device that scores them.

    No value passes through Python objects.

    Args:
        lengths: values (tokens, or 1 for a pair) of every row; 0 for a row without this side.
        form: of the feature.
        device: where the values come from.
    """

    def __init__(self, lengths: Sequence[int], form: FeatureFormat, device: torch.device) -> None:
        self._form = form
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._ends = np.cumsum(self._lengths)
        dtype, width = (
            (torch.float32, form.token_bytes() // 4)
            if form.encoding == "list"
            else (torch.uint8, form.token_bytes())
        )
        self._values = torch.zeros(int(self._lengths.sum()), width, dtype=dtype, device=device)
        self._is_finite = torch.ones(len(self._values), dtype=torch.bool, device=device)
        self._copied: torch.cuda.Event | None = None

    def put(self, rows: Sequence[int], values: Tensor) -> None:
        """Set the values [n, ...] of some rows, one after the other in the given order."""
        chosen = np.asarray(rows)
        lengths = self._lengths[chosen]
        ends = np.cumsum(lengths)
        places = np.repeat(self._ends[chosen] - ends, lengths) + np.arange(
            int(ends[-1]) if len(ends) else 0
        )
        index = torch.from_numpy(places).to(values.device, non_blocking=True)
        values = values.float() if self._form.encoding == "list" else values
        flat = (
            values[:, None] if values.ndim == 1 else values.flatten(1)
        )  # a side may be empty, which reshape refuses
        if flat.dtype != torch.uint8:
            self._is_finite.index_copy_(0, index, flat.isfinite().all(1))
        self._values.index_copy_(0, index, flat.contiguous().view(self._values.dtype))

    def fetch(self) -> None:
        """Start the copy to the CPU; what reads the values waits for it."""
        device = self._values.device
        self._values = self._values.to("cpu", non_blocking=True)
        self._is_finite = self._is_finite.to("cpu", non_blocking=True)
        if device.type == "cuda":
            self._copied = torch.cuda.current_stream(device).record_event()

    def _wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def infinite_rows(self) -> list[int]:
        """Rows with a value that is not finite, once fetched."""
        self._wait()
        if bool(self._is_finite.all()):
            return []
        places = np.flatnonzero(~self._is_finite.numpy())
        return sorted(set(np.searchsorted(self._ends, places, side="right").tolist()))

    def array(self, dropped: Iterable[int]) -> pa.Array:
        """The column, once fetched; rows without this side and dropped ones are null."""
        self._wait()
        valid = self._lengths > 0
        valid[list(dropped)] = False
        bits = (
            None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
        )
        data = self._values.flatten().numpy()
        rows = len(self._lengths)
        offsets = np.concatenate([[0], self._ends])
        if self._form.encoding == "list":
            values = pa.Array.from_buffers(pa.float32(), len(data), [None, pa.py_buffer(data)])
            places = (offsets * self._values.shape[1]).astype(np.int32)
            return pa.Array.from_buffers(
                pa.list_(pa.float32()), rows, [bits, pa.py_buffer(places)], children=[values]
            )
        return pa.Array.from_buffers(
            pa.large_binary(),
            rows,
            [bits, pa.py_buffer(offsets * self._form.token_bytes()), pa.py_buffer(data)],
        )


def write_head(store: RunStore, head: LMHead) -> dict[str, dict[str, Any]]:
    """Publish the reference's LM head once per store; returns what its files are to be."""
    tensors = {"weight": head.weight.detach().cpu().contiguous()}
    if head.bias is not None:
        tensors["bias"] = head.bias.detach().cpu().contiguous()
    settings = {"softcap": head.softcap, "scale": head.scale}
    written = {HEAD_SETTINGS: json.dumps(settings).encode(), HEAD_FILE: save(tensors)}
    for path, content in written.items():
        store.write_bytes(path, content)
    return {
        path: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for path, content in written.items()
    }


class ReferenceStore:
    """Read access to RUN/reference of a finished stage.

    It answers the same call as the online reference.

    Args:
        store: the stage's directory.
        manifest: its manifest.
        pairs: the pairs it was scored on.
    """

    def __init__(self, store: RunStore, manifest: dict[str, Any], pairs: PairTable) -> None:
        self._store, self._pairs = store, pairs
        counts = manifest["counts"]
        self._fingerprint: str = manifest["fingerprint"]
        self._outputs: dict[str, dict[str, Any]] = manifest["outputs"]
        self._formats = {
            name: FeatureFormat.from_json(found) for name, found in counts["formats"].items()
        }
        self.available = frozenset(counts["features"])
        self._spool = None if store.is_local else RowGroupCache(store)
        self._footers: dict[str, tuple[pq.FileMetaData, list[int]]] = {}
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def head(self) -> LMHead:
        """The stored head on CPU in its stored dtype.

        Raises: UserError if the store has none, or it is not what was written.
        """
        if HEAD_FILE not in self._outputs:
            raise UserError(
                f"{self._store.root} has no {HEAD_FILE}: run the reference stage with the feature "
                "reference_hidden"
            )
        read = {}
        for path in (HEAD_FILE, HEAD_SETTINGS):
            if path in self._outputs:
                check_size(self._store, path, self._outputs[path]["bytes"])
            read[path] = self._store.read_bytes(path)
            if (
                path in self._outputs
                and hashlib.sha256(read[path]).hexdigest() != self._outputs[path]["sha256"]
            ):
                raise damaged(self._store, path, "its sha256 is not the manifest's")
        tensors, settings = load(read[HEAD_FILE]), json.loads(read[HEAD_SETTINGS])
        return LMHead(
            tensors["weight"], tensors.get("bias"), settings["softcap"], settings["scale"]
        )

    def features(self, split: str, rows: Sequence[int], wanted: Iterable[str]) -> Features:
        """Features of the given rows' scored tokens in canonical order, on CPU.

        Compact ones are still packed.

        Raises: UserError naming a feature the store lacks, or a file that is missing, damaged or of
            another store.
        """
        found: dict[str, Tensor] = {}
        for feature in wanted:
            if feature not in self.available:
                raise UserError(
                    f"{self._store.root} lacks the feature {feature}: it holds "
                    f"{', '.join(sorted(self.available))}"
                )
            parts = [part for row in rows for part in self._row(feature, split, row)]
            found[feature] = (
                torch.stack(parts) if FEATURES[feature].per == "pair" else torch.cat(parts)
            )
        return Features(**found)

    def fetch(self, split: str, rows: Sequence[int], wanted: Iterable[str]) -> None:
        """Start to bring what these rows need to the local disk, unless it is there already."""
        if self._spool is None:
            return
        for feature in wanted:
            for row in rows:
                path, group, _ = self._place(feature, split, row)
                self._spool.fetch(path, self._footers[path][0], group)

    def expanded(self, features: Features) -> Features:
        """The same with int8 states as floats, on whatever device they are."""
        form = self._formats.get("reference_layers")
        if form is None or form.encoding != "int8" or features.reference_layers is None:
            return features
        layers, width = form.shape
        return replace(
            features,
            reference_layers=unpack_states(
                features.reference_layers, layers, width, getattr(torch, form.dtype)
            ),
        )

    def _row(self, feature: str, split: str, row: int) -> list[Tensor]:
        path, group, at = self._place(feature, split, row)
        form, table = self._formats[feature], self._group(path, group)
        parts = []
        for side in table.column_names:
            value = table[side][at]
            if not value.is_valid:
                continue
            if form.encoding == "list":
                parts.append(torch.from_numpy(value.values.to_numpy().copy()))
                continue
            raw = torch.from_numpy(np.frombuffer(value.as_buffer(), dtype=np.uint8).copy())
            if form.encoding == "raw":
                parts.append(raw.view(getattr(torch, form.dtype)).view(-1, *form.shape))
            else:
                parts.append(raw.view(-1, form.token_bytes()))
        return parts

    def _place(self, feature: str, split: str, row: int) -> tuple[str, int, int]:
        """(file, row group, row within it) of a row's feature.

        The file is checked when it is met first.
        """
        shard, offset = self._pairs.locate(split, row)
        path = feature_path(feature, split, shard)
        if path not in self._footers:
            check_size(self._store, path, self._outputs[path]["bytes"])
            file = self._open(path)
            check_label(
                self._store,
                path,
                file.schema_arrow,
                self._fingerprint,
                feature,
                shard_name(split, shard),
            )
            ends = list(
                accumulate(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            )
            self._footers[path] = (file.metadata, ends)
        ends = self._footers[path][1]
        group = bisect_right(ends, offset)
        return path, group, offset - (ends[group - 1] if group else 0)

    def _open(self, path: str) -> pq.ParquetFile:
        if path not in self._files:
            known = self._footers.get(path)
            try:
                self._files[path] = self._store.open_parquet(
                    path, None if known is None else known[0]
                )
            except (pa.ArrowInvalid, OSError) as error:
                raise damaged(self._store, path, str(error)) from error
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]

    def _group(self, path: str, group: int) -> pa.Table:
        key = (path, group)
        if key not in self._groups:
            try:
                if self._spool is not None:
                    self._groups[key] = self._spool.read(path, self._footers[path][0], group)
                else:
                    self._groups[key] = self._open(path).read_row_group(group).combine_chunks()
            except (pa.ArrowInvalid, OSError) as error:
                raise damaged(self._store, path, str(error)) from error
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


def check_size(store: RunStore, path: str, expected: int) -> None:
    """UserError if a file is missing or has another size than the manifest says."""
    size = store.size(path)
    if size < 0:
        raise UserError(f"{store.root}/{path} is missing: run `sparsepo reference RECIPE --repair`")
    if size != expected:
        raise damaged(store, path, f"it has {size} bytes, the manifest says {expected}")


def check_label(
    store: RunStore, path: str, schema: pa.Schema, fingerprint: str, feature: str, shard: str
) -> None:
    """UserError if a file belongs to another store, feature or shard."""
    label, wanted = label_of(schema), {"store": fingerprint, "feature": feature, "shard": shard}
    if label != wanted:
        found = ", ".join(
            f"{key} {label.get(key, 'none')}, not {value}"
            for key, value in wanted.items()
            if label.get(key) != value
        )
        raise damaged(store, path, f"it is of {found}")


def damaged(store: RunStore, path: str, reason: str) -> UserError:
    return UserError(
        f"{store.root}/{path} is damaged or foreign: {reason.splitlines()[0]}; run `sparsepo "
        "reference RECIPE --repair`"
    )


def open_reference(facts: ReferenceFacts, pairs: PairTable) -> ReferenceStore:
    """The finished store of a recipe.

    Raises: UserError if it was made by another model, from other pairs or is not there.
    """
    return finished_reference(RunStore(facts.root), facts.fingerprint, pairs)


def finished_reference(store: RunStore, fingerprint: str, pairs: PairTable) -> ReferenceStore:
    """The finished store with a fingerprint. Raises: as `open_reference`."""
    if not store.exists(MANIFEST):
        raise UserError(
            f"{store.root} has no finished reference stage: run `sparsepo reference` first"
        )
    manifest = read_manifest(store)
    if manifest["fingerprint"] != fingerprint:
        raise UserError(
            f"{store.root} holds another run's reference stage: its fingerprint is "
            f"{manifest['fingerprint']}, not {fingerprint}"
        )
    return ReferenceStore(store, manifest, pairs)
