"""Bytes of a file -> rows: one reader per format, for counting rows and for reading them.

A text format (jsonl, array, csv) is cut into records. Each knows where it ends in the
*uncompressed* text, so a reader of some rows starts in the middle: of a plain file at once, of a
compressed one after decompressing what comes before.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.errors import StageFailed, UserError
from pipelines.pairs.source_files import SourceFile
from pipelines.storage import filesystem_of, open_input, told_why

_BLOCK_BYTES = 2**20
_MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
_IN_TEXT = re.compile(rb'["\\]')
_OUTSIDE_TEXT = re.compile(rb'["\[\]{},]')


@dataclass(frozen=True)
class SourceRow:
    """A row of a source, or why it cannot be read.

    Attributes:
        number: in its source. values: by column; None if it cannot be read. place: file and line.
        fault: why it cannot be read.
    """

    number: int
    values: dict[str, Any] | None
    place: str
    fault: str = ""


@dataclass(frozen=True)
class Record:
    """One row's text.

    Attributes:
        line: of the file where it begins, from 1. stop: bytes of uncompressed text up to its end.
        next_line: where the following one begins. text: bytes of JSON, or a CSV row's cells.
    """

    line: int
    stop: int
    next_line: int
    text: Any
    fault: str = ""


@contextmanager
def one_line(uri: str, format_: str) -> Iterator[None]:
    """Turns what a damaged file raises into a UserError that names it."""
    try:
        with told_why(uri):
            yield
    except (UserError, StageFailed):
        raise
    except (pa.ArrowException, OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data source {uri}: not readable as {format_} ({said})") from error


def open_text(file: SourceFile) -> Any:
    """The uncompressed bytes of a file from its beginning, to be closed by the caller."""
    filesystem, path = filesystem_of(file.uri)
    raw = io.BufferedReader(open_input(filesystem, path, file.uri), _BLOCK_BYTES)
    if file.codec == "gz":
        return gzip.GzipFile(fileobj=raw)
    if file.codec == "bz2":
        return bz2.BZ2File(raw)
    if file.codec == "xz":
        return lzma.LZMAFile(raw)
    if file.codec == "zst":
        return io.BufferedReader(pa.CompressedInputStream(raw, "zstd"), _BLOCK_BYTES)
    return raw


def text_between(file: SourceFile, start: int, stop: int) -> bytes:
    """A part of a file's uncompressed bytes.

    Raises: UserError if the file has become shorter.
    """
    found = _plain_between(file, start, stop) if not file.codec else _after(file, start, stop)
    if len(found) != stop - start:
        raise UserError(f"data source {file.uri} changed while it was read")
    return found


def _plain_between(file: SourceFile, start: int, stop: int) -> bytes:
    filesystem, path = filesystem_of(file.uri)
    with io.BufferedReader(open_input(filesystem, path, file.uri)) as stream:
        stream.seek(start)
        found: bytes = stream.read(stop - start)
    return found


def _after(file: SourceFile, start: int, stop: int) -> bytes:
    parts, left = [], stop - start
    with open_text(file) as stream:
        while start > 0 and (skipped := len(stream.read(min(start, _BLOCK_BYTES)))):
            start -= skipped
        while left > 0 and (part := stream.read(left)):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def layout_of(file: SourceFile) -> str:
    """How a file's text is cut: jsonl, array or csv.

    Raises: UserError for text that is no UTF-8, is compressed without saying so, or is one object.
    """
    with open_text(file) as stream:
        head: bytes = stream.read(8)
        for magic, codec in _MAGIC.items():
            if head.startswith(magic):
                raise UserError(
                    f"data source {file.uri} is compressed ({codec}), which its name does not say: "
                    f"call it *.{file.format}.{codec}"
                )
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"data source {file.uri} is UTF-16: write it as UTF-8")
    if file.format == "csv":
        return "csv"
    with open_text(file) as stream:
        first, line = b"", 0
        while not first.strip() and (raw := stream.readline()):
            first, line = raw.removeprefix(b"\xef\xbb\xbf"), line + 1
        more = any(later.strip() for later in stream) if _is_whole(first) else True
    if first.lstrip().startswith(b"["):
        return "array" if file.format == "json" or not (more and _is_whole(first)) else "jsonl"
    if first.lstrip().startswith(b"{"):
        if not _is_whole(first) and _goes_on(first):
            raise UserError(
                f"data source {file.uri}, line {line}: a JSON object over several lines; write one "
                "object per line, or an array of objects"
            )
        if file.format == "json" and _is_whole(first) and not more:
            raise UserError(
                f"data source {file.uri} is a single JSON object, not rows; write an array of "
                "objects, or call one row in a line .jsonl"
            )
    return "jsonl"


def _is_whole(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _goes_on(text: bytes) -> bool:
    """Whether JSON is only begun at the end of a text."""
    try:
        json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        return error.pos >= len(text.decode("utf-8", "replace").rstrip())
    except (ValueError, RecursionError):
        pass
    return False


def records_of(layout: str, stream: Any, uri: str, line: int = 1, at: int = 0) -> Iterator[Record]:
    """Every row of a text.

    Args:
        layout: as `layout_of` says. line, at: where the text begins in its file. A CSV's header is
            its first record; an array's text begins behind its bracket.
    Raises: UserError for what makes the rest of the file unreadable.
    """
    if layout == "csv":
        return _csv_records(stream, uri, line, at)
    return (_array_records if layout == "array" else _lines)(stream, line, at)


def _lines(stream: Any, line: int, at: int) -> Iterator[Record]:
    for number, text in enumerate(stream, line):
        at += len(text)
        if text.strip():
            yield Record(number, at, number + 1, text)


def start_of_array(stream: Any) -> tuple[int, int]:
    """(bytes, line) at which an array's first element begins; the stream stands there then."""
    at, line = 0, 1
    while (character := stream.read(1)) not in (b"[", b""):
        at, line = at + 1, line + (character == b"\n")
    return at + 1, line


