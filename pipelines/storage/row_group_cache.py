"""Row groups of an object store's Parquet files on the local disk.

Several threads fetch them ahead of their use; they are kept while there is room.

A step reads a few rows of many files; one after the other that takes longer than the step.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from pipelines.storage.read_errors import told_why
from pipelines.storage.store import RunStore
from pipelines.storage.write_errors import told_where

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_THREADS = 16
_SHARE_OF_DISK = 0.5  # of what is free at the start


@dataclass(frozen=True)
class _Copy:
    """A local file, and the hash of what was written to it."""

    file: Path
    hash: int


def _local(copy: _Copy) -> pa.Table:
    """The table of a local copy. Raises: OSError or ArrowInvalid if it is not what was written."""
    import pyarrow as pa

    with told_why(copy.file), pa.memory_map(str(copy.file)) as source:
        content = source.read_buffer()
        if xxhash.xxh3_64_intdigest(content) != copy.hash:
            raise OSError(f"{copy.file} is not what was written")
        return pa.ipc.open_file(content).read_all()


class RowGroupCache:
    """The local copy.

    Args:
        limit_bytes: of the copy; half of the free disk by default. What was used longest ago goes
            first.
    """

    def __init__(self, store: RunStore, limit_bytes: int | None = None) -> None:
        self._store = store
        self._folder = Path(tempfile.mkdtemp(prefix="sparsepo-groups-"))
        self._removal = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._limit = (
            int(_SHARE_OF_DISK * shutil.disk_usage(self._folder).free)
            if limit_bytes is None
            else limit_bytes
        )
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="groups")
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[str, int], Future[_Copy]] = OrderedDict()
        self._held: OrderedDict[tuple[str, int], int] = OrderedDict()

    def fetch(self, path: str, metadata: pq.FileMetaData, group: int) -> Future[_Copy]:
        """Start to fetch a row group, unless it is here or under way."""
        key = (path, group)
        with self._lock:
            if key not in self._groups:
                self._groups[key] = self._pool.submit(self._download, key, metadata)
            if key in self._held:
                self._held.move_to_end(key)
            return self._groups[key]

    def read(self, path: str, metadata: pq.FileMetaData, group: int) -> pa.Table:
        """A row group, from the local copy; one that cannot be read is fetched again.

        Raises: OSError or ArrowInvalid if what the store has cannot be read either.
        """
        import pyarrow as pa

        try:
            return _local(self.fetch(path, metadata, group).result())
        except (pa.ArrowInvalid, OSError):
            self._forget((path, group))
            return _local(self.fetch(path, metadata, group).result())

    def _forget(self, key: tuple[str, int]) -> None:
        with self._lock:
            self._groups.pop(key, None)
            self._held.pop(key, None)
        place = self._place(key)
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def _place(self, key: tuple[str, int]) -> Path:
        return self._folder / f"{abs(hash(key)):x}"

    def _download(self, key: tuple[str, int], metadata: pq.FileMetaData) -> _Copy:
        import pyarrow as pa

        path, group = key
        try:
            with self._store.open_parquet(path, metadata) as source:
                table = self._store.trying(
                    lambda: source.read_row_group(group), path
                ).combine_chunks()
            written = pa.BufferOutputStream()
            with pa.ipc.new_file(written, table.schema) as writer:
                writer.write_table(table)
            content, target = written.getvalue(), self._place(key)
            with told_where(target):
                target.write_bytes(content)
        except BaseException:
            with self._lock:
                self._groups.pop(key, None)  # the next one to ask tries again
            raise
        with self._lock:
            self._held[key] = content.size
            while sum(self._held.values()) > self._limit and len(self._held) > 1:
                oldest, _ = self._held.popitem(last=False)
                self._groups.pop(oldest).result().file.unlink(missing_ok=True)
        return _Copy(target, xxhash.xxh3_64_intdigest(content))
