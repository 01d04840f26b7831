"""Data sources -> chunks that tasks read on their own.

Every row's number in its source is known beforehand. Ray Data's own readers neither number rows nor
keep their order, and a pair's identity is (source, row number). So the driver only cuts files into
chunks (byte ranges, row groups, index ranges) and the tasks do the reading.
"""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyarrow import fs

from pipelines.errors import UserError
from pipelines.pairs.bounds import too_long
from pipelines.pairs.row_readers import (
    SourceRow,
    arrow_batches,
    csv_header,
    csv_values,
    json_values,
    layout_of,
    one_line,
    open_parquet,
    open_text,
    place_of_fault,
    records_of,
    start_of_array,
    text_between,
)
from pipelines.pairs.source_files import SourceFile, SourceFiles, files_of
from pipelines.recipe import Source
from pipelines.storage import file_hash, file_info, filesystem_of, nearest_path

# Whoever reads a part of a compressed file decompresses all that comes before it. With so many
# parts at most that stays below the cost of tokenising.
_MOST_SEQUENTIAL = 64
_FIRST_ROWS, _SAMPLED_FILES, _ROWS_PER_FILE = 500, 64, 20
_BATCH_ROWS = 512

# What the scores of chosen and rejected are called: read wherever both are numbers.
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)


@dataclass(frozen=True)
class Chunk:
    """A contiguous part of one file (or data set): rows first_row, first_row + 1, ...

    start and stop are bytes of uncompressed text for jsonl, array and csv, row groups for parquet,
    rows of the file for arrow and of the data set for huggingface.

    Attributes:
        codec: the file's compression. line: of the file at start. columns: a CSV's. numbers: its
            columns that are scores.
    """

    kind: str
    path: str
    first_row: int
    start: int
    stop: int
    split: str = ""
    subset: str | None = None
    data_dir: str | None = None
    codec: str = ""
    line: int = 1
    columns: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("columns", "numbers"):  # JSON makes lists of them
            object.__setattr__(self, name, tuple(getattr(self, name)))


def chunks_of(source: Source, rows_per_chunk: int) -> list[Chunk]:
    """Cut a source into chunks in row order.

    A compressed file is cut into 64 chunks at most, of more rows if it is long.

    Raises: UserError if it does not exist, holds no file or cannot be read.
    """
    files = _files(source)
    if files is None:
        rows = len(_hub_split(source))
        return [
            Chunk(
                "huggingface",
                source.path,
                start,
                start,
                min(start + rows_per_chunk, rows),
                source.split or "train",
                source.subset,
                source.data_dir,
                numbers=_numbers(source),
            )
            for start in range(0, rows, rows_per_chunk)
        ]
    chunks: list[Chunk] = []
    first = 0
    for file in files.read:
        with one_line(file.uri, file.format):
            found, first = _file_chunks(file, first, rows_per_chunk, _numbers(source))
        chunks += found
    return chunks


def left_out(sources: Sequence[Source]) -> list[str]:
    """A line for every source among whose files others lie that none of the sources reads."""
    found = [(source, files) for source in sources if (files := _files(source)) is not None]
    read = {file.uri for _, files in found for file in files.read}
    lines = [files.warning(source, read) for source, files in found]
    return list(dict.fromkeys(line for line in lines if line is not None))


def source_fingerprint(source: Source) -> str:
    """What identifies a source's content.

    It is made of hashes of local files, else of size and time, or of the hub name and split.
    """
    files = _files(source)
    if files is None:
        split = source.split or "train"
        found = _hub_split(source)._fingerprint
        return f"hub:{source.path}:{source.subset}:{source.data_dir}:{split}:{found}"
    parts = []
    for file in files.read:
        filesystem, path = filesystem_of(file.uri)
        with one_line(file.uri, file.format):
            if isinstance(filesystem, fs.LocalFileSystem):
                parts.append(file_hash(Path(path)))
            else:
                info = file_info(filesystem, path)
                parts.append(f"{file.uri}:{info.size}:{info.mtime_ns}")
    return "+".join(parts)


def read_rows(chunk: Chunk) -> Iterator[SourceRow]:
    """Every row of a chunk, also those that cannot be read or are too long to be."""
    for row in _read_rows(chunk):
        if fault := too_long(row.values):
            yield SourceRow(row.number, None, row.place, fault)
        else:
            yield row


