"""Python files that a model brings along (transformers' `trust_remote_code`): run only if their
hash is on a list.

The list is in the environment of whoever starts a command, not in the recipe: a recipe from
elsewhere cannot trust its own model. It holds hashes of the code, not names: what runs is what was
read, wherever the model lies.
"""

import hashlib
import json
import os
from pathlib import Path

from pipelines.errors import UserError

TRUSTED_CODE = "SPARSEPO_TRUSTED_CODE"
_CONFIGS = ("config.json", "tokenizer_config.json")


def may_run(directory: Path) -> bool:
    """What `trust_remote_code` is for this directory: True if it brings code and the code is on
    the list.
    """
    if not _entry_points(directory) or code_hash(directory) not in _listed():
        return False
    for name in _entry_points(directory):
        if "--" in name:
            raise UserError(
                f"model directory {directory}: its code ({name}) lies in another repository; copy "
                "its files into the directory"
            )
    return True


def refused_code(directory: Path) -> str | None:
    """Why a directory that brings code does not load, and what to do; None if it brings none or
    it may run.
    """
    if not _entry_points(directory) or may_run(directory):
        return None
    files = ", ".join(str(file.relative_to(directory)) for file in _files(directory)) or "elsewhere"
    return (
        f"it needs code of its own ({files}), which is not run; if you have read and trust it, set "
        f"{TRUSTED_CODE}={code_hash(directory)}"
    )


def code_hash(directory: Path) -> str:
    """sha256 over names and contents of a directory's Python files, hexadecimal."""
    digest = hashlib.sha256()
    for file in _files(directory):
        content = file.read_bytes()
        digest.update(
            f"{file.relative_to(directory).as_posix()}\0{len(content)}\0".encode() + content
        )
    return digest.hexdigest()


def _files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.py"))


def _entry_points(directory: Path) -> list[str]:
    """What the configurations name as their classes, `module.Class` or
    `repository--module.Class`.
    """
    found: list[str] = []
    for config in _CONFIGS:
        if (directory / config).is_file():
            named = json.loads((directory / config).read_text()).get("auto_map") or {}
            for value in named.values() if isinstance(named, dict) else [named]:
                found += [name for name in (value if isinstance(value, list) else [value]) if name]
    return found


def _listed() -> set[str]:
    return {entry for entry in os.environ.get(TRUSTED_CODE, "").replace(",", " ").split() if entry}