def _array_records(stream: Any, line: int, at: int) -> Iterator[Record]:
    """Elements of an array without its first bracket; the last record of a whole one has a fault
    of "end".
    """
    buffer, start, scan, depth, is_text = bytearray(), 0, 0, 0, False
    while block := stream.read(_BLOCK_BYTES):
        del buffer[:start]  # what is left stays where it is: an element may be many blocks long
        buffer += block
        scan, at, start = scan - start, at + start, 0
        while found := (_IN_TEXT if is_text else _OUTSIDE_TEXT).search(buffer, scan):
            mark, scan = found.group(), found.end()
            if is_text and mark == b"\\":
                if scan == len(buffer):  # what it escapes comes with the next block
                    scan -= 1
                    break
                scan += 1
            elif mark == b'"':
                is_text = not is_text
            elif mark in b"[{":
                depth += 1
            elif depth:
                depth -= mark in b"]}"
            else:
                text = bytes(buffer[start : found.start()])
                begins = line + text[: len(text) - len(text.lstrip())].count(b"\n")
                line += text.count(b"\n")
                start = scan
                if text.strip() or mark == b",":
                    yield Record(begins, at + scan, line, text)
                if mark == b"]":
                    rest = buffer[start:] + stream.read()
                    yield Record(line, at + scan, line, None, "more" if rest.strip() else "end")
                    return
        else:
            scan = len(buffer)
    if (rest := buffer[start:]).strip():
        line += rest[: len(rest) - len(rest.lstrip())].count(b"\n")
        yield Record(line, at + start, line, None, "cut")


def _csv_records(stream: Any, uri: str, line: int, at: int) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    read, is_utf8 = at, True

    def texts() -> Iterator[str]:
        nonlocal read, is_utf8
        for raw in stream:
            if read == 0:
                read, raw = len(raw), raw.removeprefix(b"\xef\xbb\xbf")
            else:
                read += len(raw)
            try:
                yield raw.decode()
            except UnicodeDecodeError:
                is_utf8 = False
                yield raw.decode("utf-8", "surrogateescape")

    reader = csv.reader(texts(), strict=True)
    while True:
        begins, is_utf8 = line + reader.line_num, True
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            said = str(error)
            if said == "unexpected end of data":
                said = "a quote opens there that nothing closes"
            raise UserError(
                f"data source {uri}, line {begins}: not readable as csv ({said})"
            ) from error
        if cells:
            fault = "" if is_utf8 else "the line is not valid UTF-8"
            yield Record(begins, read, line + reader.line_num, cells, fault)


def csv_header(record: Record, uri: str) -> tuple[str, ...]:
    """UserError for a header that does not name every column once."""
    cells = record.text
    if record.fault:
        raise UserError(f"data source {uri}, line {record.line}: the header is not valid UTF-8")
    again = next((cell for cell, number in Counter(cells).items() if number > 1), None)
    if again is not None:
        raise UserError(f"data source {uri}: two columns are called {again!r}")
    return tuple(cells)


def csv_values(
    record: Record, columns: Sequence[str], numbers: Sequence[str]
) -> tuple[dict[str, Any] | None, str]:
    """(cells by column, as they stand in the file; what is wrong instead).

    Args:
        numbers: columns that are scores; a cell that is a number becomes one.
    """
    if record.fault:
        return None, record.fault
    if len(record.text) != len(columns):
        return None, f"{len(record.text)} cells in a row, {len(columns)} in the header"
    values: dict[str, Any] = dict(zip(columns, record.text, strict=True))
    for name in numbers:
        if name in values:
            values[name] = _number(values[name])
    return values, ""


def _number(text: str) -> float | str:
    try:
        return text if "_" in text else float(text)
    except ValueError:
        return text


def json_values(record: Record) -> tuple[dict[str, Any] | None, str]:
    """(the object; what is wrong instead)."""
    try:
        value = json.loads(record.text)
    except RecursionError:
        return None, "the JSON is nested too deeply"
    except ValueError:
        return None, "the line is not a JSON object"
    return (value, "") if isinstance(value, dict) else (None, "the line is not a JSON object")


def place_of_fault(record: Record) -> str:
    """Line and column at which a record stops being JSON, from 1; its line where none is known."""
    text = record.text.rstrip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        before = text[: len(text) - len(text.lstrip())].count(b"\n")
        return f"{record.line - before + error.lineno - 1}:{error.colno}"
    except (ValueError, RecursionError):
        pass
    return str(record.line)


@contextmanager
def open_parquet(file: SourceFile) -> Iterator[pq.ParquetFile]:
    filesystem, path = filesystem_of(file.uri)
    if file.codec:
        with open_text(file) as stream:
            target: Any = pa.BufferReader(stream.read())
    else:
        target = open_input(filesystem, path, file.uri)
    with target, pq.ParquetFile(target) as opened:
        yield opened


def arrow_batches(file: SourceFile) -> Iterator[pa.RecordBatch]:
    """The batches of a file that save_to_disk wrote."""
    filesystem, path = filesystem_of(file.uri)
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    with (
        pa.memory_map(path) if is_local else open_input(filesystem, path, file.uri) as raw,
        pa.ipc.open_stream(raw) as reader,
    ):
        yield from reader