def _read_rows(chunk: Chunk) -> Iterator[SourceRow]:
    if chunk.kind == "huggingface":
        data = _hub_dataset(chunk.path, chunk.subset, chunk.data_dir, chunk.split, chunk.numbers)
        for number, index in enumerate(range(chunk.start, chunk.stop), chunk.first_row):
            yield SourceRow(number, data[index], f"{chunk.path} {chunk.split}:{index}")
        return
    with one_line(chunk.path, chunk.kind):
        yield from _rows(chunk)


def read_chunk(chunk: Chunk) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(row number, row) of each row; None for one that cannot be read."""
    for row in read_rows(chunk):
        yield row.number, row.values


def sampled_rows(chunks: Sequence[Chunk]) -> list[SourceRow]:
    """Rows that a source's form is seen from: many from its beginning, some of every file."""
    found = list(itertools.islice(_all_rows(chunks), _FIRST_ROWS))
    seen = {chunk.path for chunk in chunks if found and chunk.first_row <= found[-1].number}
    starts = {chunk.path: chunk for chunk in reversed(chunks) if chunk.path not in seen}
    for path in sorted(starts, key=lambda path: starts[path].first_row)[:_SAMPLED_FILES]:
        found += itertools.islice(read_rows(starts[path]), _ROWS_PER_FILE)
    return found


def _all_rows(chunks: Iterable[Chunk]) -> Iterator[SourceRow]:
    for chunk in chunks:
        yield from read_rows(chunk)


def _rows(chunk: Chunk) -> Iterator[SourceRow]:
    name = chunk.path.rsplit("/", 1)[-1]
    file = SourceFile(chunk.path, chunk.kind, chunk.codec)
    if chunk.kind in ("parquet", "arrow"):
        tables = _parquet_rows(file, chunk) if chunk.kind == "parquet" else _arrow_rows(file, chunk)
        for number, values in enumerate(tables, chunk.first_row):
            yield SourceRow(number, values, name)
        return
    text = io.BytesIO(text_between(file, chunk.start, chunk.stop))
    number = chunk.first_row
    found: tuple[dict[str, Any] | None, str]
    for record in records_of(chunk.kind, text, chunk.path, chunk.line, chunk.start):
        if chunk.kind == "csv":
            found = csv_values(record, chunk.columns, chunk.numbers)
        elif record.text is None:  # the end of an array
            continue
        else:
            found = json_values(record)
        is_json_fault = found[1] and chunk.kind != "csv"
        at = place_of_fault(record) if is_json_fault else str(record.line)
        yield SourceRow(number, found[0], f"{name}:{at}", found[1])
        number += 1


def _parquet_rows(file: SourceFile, chunk: Chunk) -> Iterator[dict[str, Any]]:
    groups = list(range(chunk.start, chunk.stop))
    with open_parquet(file) as opened:
        for batch in opened.iter_batches(_BATCH_ROWS, row_groups=groups):
            yield from batch.to_pylist()


def _arrow_rows(file: SourceFile, chunk: Chunk) -> Iterator[dict[str, Any]]:
    at = 0
    for batch in arrow_batches(file):
        start, stop = max(0, chunk.start - at), min(batch.num_rows, chunk.stop - at)
        if start < stop:
            yield from batch.slice(start, stop - start).to_pylist()
        at += batch.num_rows
        if at >= chunk.stop:
            return


