"""Which files a data source is made of, and which of those there are left out.

Chunks, fingerprints and plans take this one listing, on a local disk as on an object store.
"""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from pipelines.errors import UserError
from pipelines.pairs.snapshots import CARD, DESCRIPTIONS, Layout, declared_layout, saved_splits
from pipelines.pairs.split_files import chosen_split, files_of_split, split_names
from pipelines.recipe import Source
from pipelines.storage import (
    Tree,
    file_info,
    filesystem_of,
    folder_of_pattern,
    has_wildcard,
    links_to_others,
    name_pattern,
    special_kind,
    tree_below,
)

_FORMATS = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "json",
    "csv": "csv",
    "parquet": "parquet",
}
_CODECS = {"gz": "gz", "gzip": "gz", "zst": "zst", "zstd": "zst", "bz2": "bz2", "xz": "xz"}
READ = "jsonl, json, csv and parquet, each also gz, zst, bz2 or xz"
_UNREAD = "no format that is read"
_OF_SAVED = "of save_to_disk: name its folder in path"
_SHOWN = 8


@dataclass(frozen=True)
class SourceFile:
    """A file and how it is read.

    Attributes:
        format: jsonl, json, csv, parquet or arrow. codec: its compression; "" for none.
    """

    uri: str
    format: str
    codec: str = ""


@dataclass(frozen=True)
class SourceFiles:
    """A source's files in the order of their rows.

    Attributes:
        left_out: path -> why, of files that lie among them and are not read.
    """

    read: Sequence[SourceFile]
    left_out: dict[str, str]

    def warning(self, source: Source, elsewhere: Collection[str] = ()) -> str | None:
        """One line that names what is left out; None if nothing is.

        Args:
            elsewhere: files that another source reads.
        """
        named = {path: why for path, why in self.left_out.items() if path not in elsewhere}
        return f"data source {source.path!r} leaves out {_listed(source, named)}" if named else None


def files_of(source: Source) -> SourceFiles | None:
    """The files of a local or object-store source's split; None if its path names nothing there.

    Raises: UserError for a split that the files do not have or must be told apart by, for a subset
        or data_dir that files cannot follow, for what is no regular file, and where nothing can be
        read.
    """
    if "\0" in source.path:
        raise UserError(f"data source {_short(source.path)}: no file can be called so")
    try:
        filesystem, path = filesystem_of(source.path)
        path.encode()
        found = _found(filesystem, path, source)
    except (OSError, ValueError) as error:  # a name that is too long, links in a circle, \0
        raise UserError(f"data source {_short(source.path)}: {_reason(error)}") from error
    if found is None:
        return None
    if not isinstance(filesystem, fs.LocalFileSystem):
        prefix = source.path.split("://")[0] + "://"
        found = SourceFiles(
            [SourceFile(prefix + f.uri, f.format, f.codec) for f in found.read],
            {prefix + path: why for path, why in found.left_out.items()},
        )
        return found
    again = links_to_others([file.uri for file in found.read])
    for file in found.read:
        if not os.access(file.uri, os.R_OK):
            raise UserError(f"data source {source.path!r}: no permission to read {file.uri}")
    return SourceFiles(
        [file for file in found.read if file.uri not in again], {**found.left_out, **again}
    )


