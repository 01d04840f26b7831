"""Python files that a model brings along (transformers' `trust_remote_code`): run by hash only.

The hashes are in the environment of whoever starts a command, not in the recipe: a recipe from
elsewhere cannot trust its own model. They cover the code and the configurations that choose it:
what runs is what was read.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.errors import UserError
from pipelines.storage import parse_json, told_where

TRUSTED_CODE = "SPARSEPO_TRUSTED_CODE"
# A configuration may name another file of this form in its place (`configuration_files`).
_CONFIGS = "*config*.json"
# What saving a model always writes anew; none of it chooses code.
_WRITTEN_ANEW = ("architectures", "dtype", "torch_dtype", "transformers_version")
_DATA = ("*.json", "*.txt", "*.model", "*.jinja")
_PLAIN_NAME = re.compile(r"[^\W\d]\w*\.[^\W\d]\w*", re.ASCII)


def may_run(directory: Path) -> bool:
    """Whether the directory brings code and the code is on the list.

    Raises: UserError if it is on the list, but names code that its hash does not cover.
    """
    return _trusted(directory) is not None


def trusted_copy(directory: Path, cache: Path) -> Path | None:
    """The place to load a directory from if its code may run; None if it may not.

    It is a copy of what was hashed. Files may change between hashing and loading; the copy holds
    the hashed bytes, and links to the data beside them.

    Args:
        cache: a folder that nobody else writes to.
    Raises: as `may_run`.
    """
    files = _trusted(directory)
    if files is None:
        return None
    beside = [
        p
        for p in sorted(directory.iterdir())
        if p.is_file() and p.name not in files and p.suffix != ".py"
    ]
    described = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in beside]
    key = hashlib.sha256(
        json.dumps([str(directory.resolve()), _hash(files), described]).encode()
    ).hexdigest()[:32]
    target = cache / "code" / key / directory.resolve().name
    if not target.is_dir() or code_hash(target) != _hash(files):
        with told_where(target):
            target.parent.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent.parent, prefix=".tmp-") as staging:
                copy = Path(staging) / key / target.name
                copy.mkdir(parents=True)
                for name, content in files.items():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    (copy / name).write_bytes(content)
                for path in beside:
                    (copy / path.name).symlink_to(path.resolve())
                shutil.rmtree(target.parent, ignore_errors=True)
                try:
                    copy.parent.rename(target.parent)
                except OSError as error:  # another process was faster
                    if not target.is_dir() or code_hash(target) != _hash(files):
                        raise UserError(
                            f"model directory {directory}: its code cannot be copied to {target} "
                            f"({error})"
                        ) from error
    return target


def refused_code(directory: Path) -> str | None:
    """Why a directory with code does not load, and what to do.

    None without code or if it may run.
    """
    files = _read(directory)
    if not _entry_points(files) or may_run(directory):
        return None
    problem = _problem(directory, files)
    if problem is not None:
        return f"it needs code of its own, which is not run: {problem}"
    names = ", ".join(name for name in files if name.endswith(".py"))
    return (
        f"it needs code of its own ({names}), which is not run; if you have read and trust it, set "
        f"{TRUSTED_CODE}={_hash(files)}"
    )


def refuse_foreign_code(directory: Path) -> None:
    """UserError if a configuration wants code that no hash covers.

    Transformers or peft would run it: compiled kernels of a repository
    (`attn_implementation: owner/name`), and the Python module that an adapter lets peft import
    (`megatron_core`).
    """
    for name, content in _read(directory).items():
        if not name.endswith(".json"):
            continue
        for value in _named(
            _config(name, content), ("attn_implementation", "experts_implementation")
        ):
            if isinstance(value, str) and "/" in value:
                raise UserError(
                    f"model directory {directory}: {name} wants kernels of {value!r}; code of "
                    "another repository is not run"
                )
        for value in (
            _named(_config(name, content), ("megatron_core",))
            if name == "adapter_config.json"
            else ()
        ):
            if value != "megatron.core":
                raise UserError(
                    f"adapter {directory}: {name} wants the module megatron_core = {value!r}; "
                    "only 'megatron.core' is imported"
                )


def refuse_other_tokenizer(base: Path, tokenizer: Path) -> None:
    """UserError if a model with code of its own is trained with the tokenizer of another directory.

    Its hash covers its tokenizer's configuration: with another one the trained model would not be
    trusted.
    """
    if tokenizer != base and may_run(base):
        raise UserError(
            f"the tokenizer of {tokenizer} with the model of {base}, which has code of its own: "
            "its trust covers its own tokenizer alone; put the tokenizer's files into the model's "
            "directory"
        )


def code_hash(directory: Path) -> str:
    """sha256 over names and contents of a directory's Python files and configurations, in hex."""
    return _hash(_read(directory))


