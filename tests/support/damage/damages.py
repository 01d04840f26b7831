"""Ways to damage the content of a file, by its format."""

import io
import json
import re
import struct
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes], bytes]
FOLDER = "a folder in its place"  # what no content can be


def _flipped(content: bytes) -> bytes:
    """One bit in the middle of the file, of a digit if there is one: the text stays well formed."""
    at = len(content) // 2
    digits = [m.start() for m in re.finditer(rb"(?<=[ :\[])[1-7]", content)] if content else []
    if digits and not content.startswith((b"PAR1", b"\x1f\x8b")):
        at = min(digits, key=lambda place: abs(place - at))
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


ANY: dict[str, Damage] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: max(1, len(content) * 2 // 3)],
    "garbage": lambda content: bytes((7 * i + 130) % 256 for i in range(max(64, len(content)))),
    "a flipped bit": _flipped,
    "a tail of NUL": lambda content: content[: len(content) // 2].ljust(len(content), b"\0"),
}


def _other_types(value: Any) -> Any:
    """The same keys, and values of other types everywhere."""
    if isinstance(value, dict):
        return {key: _other_types(inner) for key, inner in value.items()} or [1]
    if isinstance(value, list):
        return {"0": value[:1]}
    if isinstance(value, bool) or value is None:
        return "yes"
    return [value] if isinstance(value, str) else {"value": value}


def _json(change: Callable[[Any], Any]) -> Damage:
    return lambda content: json.dumps(change(json.loads(content))).encode()


def _lines(change: Callable[[Any], Any]) -> Damage:
    return lambda content: b"".join(
        json.dumps(change(json.loads(line))).encode() + b"\n" for line in content.splitlines()
    )


def _yaml(change: Callable[[Any], Any]) -> Damage:
    import yaml

    return lambda content: yaml.safe_dump(change(yaml.safe_load(content))).encode()


def _nested(content: bytes) -> bytes:
    return b"[" * 100_000 + b"]" * 100_000


_OF_VALUES: dict[str, Callable[[Any], Any]] = {
    "another type": lambda value: [value],
    "a number": lambda value: 7,
    "null": lambda value: None,
    "other types inside": _other_types,
    "no key": lambda value: {} if isinstance(value, dict) else [],
}
JSON = {**ANY, "nested": _nested} | {name: _json(change) for name, change in _OF_VALUES.items()}
LINES = {**ANY, "nested": _nested} | {name: _lines(change) for name, change in _OF_VALUES.items()}
YAML = ANY | {name: _yaml(change) for name, change in _OF_VALUES.items()}


def _other_table(content: bytes) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = io.BytesIO()
    pq.write_table(pa.table({"something": ["else"]}), target)
    return target.getvalue()


def _other_values(content: bytes) -> bytes:
    """The same columns, as texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, target = pq.read_table(io.BytesIO(content)), io.BytesIO()
    texts = {name: pa.array(map(str, table[name].to_pylist())) for name in table.column_names}
    pq.write_table(pa.table(texts), target)
    return target.getvalue()


PARQUET = ANY | {"another table": _other_table, "other types inside": _other_values}


def _header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Another header of safetensors, before the same data."""

    def damaged(content: bytes) -> bytes:
        (size,) = struct.unpack("<Q", content[:8])
        header = json.dumps(change(json.loads(content[8 : 8 + size]))).encode()
        return struct.pack("<Q", len(header)) + header + content[8 + size :]

    return damaged


def _first(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(v for k, v in sorted(header.items()) if k != "__metadata__")
    return found


def _lying(**values: Any) -> Damage:
    def change(header: dict[str, Any]) -> dict[str, Any]:
        _first(header).update(values)
        return header

    return _header(change)


def _long(content: bytes) -> bytes:
    return struct.pack("<Q", 2**62) + content[8:]


SAFETENSORS = ANY | {
    "a header of 4 EiB": _long,
    "a lying shape": _lying(shape=[3, 5]),
    "a shape below zero": _lying(shape=[-1, 4]),
    "a lying offset": _lying(data_offsets=[0, 2**40]),
    "an unknown dtype": _lying(dtype="F99"),
    "a header of another type": _header(lambda header: [header]),
    "a tensor less": _header(lambda h: {k: h[k] for k in sorted(h)[1:]} if len(h) > 1 else {}),
}
TEXT = ANY
