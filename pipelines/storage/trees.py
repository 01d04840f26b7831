"""The files below a folder, and what a pattern of names means, for whoever lists files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import UserError
from pipelines.storage.object_stores import file_info

if TYPE_CHECKING:
    from pyarrow import fs

_WILDCARDS = "*?["
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass
class Tree:
    """Regular files below a folder by path, sorted, and what else was met.

    Attributes:
        passed_over: path -> why it is none, or is not looked into.
    """

    files: list[str] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)


def has_wildcard(text: str) -> bool:
    return any(character in text for character in _WILDCARDS)


def folder_of_pattern(pattern: str) -> str:
    """The folder below which all matches of a pattern lie."""
    first = min(i for character in _WILDCARDS if (i := pattern.find(character)) >= 0)
    return pattern[: pattern.rfind("/", 0, first)] or "/"


def name_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of paths: * and ? stay within a name, ** stands for any folders or none.

    Raises: UserError for ** beside other characters of a name.
    """
    from fsspec.utils import glob_translate

    try:
        return re.compile(glob_translate(pattern))
    except (ValueError, re.error) as error:
        raise UserError(
            f"pattern {pattern!r}: ** stands between slashes, for any folders (a/**/*.jsonl)"
        ) from error


def is_hidden(name: str) -> bool:
    """Names that tools keep for themselves, as the hub's library has it."""
    return name.startswith((".", "__"))


def special_kind(mode: int) -> str | None:
    """What a file is that is neither a regular file nor a folder; None for those."""
    return _KINDS.get(stat.S_IFMT(mode))


def tree_below(filesystem: fs.FileSystem, folder: str) -> Tree:
    """All files below a folder of any file system; hidden ones are passed over.

    Raises: UserError for a folder that cannot be listed.
    """
    from pyarrow import fs

    if isinstance(filesystem, fs.LocalFileSystem):
        return local_tree(folder)
    tree = Tree()
    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    for info in file_info(filesystem, selector):
        hidden = _hidden_part(folder, info.path, info.type == fs.FileType.File)
        if hidden is not None:
            tree.passed_over[hidden] = "hidden"
        elif info.type == fs.FileType.File:
            tree.files.append(info.path)
    tree.files.sort()
    return tree


def _hidden_part(folder: str, path: str, is_file: bool) -> str | None:
    at = folder.rstrip("/")
    for part in path.removeprefix(at).strip("/").split("/"):
        at = f"{at}/{part}"
        if is_hidden(part):
            return at if at == path and is_file else f"{at}/"
    return None


def local_tree(folder: str) -> Tree:
    """All files below a folder of the local disk; links are followed, into every folder once."""
    tree, root = Tree(), os.path.realpath(folder)
    seen: set[str] = set()
    real, linked = [folder], list[str]()  # folders of the tree itself come before linked ones
    while real or linked:
        directory = real.pop() if real else linked.pop(0)
        target = os.path.realpath(directory)
        if target in seen:
            tree.passed_over[f"{directory}/"] = "a link to a folder that is read already"
            continue
        if directory != folder and f"{root}/".startswith(f"{target.rstrip('/')}/"):
            tree.passed_over[f"{directory}/"] = "a link to a folder that holds this one"
            continue
        seen.add(target)
        try:
            with os.scandir(directory) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot list {directory}: {os.strerror(error.errno or 0)}") from error
        for entry in found:
            path = entry.path
            try:
                path.encode()
            except UnicodeEncodeError:
                shown = os.fsencode(path).decode("utf-8", "replace")
                tree.passed_over[shown] = "its name is not UTF-8"
                continue
            try:
                mode = entry.stat().st_mode
            except OSError:
                tree.passed_over[path] = "a link that leads nowhere"
                continue
            if is_hidden(entry.name):
                tree.passed_over[f"{path}/" if stat.S_ISDIR(mode) else path] = "hidden"
            elif stat.S_ISDIR(mode):
                (linked if entry.is_symlink() else real).append(path)
            elif (kind := special_kind(mode)) is not None:
                tree.passed_over[path] = kind
            else:
                tree.files.append(path)
    tree.files.sort()
    return tree


def links_to_others(files: Sequence[str]) -> dict[str, str]:
    """Local files that are links to others of them -> what they are.

    Of several links to a file elsewhere the first is none.
    """
    first: dict[str, str] = {}
    for file in sorted(files, key=lambda file: Path(file).is_symlink()):
        first.setdefault(os.path.realpath(file), file)
    return {
        file: f"the same file as {other}"
        for file in files
        if (other := first[os.path.realpath(file)]) != file
    }
