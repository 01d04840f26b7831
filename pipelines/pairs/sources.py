"""Data sources -> chunks that tasks read on their own.

Every row's number in its file is known beforehand. Ray Data's own readers neither number rows nor
keep their order, and a pair's identity is (source, row number). So the driver only cuts files into
chunks (byte ranges, row groups, index ranges) and the tasks do the reading.
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.pairs.split_files import files_of_split
from pipelines.recipe import Source
from pipelines.storage import file_hash, filesystem_of

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
}


@dataclass(frozen=True)
class Chunk:
    """A contiguous part of one file (or data set): rows first_row, first_row + 1, ...

    For jsonl start/stop are bytes, for parquet row groups, for csv and huggingface rows.
    """

    kind: str
    path: str
    first_row: int
    start: int
    stop: int
    split: str = ""
    subset: str | None = None
    data_dir: str | None = None


def list_files(source: Source) -> list[tuple[str, str]]:
    """(uri, format) of each file of a local or object-store source's split, sorted.

    The list is empty if the path names no file.

    Raises: UserError for a split that the files do not have or must be told apart by, and for a
        subset or data_dir of files.
    """
    filesystem, path = filesystem_of(source.path)
    root = path
    if any(c in path for c in "*?["):
        import fnmatch

        folder = path[: path.rfind("/", 0, min(i for c in "*?[" if (i := path.find(c)) >= 0))]
        infos = filesystem.get_file_info(
            fs.FileSelector(folder, recursive=True, allow_not_found=True)
        )
        paths = [
            info.path
            for info in infos
            if info.type == fs.FileType.File and fnmatch.fnmatch(info.path, path)
        ]
        root = folder
        _refuse_ignored(source, ("subset", "data_dir") if paths else ())
    else:
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            return []
        if info.type == fs.FileType.File:
            paths = [path]
            _refuse_ignored(source, ("subset", "data_dir"))
        else:
            _refuse_ignored(source, ("subset",))
            root = path = (
                f"{path.rstrip('/')}/{source.data_dir.strip('/')}" if source.data_dir else path
            )
            infos = filesystem.get_file_info(
                fs.FileSelector(path, recursive=True, allow_not_found=True)
            )
            if any(i.base_name == "state.json" for i in infos) and any(
                i.extension == "arrow" for i in infos
            ):
                raise UserError(
                    f"data source {path!r} was written by datasets' save_to_disk, which is not "
                    "read; write it with to_parquet or to_json"
                )
            paths = [
                i.path
                for i in infos
                if i.type == fs.FileType.File and "." + i.base_name.rsplit(".", 1)[-1] in _SUFFIXES
            ]
    prefix = source.path.split("://")[0] + "://" if "://" in source.path else ""
    return [
        (prefix + p, _format_of(p, source)) for p in files_of_split(source, root, sorted(paths))
    ]


def _refuse_ignored(source: Source, keys: Iterable[str]) -> None:
    """UserError for a key that files cannot follow."""
    for key in keys:
        value = getattr(source, key)
        if value is not None:
            raise UserError(
                f"data source {source.path!r}: {key} = {value!r} is of Hugging Face data sets, "
                "these are files; name their folder in path, or set format: huggingface"
            )


def _format_of(path: str, source: Source) -> str:
    if source.format != "auto":
        return source.format
    suffix = "." + path.rsplit(".", 1)[-1].lower()
    if suffix not in _SUFFIXES:
        raise UserError(
            f"data source {path}: format not recognised; set format to jsonl, parquet or csv"
        )
    return _SUFFIXES[suffix]


def chunks_of(source: Source, rows_per_chunk: int) -> list[Chunk]:
    """Cut a source into chunks in row order. UserError if it does not exist or holds no file."""
    files = [] if source.format == "huggingface" else list_files(source)
    if not files:
        if source.format == "huggingface" or (
            source.format == "auto" and _looks_like_hub_name(source.path)
        ):
            split = source.split or "train"
            rows = len(_hub_dataset(source.path, source.subset, source.data_dir, split))
            return [
                Chunk(
                    "huggingface",
                    source.path,
                    start,
                    start,
                    min(start + rows_per_chunk, rows),
                    split,
                    source.subset,
                    source.data_dir,
                )
                for start in range(0, rows, rows_per_chunk)
            ]
        raise UserError(
            f"data source {source.path!r}: no such file, directory or pattern with a match"
        )
    chunks: list[Chunk] = []
    first = 0
    for uri, kind in files:
        found, first = _file_chunks(uri, kind, first, rows_per_chunk)
        chunks += found
    return chunks


def source_fingerprint(source: Source) -> str:
    """What identifies a source's content.

    It is made of hashes of local files, else of size and time, or of the hub name and split.
    """
    files = [] if source.format == "huggingface" else list_files(source)
    if not files:
        if not _looks_like_hub_name(source.path) and source.format != "huggingface":
            raise UserError(
                f"data source {source.path!r}: no such file, directory or pattern with a match"
            )
        split = source.split or "train"
        found = _hub_dataset(source.path, source.subset, source.data_dir, split)._fingerprint
        return f"hub:{source.path}:{source.subset}:{source.data_dir}:{split}:{found}"
    parts = []
    for uri, _ in files:
        filesystem, path = filesystem_of(uri)
        if isinstance(filesystem, fs.LocalFileSystem):
            from pathlib import Path

            parts.append(file_hash(Path(path)))
        else:
            info = filesystem.get_file_info(path)
            parts.append(f"{uri}:{info.size}:{info.mtime_ns}")
    return "+".join(parts)


def read_chunk(chunk: Chunk) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(row number, row) of each row; None for a line that is no JSON object."""
    if chunk.kind == "huggingface":
        data = _hub_dataset(chunk.path, chunk.subset, chunk.data_dir, chunk.split)
        yield from enumerate((data[i] for i in range(chunk.start, chunk.stop)), chunk.first_row)
        return
    filesystem, path = filesystem_of(chunk.path)
    if chunk.kind == "jsonl":
        with filesystem.open_input_file(path) as stream:
            stream.seek(chunk.start)
            block = stream.read(chunk.stop - chunk.start)
        row = chunk.first_row
        for line in block.split(b"\n"):
            if line.strip():
                yield row, _json_object(line)
                row += 1
        return
    if chunk.kind == "parquet":
        with pq.ParquetFile(filesystem.open_input_file(path)) as file:
            table = file.read_row_groups(list(range(chunk.start, chunk.stop)))
    else:
        table = _read_csv(filesystem, path).slice(chunk.start, chunk.stop - chunk.start)
    yield from enumerate(table.to_pylist(), chunk.first_row)


