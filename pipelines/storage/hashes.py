"""Hashes of values and of local files."""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.storage.json_texts import parse_json

# What this program keeps for later runs of this machine: hashes, facts, models from object stores.
CACHE = Path(os.environ.get("SPARSEPO_CACHE", Path.home() / ".cache" / "sparsepo"))
_HASHES = "file_hashes.json"
# A file that changed so lately may change again without another time: clocks tick in up to 2 s.
_SETTLED_NS = 2_000_000_000


def file_hash(file: Path) -> str:
    """sha256 of a local file.

    It is remembered across runs for an unchanged path, size and times. The times are those of the
    content and of the entry (mtime, ctime): a restored mtime hides no change.
    """
    path, state = str(file.resolve()), file_state(file)
    found = _hashes().get(path)
    if isinstance(found, list) and found[:-2] == state and found[-1] == _check(path, found[:-1]):
        return str(found[-2])
    started = time.time_ns()
    value = _sha256(file)
    if started - max(state[1:]) > _SETTLED_NS and file_state(file) == state:
        entry = [*state, value]
        write_whole(CACHE / _HASHES, json.dumps({**_hashes(), path: [*entry, _check(path, entry)]}))
    return value


def hashes_of_written(files: Sequence[Path], is_local: bool) -> list[str]:
    """sha256 of files that this process has just written, while they are forced to the disk.

    Neither waits for the other: one takes a processor, the other the disk.

    Args:
        is_local: whether they stay on this disk; those that will be uploaded are not forced to it.
    """
    with ThreadPoolExecutor(max(1, 2 * len(files)), thread_name_prefix="written") as pool:
        hashes = [pool.submit(_sha256, file) for file in files]
        forced = [pool.submit(fsync, file) for file in (files if is_local else ())]
        for each in forced:
            each.result()
        return [each.result() for each in hashes]


def fsync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_state(file: Path) -> list[int]:
    """Size and times of a file, in bytes and nanoseconds: another state may be another content."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def write_whole(file: Path, text: str) -> None:
    """Put a file of the cache there, whole or not at all.

    Nothing happens where the cache cannot be written: it costs the same work again next time.
    """
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, prefix=".tmp-", delete=False
        ) as stream:
            temporary = Path(stream.name)
            try:
                stream.write(text)
                stream.close()
                temporary.replace(file)
            except OSError:
                temporary.unlink(missing_ok=True)


def _check(path: str, entry: list[Any]) -> str:
    """Of an entry: another one, or of another file, is none."""
    return digest([path, *entry])[:8]


def _hashes() -> dict[str, Any]:
    try:
        found = parse_json((CACHE / _HASHES).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def digest(value: Any) -> str:
    """sha256 of a JSON value, 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