def _found(filesystem: fs.FileSystem, path: str, source: Source) -> SourceFiles | None:
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    info = file_info(filesystem, path)
    if is_local and os.path.lexists(path) and not Path(path).is_dir():
        kind = special_kind(Path(path).stat().st_mode)
        if kind is not None:
            raise UserError(f"data source {path!r} is {kind}: only files and folders are read")
    if source.format == "huggingface" and not (
        info.type == fs.FileType.Directory and saved_splits(filesystem, path, source)
    ):
        return None
    if info.type == fs.FileType.File:
        _refuse_ignored(source, ("subset", "data_dir"))
        read, _ = _recognised([path], source, is_named=True)
        return _of_split(source, path, read, {})
    if info.type == fs.FileType.Directory:
        return _in_folder(filesystem, path.rstrip("/"), source)
    if not has_wildcard(path):
        return None
    folder, matches = folder_of_pattern(path), name_pattern(path)
    if file_info(filesystem, folder).type != fs.FileType.Directory:
        return None
    tree = _matching(tree_below(filesystem, folder), "", [matches])
    if not tree.files and not tree.passed_over:
        return None
    _refuse_ignored(source, ("subset", "data_dir"))
    read, unread = _recognised(tree.files, source, takes_any=True)
    return _of_split(source, folder, read, {**tree.passed_over, **unread})


def _matching(tree: Tree, root: str, patterns: Sequence[re.Pattern[str]]) -> Tree:
    """The part of a tree that one of the patterns matches.

    Args:
        root: what the patterns leave out of a path's beginning.
    """

    def is_meant(path: str) -> bool:
        return any(pattern.match(path.removeprefix(root)) for pattern in patterns)

    return Tree(
        [path for path in tree.files if is_meant(path)],
        {path: why for path, why in tree.passed_over.items() if is_meant(path)},
    )


def _in_folder(filesystem: fs.FileSystem, root: str, source: Source) -> SourceFiles | None:
    if (saved := saved_splits(filesystem, root, source)) is not None:
        _refuse_ignored(source, ("subset", "data_dir"))
        return _saved(saved, source)
    layout = declared_layout(filesystem, root, source)
    if layout is None:
        _refuse_ignored(source, ("subset",))
        below = f"{root}/{source.data_dir.strip('/')}" if source.data_dir else root
    elif layout.folder is None:
        _refuse_ignored(source, ("data_dir",))
        return _declared(tree_below(filesystem, root), root, layout, source)
    else:
        _refuse_ignored(source, ("data_dir",))
        below = f"{root}/{layout.folder}".rstrip("/")
    if below != root and (saved := saved_splits(filesystem, below, source)) is not None:
        return _saved(saved, source)
    if file_info(filesystem, below).type != fs.FileType.Directory:
        return None
    tree = tree_below(filesystem, below)
    read, unread = _recognised(tree.files, source)
    return _of_split(source, below, read, {**tree.passed_over, **unread})


def _saved(splits: dict[str, list[str]], source: Source) -> SourceFiles:
    wanted = chosen_split(source, {name: (files or [name])[0] for name, files in splits.items()})
    return SourceFiles(
        [SourceFile(file, "arrow") for name in wanted for file in splits[name]],
        {file: _of(name) for name in splits if name not in wanted for file in splits[name]},
    )


def _declared(tree: Tree, root: str, layout: Layout, source: Source) -> SourceFiles:
    """The files of a snapshot whose configs name them."""
    files: dict[str, list[str]] = {}
    for split, patterns in layout.splits.items():
        meant = _matching(tree, f"{root}/", [name_pattern(pattern) for pattern in patterns])
        if not meant.files:
            raise UserError(
                f"data source {source.path!r}: no file there is {' or '.join(patterns)}, which its "
                f"{CARD} names for split {split!r}"
            )
        files[split] = meant.files
    wanted = chosen_split(source, {split: found[0] for split, found in files.items()})
    named = {path for found in files.values() for path in found}
    asked = [path for split in wanted for path in files[split]]
    read, unread = _recognised(asked, source, takes_any=True)
    others = [p for p in tree.files if p not in named and p != f"{root}/{CARD}"]
    rest, unread_rest = _recognised(others, source)
    left_out = {
        **tree.passed_over,
        **unread,
        **unread_rest,
        **{path: _of(split) for split in files for path in files[split] if path not in asked},
        **{file.uri: f"not named by the {CARD}'s configs" for file in rest},
    }
    return SourceFiles(_some(read, left_out, source), left_out)