def column_names(chunk: Chunk) -> tuple[set[str], dict[str, Any]]:
    """Columns of a source (for jsonl: of the chunk's first object) and its first row."""
    for _, row in read_chunk(chunk):
        if row is not None:
            return set(row), row
    return set(), {}


def _file_chunks(uri: str, kind: str, first: int, rows_per_chunk: int) -> tuple[list[Chunk], int]:
    filesystem, path = filesystem_of(uri)
    chunks: list[Chunk] = []
    try:
        if kind == "parquet":
            with pq.ParquetFile(filesystem.open_input_file(path)) as file:
                for group in range(file.num_row_groups):
                    chunks.append(Chunk(kind, uri, first, group, group + 1))
                    first += file.metadata.row_group(group).num_rows
            return chunks, first
        if kind == "csv":
            rows = _read_csv(filesystem, path).num_rows
            for start in range(0, rows, rows_per_chunk):
                chunks.append(
                    Chunk(kind, uri, first + start, start, min(start + rows_per_chunk, rows))
                )
            return chunks, first + rows
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"data source {uri}: not readable as {kind} ({str(error).splitlines()[0]})"
        ) from error
    if kind != "jsonl":
        raise UserError(f"data source {uri}: format {kind!r} cannot be read from a file")
    start = position = rows = 0
    with filesystem.open_input_stream(path) as raw, io.BufferedReader(raw) as stream:
        for line in stream:
            if position == 0 and line.lstrip().startswith(b"["):
                raise UserError(
                    f"data source {uri}: a JSON array, not JSON lines; write one object per line"
                )
            position += len(line)
            rows += bool(line.strip())
            if rows == rows_per_chunk:
                chunks.append(Chunk(kind, uri, first, start, position))
                first, start, rows = first + rows, position, 0
    if rows:
        chunks.append(Chunk(kind, uri, first, start, position))
    return chunks, first + rows


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, nested beyond what is read
        return None
    return value if isinstance(value, dict) else None


def _read_csv(filesystem: fs.FileSystem, path: str) -> pa.Table:
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with filesystem.open_input_stream(path) as stream:
        return pyarrow.csv.read_csv(stream, parse_options=options)


def _looks_like_hub_name(path: str) -> bool:
    return (
        "://" not in path
        and path.count("/") <= 1
        and not path.startswith((".", "/", "~"))
        and "." not in path.rsplit("/", 1)[-1]
    )


@lru_cache(maxsize=4)
def _hub_dataset(name: str, subset: str | None, data_dir: str | None, split: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(name, subset, data_dir=data_dir, split=split)
    except Exception as error:  # the library raises many kinds; the user needs one line
        raise UserError(
            f"data source {name!r} is neither a file nor a data set that can be loaded: "
            f"{str(error).splitlines()[0]}"
        ) from error
