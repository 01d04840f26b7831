"""Hashes of values and of local files."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

# What this program keeps for later runs of this machine: hashes, models from object stores.
CACHE = Path(os.environ.get("SPARSEPO_CACHE", Path.home() / ".cache" / "sparsepo"))
_HASH_CACHE = CACHE / "hashes.json"


def file_hash(file: Path) -> str:
    """sha256 of a local file.

    It is remembered across runs for an unchanged path, size and modification time.
    """
    stat = file.stat()
    key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    try:
        cache = json.loads(_HASH_CACHE.read_text())
    except (OSError, ValueError):
        cache = {}
    if key not in cache:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
        cache[key] = digest.hexdigest()
        try:
            _HASH_CACHE.parent.mkdir(parents=True, exist_ok=True)
            temporary = _HASH_CACHE.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(cache))
            temporary.replace(_HASH_CACHE)
        except OSError:
            pass  # a read-only home only costs the hash again next time
    value: str = cache[key]
    return value


def digest(value: Any) -> str:
    """sha256 of a JSON value, 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