def publish_code(directory: Path, folder: Path) -> None:
    """Give a folder with trained weights all of the directory but its weights.

    The hash is the same. Of config.json the folder keeps what was written anew, such as the dtype.
    """
    written = _config("config.json", (folder / "config.json").read_bytes())
    for name in _read(folder):
        (folder / name).unlink()
    for name, content in _read(directory).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    kept = {
        key: value
        for key, value in _config("config.json", (directory / "config.json").read_bytes()).items()
        if key not in _WRITTEN_ANEW
    }
    kept |= {key: written[key] for key in _WRITTEN_ANEW if key in written}
    (folder / "config.json").write_text(json.dumps(kept, indent=2) + "\n")
    for path in sorted(directory.iterdir()):
        is_data = any(fnmatch(path.name, pattern) for pattern in _DATA) and not fnmatch(
            path.name, "*.index.json"
        )
        if is_data and path.is_file() and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def _trusted(directory: Path) -> dict[str, bytes] | None:
    """The files that may run and their configurations; None without code or if it is not listed."""
    files = _read(directory)
    if not _entry_points(files) or _hash(files) not in _listed():
        return None
    problem = _problem(directory, files)
    if problem is not None:
        raise UserError(f"model directory {directory}: {problem}")
    return files


def _read(directory: Path) -> dict[str, bytes]:
    """Contents by relative name: Python files of every folder, configurations on top.

    Links to folders are not followed.
    """
    found = {}
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if path.is_file() and (
                name.endswith(".py") or (path.parent == directory and fnmatch(name, _CONFIGS))
            ):
                found[path.relative_to(directory).as_posix()] = path.read_bytes()
    return found


def _hash(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        if name == "config.json":
            kept = {
                key: value
                for key, value in _config(name, content).items()
                if key not in _WRITTEN_ANEW
            }
            content = json.dumps(kept, sort_keys=True).encode()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _config(name: str, content: bytes) -> dict[str, Any]:
    try:
        loaded = parse_json(content)
    except ValueError as error:
        raise UserError(f"{name} of the model is not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{name} of the model is not a JSON object")
    return loaded


def _entry_points(files: dict[str, bytes]) -> list[object]:
    """What the configurations name as their classes (`auto_map`), at any depth."""
    return [
        entry
        for name, content in files.items()
        if name.endswith(".json")
        for entry in _named(_config(name, content), ("auto_map",))
    ]


def _named(value: object, keys: tuple[str, ...], inside: bool = False) -> Iterator[object]:
    """The values under keys that end in one of `keys`, lists and objects opened."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _named(part, keys, inside or key.endswith(keys))
    elif isinstance(value, list):
        for part in value:
            yield from _named(part, keys, inside)
    elif inside and value is not None:
        yield value


def _problem(directory: Path, files: dict[str, bytes]) -> str | None:
    """What the directory runs beyond the hashed files, in words; None if nothing."""
    for entry in _entry_points(files):
        if isinstance(entry, str) and "--" in entry:
            return (
                f"its code ({entry}) lies in another repository; copy its files into the directory"
            )
        if not isinstance(entry, str) or not _PLAIN_NAME.fullmatch(entry):
            return (
                f"auto_map names {entry!r}; it must be module.Class with a module in the directory "
                "itself"
            )
        if f"{entry.partition('.')[0]}.py" not in files:
            return (
                f"auto_map names {entry!r}, but the directory has no file "
                f"{entry.partition('.')[0]}.py"
            )
    for folder, folders, _ in os.walk(directory):
        for linked in (Path(folder) / name for name in folders):
            if linked.is_symlink():
                return (
                    f"its folder {linked.relative_to(directory)} is a link; what lies behind it is "
                    "not hashed"
                )
    for name, content in files.items():
        if name.endswith(".py"):
            if not _is_inside(directory, directory / name):
                return (
                    f"its file {name} is a link to {(directory / name).resolve()}, outside the "
                    "directory; copy it there"
                )
            for imported in _relative_imports(name, content):
                if imported not in files:
                    return f"its file {name} imports {imported}, which is not in the directory"
    return None


def _is_inside(directory: Path, file: Path) -> bool:
    """Whether a file lies in the directory or, for a snapshot of the hub cache, in its store."""
    root, real = directory.resolve(), file.resolve()
    return real.is_relative_to(root) or (
        root.parent.name == "snapshots" and real.parent == root.parent.parent / "blobs"
    )


def _relative_imports(name: str, content: bytes) -> Iterator[str]:
    """Files that a file's relative imports name; `..` stays where they leave the directory."""
    try:
        tree = ast.parse(content)
    except SyntaxError:
        return  # it does not run either
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = PurePosixPath(name).parent
            for _ in range(node.level - 1):
                folder = folder.parent if folder.name not in ("", "..") else folder / ".."
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (f"{folder / module.replace('.', '/')}.py" for module in modules)


def _listed() -> set[str]:
    return {entry for entry in os.environ.get(TRUSTED_CODE, "").replace(",", " ").split() if entry}
