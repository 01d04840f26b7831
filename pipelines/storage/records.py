"""Files of ours as they are read again: what was written, or one line that names file and cure.

A record is a JSON object with a seal, a hash of all else in it: a changed value is found whatever
its place and type. A record without a seal was written by an earlier version, or by hand; of it the
fields that the reader needs are looked at. JSON lines and Parquet have no place for a seal: their
hashes stand in the manifest of their stage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.errors import DamagedFile
from pipelines.storage.hashes import digest
from pipelines.storage.json_texts import parse_json
from pipelines.storage.store import RunStore
from pipelines.storage.trees import special_kind

if TYPE_CHECKING:
    import pyarrow as pa

SEAL = "seal"
AGAIN = "remove it and run the same command again"
Fields = Mapping[str, type | tuple[type, ...]]
_TYPES = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}


def damaged(store: RunStore, path: str, why: str, cure: str = AGAIN) -> DamagedFile:
    return DamagedFile(f"{store.root}/{path} is damaged: {why}; {cure}")


def read_whole(store: RunStore, path: str, cure: str = AGAIN) -> bytes:
    """The bytes of a file.

    Raises: FileNotFoundError; DamagedFile for a folder in its place, or a disk that cannot read it.
    """
    try:
        if store.is_local:
            mode = store.trying(lambda: store.local_path(path).stat().st_mode, path)
            if kind := special_kind(mode):
                raise damaged(store, path, f"it is {kind}", cure)
        return store.read_bytes(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise damaged(store, path, _said(error), cure) from error


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its seal; the order of its keys stays."""
    plain = json.loads(json.dumps(value))  # as it will be read
    return {**plain, SEAL: digest(plain)}


def write_record(store: RunStore, path: str, value: Mapping[str, Any]) -> None:
    """Publish a JSON object with its seal, for people too: its keys are sorted."""
    store.write_json(path, sealed(value))


def read_record(
    store: RunStore, path: str, fields: Fields | None = None, cure: str = AGAIN
) -> dict[str, Any]:
    """What `write_record` wrote.

    Args:
        fields: that the reader needs, with their types. cure: what a user can do if it is damaged.
    Raises: FileNotFoundError; DamagedFile if it is not what was written.
    """
    value = _value_of(store, path, read_whole(store, path, cure), cure)
    return _checked(store, path, value, fields, cure)


def _checked(
    store: RunStore, path: str, value: Any, fields: Fields | None, cure: str
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise damaged(store, path, f"it holds {_shown(value)}, not an object", cure)
    seal = value.pop(SEAL, None)
    if seal is not None and seal != digest(value):
        raise damaged(store, path, "its checksum does not fit", cure)
    for name, types in (fields or {}).items():
        if name not in value:
            raise damaged(store, path, f"{name} is missing", cure)
        is_flag = isinstance(value[name], bool)
        if not isinstance(value[name], types) or (is_flag and bool not in _tuple(types)):
            raise damaged(store, path, f"{name} is {_shown(value[name])}", cure)
    return value


def _value_of(store: RunStore, path: str, content: bytes, cure: str) -> Any:
    try:
        return parse_json(content)
    except UnicodeDecodeError as error:
        raise damaged(store, path, "it is not UTF-8", cure) from error
    except ValueError as error:
        why = "it is empty" if not content else f"it is not JSON ({error})"
        if content.lstrip()[:9].lower().startswith((b"<html", b"<!doctype")):
            why = "it is a web page: is what answers there the store itself (AWS_ENDPOINT_URL)?"
        raise damaged(store, path, why, cure) from error


def read_list(store: RunStore, path: str, hash_: str | None = None, cure: str = AGAIN) -> list[Any]:
    """A JSON list, compared with the sha256 of the file where that is known."""
    content = _compared(store, path, hash_, cure)
    value = _value_of(store, path, content, cure)
    if not isinstance(value, list):
        raise damaged(store, path, f"it holds {_shown(value)}, not a list", cure)
    return value


def read_lines(
    store: RunStore,
    path: str,
    fields: Fields | None = None,
    hash_: str | None = None,
    cure: str = AGAIN,
    may_be_empty: bool = False,
) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Args:
        fields: of every line. hash_: sha256 of the file, if it is known; else may_be_empty says
            whether there may be no line.
    Raises: FileNotFoundError; DamagedFile if it is not what was written.
    """
    content = _compared(store, path, hash_, cure)
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        named = f"{path}:{number}"
        found.append(_checked(store, named, _value_of(store, named, line, cure), fields, cure))
    if hash_ is None and not content.endswith(b"\n") and (found or not may_be_empty):
        raise damaged(store, path, "it is cut off" if found else "it is empty", cure)
    return found


def read_listed(store: RunStore, path: str, hash_: str | None, cure: str = AGAIN) -> bytes:
    """The bytes of a file that a manifest lists with this sha256.

    Raises: DamagedFile if it is gone, or another one than was written.
    """
    try:
        content = read_whole(store, path, cure)
    except FileNotFoundError:
        raise damaged(store, path, "it is gone", cure) from None
    _compare(store, path, content, hash_, cure)
    return content


def _compared(store: RunStore, path: str, hash_: str | None, cure: str) -> bytes:
    content = read_whole(store, path, cure)
    if hash_ is not None:
        _compare(store, path, content, hash_, cure)
    return content


def _compare(store: RunStore, path: str, content: bytes, hash_: str | None, cure: str) -> None:
    if hashlib.sha256(content).hexdigest() != hash_:
        raise damaged(store, path, "its sha256 is not the manifest's", cure)


def read_parquet(
    store: RunStore,
    path: str,
    columns: list[str] | None = None,
    schema: pa.Schema | None = None,
    cure: str = AGAIN,
    needed: Sequence[str] = (),
) -> pa.Table:
    """A table, or the named columns of it.

    Args:
        schema: the types that columns of these names must have; they need not be there.
        needed: columns that must.
    Raises: FileNotFoundError; DamagedFile if it is no such table.
    """
    import pyarrow as pa

    try:
        table = store.read_table(path, columns)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise damaged(store, path, _said(error), cure) from error
    if missing := [name for name in needed if name not in table.column_names]:
        raise damaged(store, path, f"it has no column {missing[0]}", cure)
    for name in table.column_names:
        if schema is not None and name in schema.names:
            found, wanted = table.schema.field(name).type, schema.field(name).type
            if found != wanted:
                raise damaged(store, path, f"{name} has the type {found}, not {wanted}", cure)
    return table


def _tuple(types: type | tuple[type, ...]) -> tuple[type, ...]:
    return types if isinstance(types, tuple) else (types,)


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _TYPES.get(type(value), type(value).__name__)
