"""The run store: every write of the pipeline goes through it, to a local disk or an object store.

A file appears under its final name complete or not at all: on a local disk by temporary name, fsync
and rename, on an object store by one upload to the final key. Paths are relative to the store's
root and use '/'. Calls to an object store that fail for a passing reason are repeated.

pyarrow takes a tenth of a second to import. A store imports it when it is built, and its Parquet
part when a table is read or written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.errors import StageFailed, UserError
from pipelines.storage.hashes import fsync
from pipelines.storage.object_stores import filesystem_of, repeated
from pipelines.storage.read_errors import told_why
from pipelines.storage.write_errors import told_where

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import fs

ROW_GROUP_BYTES = 4 * 2**20
_TEMPORARY = ".tmp-"
_NAME_BYTES = 255
_SPOOLED_BYTES = 2**26  # of an upload that is kept in memory; the rest waits on the local disk
Result = TypeVar("Result")


class RunStore:
    """Reads and atomic writes below one root directory or prefix.

    A store is cheap to build, so workers build their own.

    Raises: UserError for a root that cannot be opened, a lasting refusal (permissions, full disk,
        no such bucket); StageFailed if an object store stays unreachable.
    """

    def __init__(self, root: str) -> None:
        if "://" in root and "?" in root:
            raise UserError(
                f"{root!r}: options in a location are not read; set them in the environment "
                "(AWS_ENDPOINT_URL, AWS_REGION, ...)"
            )
        from pyarrow import fs

        self.root = root if "://" in root else os.path.abspath(os.path.expanduser(root))
        self._fs, self._path = filesystem_of(root)
        self.is_local = isinstance(self._fs, fs.LocalFileSystem)
        longest = max(len(os.fsencode(part)) for part in self._path.split("/"))
        if self.is_local and longest > _NAME_BYTES:
            raise UserError(
                f"{self.root[:80]}...: a name in it has {longest} bytes, at most {_NAME_BYTES} are "
                "possible"
            )

    def at(self, *parts: str) -> RunStore:
        """The store rooted at a sub-directory."""
        return RunStore("/".join((self.root.rstrip("/"), *parts)))

    def local_path(self, *parts: str) -> Path:
        """The path on the local disk; only for local stores."""
        assert self.is_local, f"{self.root} is not on a local disk"
        return Path(self._path, *parts)

    def _full(self, path: str) -> str:
        if ".." in path.split("/") or path.startswith("/"):
            raise UserError(
                f"{path!r} would leave {self.root}: names in a store are relative and have no '..'"
            )
        return f"{self._path.rstrip('/')}/{path}" if path else self._path

    def check_writable(self) -> None:
        """UserError if nothing can be written below the root, as far as looking shows it."""
        from pyarrow import fs

        if not self.is_local:
            bucket = self._path.partition("/")[0]
            if self._fs.type_name not in ("s3", "gcs"):
                return
            with contextlib.suppress(OSError):  # who may write need not be allowed to ask
                if self._fs.get_file_info(bucket).type == fs.FileType.NotFound:
                    raise UserError(f"cannot write {self.root}: no bucket is called {bucket!r}")
                nothing = self._full(f"{_TEMPORARY}{uuid.uuid4().hex}")
                if self._fs.get_file_info(nothing).type != fs.FileType.NotFound:
                    raise UserError(
                        f"cannot write {self.root}: what answers there is no object store, it has "
                        "a file of every name: set AWS_ENDPOINT_URL to the store's own address"
                    )
            return
        place = self.nearest()
        if not place.is_dir():
            raise UserError(f"cannot write {self.root}: {os.strerror(errno.ENOTDIR)}")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"cannot write {self.root}: {os.strerror(errno.EACCES)}")

    def nearest(self) -> Path:
        """The root, or what is there of the path to it; only for local stores."""
        place = self.local_path()
        while not os.path.lexists(place):
            place = place.parent
        return place

    def trying(self, action: Callable[[], Result], path: str) -> Result:
        """Call `action`, which reads or writes `path` whole.

        On an object store it is called again after errors that may pass. Raises: StageFailed for
        errors that are not the file's: those of limits and permissions, of a store that is away.
        """
        place = f"{self.root}/{path}"
        if not self.is_local:
            return repeated(action, place)
        with told_why(place):
            return action()

    def _info(self, path: str) -> fs.FileInfo:
        return self.trying(lambda: self._fs.get_file_info(self._full(path)), path)

    def _list(self, path: str) -> list[fs.FileInfo]:
        from pyarrow import fs

        return self.trying(
            lambda: self._fs.get_file_info(fs.FileSelector(self._full(path), allow_not_found=True)),
            path,
        )

    def exists(self, path: str = "") -> bool:
        from pyarrow import fs

        return bool(self._info(path).type != fs.FileType.NotFound)

    def names(self, path: str = "") -> list[str]:
        """Names directly below `path`, sorted, no temporary ones; empty if it does not exist."""
        return sorted(
            name for info in self._list(path) if not (name := info.base_name).startswith(_TEMPORARY)
        )

    def files(self) -> list[tuple[str, int, int]]:
        """(path, bytes, time of change in ns) of every file below the root, sorted.

        Temporary ones are left out.
        """
        from pyarrow import fs

        selector = fs.FileSelector(self._path, recursive=True, allow_not_found=True)
        found = self.trying(lambda: self._fs.get_file_info(selector), "")
        start = len(self._path.rstrip("/")) + 1
        return sorted(
            (info.path[start:], int(info.size), int(info.mtime_ns or 0))
            for info in found
            if info.is_file and not info.base_name.startswith(_TEMPORARY)
        )

    def size(self, path: str) -> int:
        """Bytes of a file; -1 if it does not exist."""
        info = self._info(path)
        return int(info.size) if info.is_file else -1

    def read_bytes(self, path: str) -> bytes:
        def read() -> bytes:
            with self._fs.open_input_stream(self._full(path), compression=None) as stream:
                data: bytes = stream.read()
            return data

        return self.trying(read, path)

    def read_json(self, path: str) -> Any:
        return json.loads(self.read_bytes(path))

    def open_parquet(self, path: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        """Open a Parquet file; every page's checksum is verified when it is read.

        Args:
            metadata: the footer, if it has been read before.
        """
        import pyarrow.parquet as pq

        return self.trying(
            lambda: pq.ParquetFile(
                self._fs.open_input_file(self._full(path)),
                metadata=metadata,
                page_checksum_verification=True,
            ),
            path,
        )

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        def read() -> pa.Table:
            with self.open_parquet(path) as file:
                return file.read(columns=columns)

        return self.trying(read, path)

    def write_bytes(self, path: str, data: bytes) -> None:
        with self._publishing(path) as target:
            target.write(data)

    def write_json(self, path: str, value: Any) -> None:
        self.write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

    def write_table(self, path: str, table: pa.Table, compression: str | None = "zstd") -> None:
        """Publish a table as one Parquet file."""
        with self.table_writer(path, table.schema, compression) as writer:
            writer.write(table)

    @contextlib.contextmanager
    def table_writer(
        self, path: str, schema: pa.Schema, compression: str | None = "zstd"
    ) -> Iterator[TableWriter]:
        """Publish a Parquet file table by table.

        It appears when the block ends without an error.
        """
        with self._publishing(path) as target:
            writer = TableWriter(target, schema, compression)
            try:
                yield writer
            except BaseException:
                writer.abandon()
                raise
            writer.close()

    def publish_file(self, source: Path, path: str) -> None:
        """Move a complete local file to `path`, replacing what was there.

        This consumes `source`, which should be a staged one.
        """
        if self.is_local:
            target = self.local_path(path)
            with told_where(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                fsync(source)
                os.rename(source, target)
                fsync(target.parent)
            return
        with self._publishing(path) as spool, source.open("rb") as stream:
            shutil.copyfileobj(stream, spool, 2**22)
        source.unlink()

    def publish_directory(self, source: Path, path: str) -> None:
        """Move a complete local directory to `path`, replacing what was there; consumes `source`.

        On an object store the files are uploaded one by one: publish a marker file afterwards.
        """
        if self.is_local:
            target = self.local_path(path)
            with told_where(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                staged = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
                shutil.move(source, staged)
                for file in staged.rglob("*"):
                    fsync(file)
                if target.exists():
                    shutil.rmtree(target)
                os.rename(staged, target)
                fsync(target.parent)
            return
        self.delete(path)
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            self.write_bytes(f"{path}/{file.relative_to(source).as_posix()}", file.read_bytes())
        shutil.rmtree(source)

    def staging_directory(self) -> Path:
        """A fresh local directory to fill and then publish; on the same disk as a local store."""
        if not self.is_local:
            with told_where(tempfile.gettempdir()):
                return Path(tempfile.mkdtemp(prefix="sparsepo-"))
        path = Path(self._path) / f"{_TEMPORARY}{uuid.uuid4().hex}"
        with told_where(self._path):
            path.mkdir(parents=True)
        return path

    def told_where(self, path: str, staged: Path) -> AbstractContextManager[None]:
        """What keeps a staged file or folder of `path` from being written, in a line.

        It names the path, or the staged one where the store is another place.
        """
        return told_where(self.local_path(path) if self.is_local else staged)

    @contextlib.contextmanager
    def as_local_directory(self, path: str) -> Iterator[Path]:
        """A local directory with the contents of `path` (the directory itself on a local store)."""
        if self.is_local:
            yield self.local_path(path)
            return
        with tempfile.TemporaryDirectory(prefix="sparsepo-") as folder:
            from pyarrow import fs

            target = fs.LocalFileSystem()
            self.trying(
                lambda: fs.copy_files(
                    self._full(path),
                    folder,
                    source_filesystem=self._fs,
                    destination_filesystem=target,
                ),
                path,
            )
            yield Path(folder)

    def delete(self, path: str) -> None:
        """Remove a file or a directory tree; nothing happens if it does not exist."""
        from pyarrow import fs

        kind = self._info(path).type
        remove = {
            fs.FileType.Directory: self._fs.delete_dir,
            fs.FileType.File: self._fs.delete_file,
        }.get(kind)
        if remove is not None:
            with contextlib.suppress(FileNotFoundError):
                self.trying(lambda: remove(self._full(path)), path)

    def sweep_temporary(self, path: str = "") -> None:
        """Remove what an interrupted writer left directly below `path`."""
        for info in self._list(path):
            if info.base_name.startswith(_TEMPORARY):
                self.delete(f"{path}/{info.base_name}" if path else info.base_name)

    def checksum(self, path: str) -> str:
        """sha256 of a file's bytes, hexadecimal."""

        def read() -> str:
            digest = hashlib.sha256()
            with self._fs.open_input_stream(self._full(path), compression=None) as stream:
                while block := stream.read(2**22):
                    digest.update(block)
            return digest.hexdigest()

        return self.trying(read, path)

    @contextlib.contextmanager
    def _publishing(self, path: str) -> Iterator[Any]:
        full = self._full(path)
        if not self.is_local:
            # Whole first: closing an upload stream after an error would publish what was written so
            # far.
            with tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES) as spool:
                with told_where(tempfile.gettempdir()):
                    yield spool

                def upload() -> None:
                    spool.seek(0)
                    with self._fs.open_output_stream(full, compression=None) as stream:
                        shutil.copyfileobj(spool, stream, 2**22)
                    kept = self._fs.get_file_info(full)
                    if not kept.is_file or kept.size != spool.tell():  # a proxy's page, say
                        raise OSError(f"{spool.tell()} bytes were sent and are not there")

                self.trying(upload, path)
            return
        folder, name = os.path.split(full)
        temporary = os.path.join(folder, f"{_TEMPORARY}{uuid.uuid4().hex}-{name}")
        with told_where(full):
            os.makedirs(folder, exist_ok=True)
            try:
                with open(temporary, "wb") as stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                with _told_of_removal(full):
                    os.rename(temporary, full)
            finally:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.unlink(temporary)
            fsync(Path(folder))