def _of_split(
    source: Source, root: str, files: list[SourceFile], left_out: dict[str, str]
) -> SourceFiles:
    """What of the files below a root the source's split means; the others are left out too."""
    by_path = {file.uri: file for file in _some(files, left_out, source)}
    meant = files_of_split(source, root, list(by_path))
    splits = split_names(root, [path for path in by_path if path not in set(meant)])
    others = {path: _of(split) for path, split in splits.items()}
    return SourceFiles([by_path[path] for path in meant], {**left_out, **others})


def _of(split: str | None) -> str:
    """Why a file of another split is left out."""
    return "of no split" if split is None else f"of split {split!r}"


def _some(read: list[SourceFile], left_out: dict[str, str], source: Source) -> list[SourceFile]:
    if not read:
        there = f"holds {_listed(source, left_out, _SHOWN)}" if left_out else "is empty"
        raise UserError(
            f"data source {source.path!r} {there}: nothing that is read (read are {READ}, and what "
            "save_to_disk wrote)"
        )
    return read


def _recognised(
    paths: Iterable[str], source: Source, is_named: bool = False, takes_any: bool = False
) -> tuple[list[SourceFile], dict[str, str]]:
    """Files with their format, and path -> why of those that are not read.

    Args:
        is_named: the recipe names the file itself. takes_any: it names what the files are called;
            their names need not agree with an explicit format then.
    Raises: UserError for a named file without a format.
    """
    read: list[SourceFile] = []
    unread: dict[str, str] = {}
    takes_any = takes_any or is_named
    for path in paths:
        name = path.rsplit("/", 1)[-1]
        format_, codec = _suffixes(name)
        if not is_named and name in DESCRIPTIONS:
            unread[path] = "it describes a data set"
        elif source.format in ("auto", "huggingface"):
            if format_ is not None:
                read.append(SourceFile(path, format_, codec))
            elif is_named:
                raise UserError(
                    f"data source {path}: format not recognised; set format to jsonl, json, csv or "
                    f"parquet (read are {READ})"
                )
            else:
                unread[path] = _OF_SAVED if name.endswith(".arrow") else _UNREAD
        elif takes_any or "." not in name or _agrees(format_, source.format):
            read.append(SourceFile(path, source.format, codec))
        else:
            unread[path] = f"format is {source.format}"
    return read, unread


def _agrees(found: str | None, wanted: str) -> bool:
    return found == wanted or {found, wanted} == {"json", "jsonl"}


def _suffixes(name: str) -> tuple[str | None, str]:
    """(format, codec) that a name ends in; None and "" for those it does not say."""
    parts = name.lower().split(".")[1:]
    codec = _CODECS.get(parts[-1], "") if parts else ""
    if codec:
        parts.pop()
    return (_FORMATS.get(parts[-1]) if parts else None), codec


def _refuse_ignored(source: Source, keys: Iterable[str]) -> None:
    """UserError for a key that files cannot follow."""
    for key in keys:
        value = getattr(source, key)
        if value is not None:
            raise UserError(
                f"data source {source.path!r}: {key} = {value!r} is of Hugging Face data sets, "
                "these are files; name their folder in path, or set format: huggingface"
            )


def _listed(source: Source, left_out: dict[str, str], most: int = 10**9) -> str:
    """Names below the source's folder by reason, so many of each at most; of another split's, which
    nobody asked for, one.
    """
    path = source.path
    root = f"{(folder_of_pattern(path) if has_wildcard(path) else path).rstrip('/')}/"
    names: dict[str, list[str]] = {}
    for found_path, why in left_out.items():
        names.setdefault(why, []).append(found_path.removeprefix(root))
    return "; ".join(
        _some_of(found, 1 if why.startswith("of ") and why != _OF_SAVED else most) + f" ({why})"
        for why, found in names.items()
    )


def _some_of(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _short(path: str) -> str:
    text = os.fsencode(path).decode("utf-8", "replace")
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if number else str(error).splitlines()[0]
