"""Files of ours as they are read again: whole, or one line that names file and cure."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.errors import DamagedFile, UserError
from pipelines.storage.records import (
    parse_json,
    read_lines,
    read_list,
    read_parquet,
    read_record,
    write_record,
)
from pipelines.storage.store import RunStore

VALUE = {"steps": 4, "named": {"a": [1, 0.1, None, "ü"], "b": float("inf")}, "on": True}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path))


def said(store: RunStore, read: Any, *given: Any, **more: Any) -> str:
    with pytest.raises(DamagedFile) as caught:
        read(store, *given, **more)
    line = str(caught.value)
    assert line.startswith(f"{store.root}/file is damaged: ") and "\n" not in line
    assert line.endswith("; remove it and run the same command again")
    return line.removeprefix(f"{store.root}/file is damaged: ").rpartition("; ")[0]


def test_a_record_is_what_was_written(store: RunStore) -> None:
    """Keys that are numbers are texts in JSON: the seal is of what is read."""
    write_record(store, "file", VALUE | {"1": 2})
    assert read_record(store, "file", {"steps": int, "on": bool}) == VALUE | {"1": 2}
    write_record(store, "file", {1: 2})  # type: ignore[dict-item]
    assert read_record(store, "file") == {"1": 2}


def test_every_changed_byte_of_a_record_is_found(store: RunStore) -> None:
    """But for those that say the same: white space, a digit's other form, the seal's own name."""
    write_record(store, "file", VALUE)
    whole, found = store.read_bytes("file"), 0
    for place in range(len(whole)):
        store.write_bytes("file", whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            value = read_record(store, "file", {"steps": int})
        except UserError:
            found += 1
        else:
            left = {key: inner for key, inner in value.items() if key in VALUE}
            assert left == VALUE, whole[place : place + 10]
    assert found > 0.8 * len(whole)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "it is empty"),
        ('{"steps": 4', "it is not JSON"),
        (b'{"steps": "\xff"}', "it is not UTF-8"),
        ("[" * 100_000 + "]" * 100_000, "it is not JSON (its values are nested too deep)"),
        ("[1]", "it holds a list, not an object"),
        ("null", "it holds null, not an object"),
        ("{}", "steps is missing"),
        ('{"steps": "4"}', "steps is a text"),
        ('{"steps": true}', "steps is true"),
        ('{"steps": 5, "seal": "0"}', "its checksum does not fit"),
        ('{"steps": 5, "seal": ["0"]}', "its checksum does not fit"),
        ("<!DOCTYPE html><html>", "it is a web page"),
    ],
)
def test_a_damaged_record_says_why(store: RunStore, content: str | bytes, why: str) -> None:
    store.write_bytes("file", content if isinstance(content, bytes) else content.encode())
    assert said(store, read_record, "file", {"steps": int}).startswith(why)


def test_a_record_of_an_earlier_version_has_no_seal(store: RunStore) -> None:
    store.write_json("file", {"steps": 4})
    assert read_record(store, "file", {"steps": int}) == {"steps": 4}


def test_what_is_no_file_is_damage_and_what_is_not_there_is_none(store: RunStore) -> None:
    """A FIFO would wait for a writer for ever."""
    with pytest.raises(FileNotFoundError):
        read_record(store, "file")
    place = store.local_path("file")
    os.mkfifo(place)
    assert said(store, read_record, "file") == "it is a FIFO"
    place.unlink()
    place.mkdir()
    assert "is a directory" in said(store, read_record, "file").lower()
    assert "is a directory" in said(store, read_parquet, "file").lower()


def test_lines_and_lists(store: RunStore) -> None:
    store.write_bytes("file", b'{"step": 1}\n{"step": 2}\n')
    hash_ = store.checksum("file")
    rows = [{"step": 1}, {"step": 2}]
    assert read_lines(store, "file", {"step": int}, hash_) == rows
    assert read_lines(store, "file", {"step": int}) == rows
    store.write_bytes("file", b'{"step": 1}\n{"step": 3}\n')
    assert said(store, read_lines, "file", None, hash_) == "its sha256 is not the manifest's"
    store.write_bytes("file", b'{"step": 1}\n{"step": 2}')
    assert said(store, read_lines, "file") == "it is cut off"
    store.write_bytes("file", b"")
    assert said(store, read_lines, "file") == "it is empty"
    assert read_lines(store, "file", may_be_empty=True) == []
    store.write_bytes("file", b'{"step": 1}\n[2]\n')
    with pytest.raises(DamagedFile, match="file:2 is damaged: it holds a list, not an object"):
        read_lines(store, "file")
    store.write_json("file", [1, 2])
    assert read_list(store, "file", store.checksum("file")) == [1, 2]
    assert said(store, read_list, "file", "0") == "its sha256 is not the manifest's"
    store.write_json("file", {})
    assert said(store, read_list, "file") == "it holds an object, not a list"


def test_tables(store: RunStore) -> None:
    table = pa.table({"a": [1, 2], "b": ["x", "y"]})
    store.write_table("file", table)
    schema = pa.schema([("a", pa.int64()), ("c", pa.string())])
    assert read_parquet(store, "file", ["a"], schema).equals(table.select(["a"]))
    wrong = pa.schema([("a", pa.string())])
    found = said(store, read_parquet, "file", None, wrong)
    assert found == "a has the type int64, not string"
    found = said(store, read_parquet, "file", ["a", "c"], schema, needed=["c"])
    assert found == "it has no column c"
    store.write_bytes("file", store.read_bytes("file")[:-20])
    assert "Parquet" in said(store, read_parquet, "file")


def test_json_that_is_nested_too_deep_is_a_wrong_value() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 100_000)
    assert parse_json(json.dumps(VALUE)) == VALUE