@contextlib.contextmanager
def _told_of_removal(full: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StageFailed(
            f"cannot write {full}: what was to become it was removed meanwhile; if another command "
            "works on this run, let one end and give the other again"
        ) from error


class TableWriter:
    """Writes tables into one Parquet file with row groups of at most ROW_GROUP_BYTES (or one row).

    Attributes:
        sha256, num_bytes: of the file, once it is closed.
    """

    def __init__(self, target: Any, schema: pa.Schema, compression: str | None) -> None:
        import pyarrow.parquet as pq

        self._stream = _HashingStream(target)
        self._writer = pq.ParquetWriter(
            self._stream,
            schema,
            compression=compression or "none",
            use_dictionary=compression is not None,
            write_statistics=compression is not None,
            write_page_checksum=True,
        )

    def write(self, table: pa.Table) -> None:
        for group in row_groups(table):
            self._writer.write_table(group)

    def close(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        """Forget the file.

        Otherwise pyarrow would write its footer when the writer is collected.
        """
        self._writer.is_open = False

    @property
    def sha256(self) -> str:
        return self._stream.digest.hexdigest()

    @property
    def num_bytes(self) -> int:
        return self._stream.written


class _HashingStream(io.RawIOBase):
    """Passes bytes on and hashes them, so that a checksum costs no second reading."""

    def __init__(self, target: Any) -> None:
        self._target, self.digest, self.written = target, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._target.write(data)
        self.digest.update(data)
        size = memoryview(data).nbytes
        self.written += size
        return size


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