def _file_chunks(
    file: SourceFile, first: int, rows_per_chunk: int, numbers: tuple[str, ...]
) -> tuple[list[Chunk], int]:
    """The chunks of a file whose first row has that number, and the number after its last."""
    chunks: list[Chunk] = []
    if file.format == "parquet":
        with open_parquet(file) as opened:
            for group in range(opened.num_row_groups):
                chunks.append(Chunk("parquet", file.uri, first, group, group + 1, codec=file.codec))
                first += opened.metadata.row_group(group).num_rows
        return chunks, first
    if file.format == "arrow":
        rows = sum(batch.num_rows for batch in arrow_batches(file))
        size = max(rows_per_chunk, -(-rows // _MOST_SEQUENTIAL))
        for start in range(0, rows, size):
            chunks.append(Chunk("arrow", file.uri, first + start, start, min(start + size, rows)))
        return chunks, first + rows
    return _text_chunks(file, first, rows_per_chunk, numbers)


def _text_chunks(
    file: SourceFile, first: int, rows_per_chunk: int, numbers: tuple[str, ...]
) -> tuple[list[Chunk], int]:
    layout = layout_of(file)
    columns: tuple[str, ...] = ()
    # (rows, bytes, line) up to which the file was cut
    cuts: list[tuple[int, int, int]] = []
    rows = 0
    end = None
    with open_text(file) as stream:
        start, line = start_of_array(stream) if layout == "array" else (0, 1)
        for record in records_of(layout, stream, file.uri, line, start):
            end = record
            if layout == "csv" and not cuts:
                columns = csv_header(record, file.uri)
            elif record.text is not None:
                rows += 1
                if rows % rows_per_chunk:
                    continue
            else:
                continue
            cuts.append((rows, record.stop, record.next_line))
    if layout == "array" and (end is None or end.fault != "end"):
        what = "text follows its array" if end and end.fault == "more" else "its array has no end"
        where = f", line {end.line}" if end else ""
        raise UserError(f"data source {file.uri}{where}: not readable as json ({what})")
    if layout != "csv":
        cuts.insert(0, (0, start, line))
    if end is not None and cuts[-1][0] != rows:
        cuts.append((rows, end.stop, end.next_line))
    if file.codec:
        step = -(-(len(cuts) - 1) // _MOST_SEQUENTIAL) or 1
        cuts = [*cuts[:-1:step], *cuts[-1:]]
    return [
        Chunk(
            layout,
            file.uri,
            first + row,
            begin,
            stop,
            codec=file.codec,
            line=at,
            columns=columns,
            numbers=numbers if layout == "csv" else (),
        )
        for (row, begin, at), (_, stop, _) in itertools.pairwise(cuts)
    ], first + rows


def _files(source: Source) -> SourceFiles | None:
    """A source's files; None for a data set of a hub.

    Raises: UserError for a path that is neither.
    """
    files = files_of(source)
    may_be_hub = source.format == "huggingface" or (
        source.format == "auto" and _looks_like_hub_name(source.path)
    )
    if files is None and not may_be_hub:
        raise UserError(
            f"data source {source.path!r}: no such file, directory or pattern with a match"
            + nearest_path(source.path)
        )
    return files


def _looks_like_hub_name(path: str) -> bool:
    return (
        "://" not in path
        and path.count("/") <= 1
        and not path.startswith((".", "/", "~"))
        and "." not in path.rsplit("/", 1)[-1]
    )


def _hub_split(source: Source) -> Any:
    return _hub_dataset(
        source.path, source.subset, source.data_dir, source.split or "train", _numbers(source)
    )


def _numbers(source: Source) -> tuple[str, ...]:
    """The columns that are scores."""
    named = (source.columns.chosen_score, source.columns.rejected_score)
    if any(named):
        return tuple(name for name in named if name)
    return tuple(name for names in SCORE_COLUMNS for name in names)


@lru_cache(maxsize=4)
def _hub_dataset(
    name: str, subset: str | None, data_dir: str | None, split: str, numbers: tuple[str, ...]
) -> Any:
    """A split of a data set through the hub's library; of CSV files the text that stands there.

    Args:
        numbers: columns that keep the type which the library finds.
    """
    from datasets import Features, Value, load_dataset, load_dataset_builder
    from datasets.packaged_modules.csv.csv import CsvConfig

    try:
        found = load_dataset(name, subset, data_dir=data_dir, split=split)
        if isinstance(load_dataset_builder(name, subset, data_dir=data_dir).config, CsvConfig):
            text = {column: Value("string") for column in found.column_names}
            features = Features(text | {n: found.features[n] for n in numbers if n in text})
            found = load_dataset(
                name,
                subset,
                data_dir=data_dir,
                split=split,
                features=features,
                keep_default_na=False,
            )
        return found
    except Exception as error:  # the library raises many kinds; the user needs one line
        raise UserError(
            f"data source {name!r} is neither a file nor a data set that can be loaded: "
            f"{str(error).splitlines()[0]}"
        ) from error
