"""The run store: every write of the pipeline goes through it, to a local disk or an object store.

A file appears under its final name complete or not at all: on a local disk by temporary name, fsync and rename, on an
object store by one upload to the final key. Paths are relative to the store's root and use '/'.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.errors import UserError

ROW_GROUP_BYTES = 4 * 2**20
_TEMPORARY = ".tmp-"


def filesystem_of(uri: str) -> tuple[fs.FileSystem, str]:
    """(file system, path on it) of a local path or a URI pyarrow knows; UserError naming a URI it does not."""
    try:
        if re.match(r"^[a-z][a-z0-9+.-]+://", uri):
            found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri)
            return found
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise UserError(f"cannot open {uri!r}: {str(error).splitlines()[0]}") from error
    return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))


class RunStore:
    """Reads and atomic writes below one root directory or prefix; cheap to build, so workers build their own."""

    def __init__(self, root: str) -> None:
        self.root = root if "://" in root else os.path.abspath(os.path.expanduser(root))
        self._fs, self._path = filesystem_of(root)
        self.is_local = isinstance(self._fs, fs.LocalFileSystem)

    def at(self, *parts: str) -> "RunStore":
        """The store rooted at a sub-directory."""
        return RunStore("/".join((self.root.rstrip("/"), *parts)))

    def local_path(self, *parts: str) -> Path:
        """The path on the local disk; only for local stores."""
        assert self.is_local, f"{self.root} is not on a local disk"
        return Path(self._path, *parts)

    def _full(self, path: str) -> str:
        return f"{self._path.rstrip('/')}/{path}" if path else self._path

    def exists(self, path: str = "") -> bool:
        kind: fs.FileType = self._fs.get_file_info(self._full(path)).type
        return kind != fs.FileType.NotFound

    def names(self, path: str = "") -> list[str]:
        """Names directly below `path`, sorted, temporary ones left out; empty if it does not exist."""
        infos = self._fs.get_file_info(fs.FileSelector(self._full(path), allow_not_found=True))
        return sorted(name for info in infos if not (name := info.base_name).startswith(_TEMPORARY))

    def size(self, path: str) -> int:
        return int(self._fs.get_file_info(self._full(path)).size)

    def read_bytes(self, path: str) -> bytes:
        with self._fs.open_input_stream(self._full(path)) as stream:
            data: bytes = stream.read()
        return data

    def read_json(self, path: str) -> Any:
        return json.loads(self.read_bytes(path))

    def open_parquet(self, path: str) -> pq.ParquetFile:
        return pq.ParquetFile(self._fs.open_input_file(self._full(path)))

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        with self.open_parquet(path) as file:
            return file.read(columns=columns)

    def write_bytes(self, path: str, data: bytes) -> None:
        with self._publishing(path) as target:
            target.write(data)

    def write_json(self, path: str, value: Any) -> None:
        self.write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

    def write_table(self, path: str, table: pa.Table, compression: str | None = "zstd") -> None:
        """Publish a Parquet file whose row groups hold at most ROW_GROUP_BYTES (or one row)."""
        with (
            self._publishing(path) as target,
            pq.ParquetWriter(target, table.schema, compression=compression or "none", use_dictionary=compression is not None) as writer,
        ):
            for group in row_groups(table):
                writer.write_table(group)

    def publish_directory(self, source: Path, path: str) -> None:
        """Move a complete local directory to `path`, replacing what was there; consumes `source`.

        On an object store the files are uploaded one by one: publish a marker file afterwards.
        """
        if self.is_local:
            target = self.local_path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            staged = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
            shutil.move(source, staged)
            for file in staged.rglob("*"):
                _fsync(file)
            if target.exists():
                shutil.rmtree(target)
            os.rename(staged, target)
            _fsync(target.parent)
            return
        self.delete(path)
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            self.write_bytes(f"{path}/{file.relative_to(source).as_posix()}", file.read_bytes())
        shutil.rmtree(source)

    def staging_directory(self) -> Path:
        """A fresh local directory to fill and then publish; on the same disk as a local store."""
        if not self.is_local:
            return Path(tempfile.mkdtemp(prefix="sparsepo-"))
        Path(self._path).mkdir(parents=True, exist_ok=True)
        path = Path(self._path) / f"{_TEMPORARY}{uuid.uuid4().hex}"
        path.mkdir()
        return path

    @contextlib.contextmanager
    def as_local_directory(self, path: str) -> Iterator[Path]:
        """A local directory with the contents of `path` (the directory itself on a local store)."""
        if self.is_local:
            yield self.local_path(path)
            return
        with tempfile.TemporaryDirectory(prefix="sparsepo-") as folder:
            fs.copy_files(self._full(path), folder, source_filesystem=self._fs, destination_filesystem=fs.LocalFileSystem())
            yield Path(folder)

    def delete(self, path: str) -> None:
        """Remove a file or a directory tree; nothing happens if it does not exist."""
        kind = self._fs.get_file_info(self._full(path)).type
        if kind == fs.FileType.Directory:
            self._fs.delete_dir(self._full(path))
        elif kind == fs.FileType.File:
            self._fs.delete_file(self._full(path))

    def sweep_temporary(self, path: str = "") -> None:
        """Remove what an interrupted writer left directly below `path`."""
        for info in self._fs.get_file_info(fs.FileSelector(self._full(path), allow_not_found=True)):
            if info.base_name.startswith(_TEMPORARY):
                self.delete(f"{path}/{info.base_name}" if path else info.base_name)

    def checksum(self, path: str) -> str:
        """sha256 of a file's bytes, hexadecimal."""
        digest = hashlib.sha256()
        with self._fs.open_input_stream(self._full(path)) as stream:
            while block := stream.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _publishing(self, path: str) -> Iterator[Any]:
        full = self._full(path)
        if not self.is_local:
            # Whole in memory first: closing an upload stream after an error would publish what was written so far.
            buffer = io.BytesIO()
            yield buffer
            with self._fs.open_output_stream(full) as stream:
                stream.write(buffer.getvalue())
            return
        folder, name = os.path.split(full)
        try:
            os.makedirs(folder, exist_ok=True)
            temporary = os.path.join(folder, f"{_TEMPORARY}{uuid.uuid4().hex}-{name}")
            try:
                with open(temporary, "wb") as stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                os.rename(temporary, full)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
            _fsync(Path(folder))
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise UserError(f"cannot write {full}: {error.strerror}") from error


def row_groups(table: pa.Table) -> Iterator[pa.Table]:
    """Cut a table into consecutive pieces of at most ROW_GROUP_BYTES, one row at least."""
    if table.num_rows == 0:
        yield table
        return
    start = 0
    rows_guess = max(1, int(table.num_rows * ROW_GROUP_BYTES / max(1, table.nbytes)))
    while start < table.num_rows:
        rows = min(rows_guess, table.num_rows - start)
        while rows > 1 and table.slice(start, rows).nbytes > ROW_GROUP_BYTES:
            rows = max(1, rows // 2)
        yield table.slice(start, rows)
        start += rows


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
