"""What a data set's own files say of its layout: `configs` of a snapshot's README.md, save_to_disk.

Both are read as files, with the readers of all other files, on object stores too.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.recipe import Source
from pipelines.storage import file_info, open_input, parse_json

CARD = "README.md"
_STATE, _DICT = "state.json", "dataset_dict.json"
# What the hub's library writes beside data, and nobody means as rows.
DESCRIPTIONS = frozenset({_STATE, _DICT, "dataset_info.json", "dataset_infos.json"})


@dataclass(frozen=True)
class Layout:
    """A data set's declared files.

    Attributes:
        splits: split -> patterns of paths below the folder. folder: below which files tell their
            split by name, if the declaration names no files.
    """

    splits: Mapping[str, list[str]]
    folder: str | None = None


def saved_splits(
    filesystem: fs.FileSystem, root: str, source: Source
) -> dict[str, list[str]] | None:
    """Split -> arrow files in order, of a folder that datasets' save_to_disk wrote; else None.

    A data set without splits is one of "train", unless it says otherwise.

    Raises: UserError if a file of it is missing or is not what the library writes.
    """
    if (listed := _json(filesystem, f"{root}/{_DICT}", source)) is not None:
        names = listed.get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"data source {source.path!r}: {_DICT} names no splits")
        return {name: _shards(filesystem, f"{root}/{name}", source)[1] for name in names}
    if not _is_file(filesystem, f"{root}/{_STATE}"):
        return None
    state = _json(filesystem, f"{root}/{_STATE}", source) or {}
    if "_data_files" not in state:
        return None
    split, shards = _shards(filesystem, root, source)
    return {split or "train": shards}


def _shards(filesystem: fs.FileSystem, root: str, source: Source) -> tuple[str | None, list[str]]:
    state = _json(filesystem, f"{root}/{_STATE}", source)
    if state is None:
        raise UserError(f"data source {source.path!r}: {root}/{_STATE} is missing")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(
            f"data source {source.path!r}: saved by an old version of datasets, with rows chosen "
            "by index; load and save it again"
        )
    files = [f"{root}/{entry['filename']}" for entry in state.get("_data_files") or ()]
    for file in files:
        if not _is_file(filesystem, file):
            raise UserError(f"data source {source.path!r}: {file} is missing")
    return state.get("_split"), files


def declared_layout(filesystem: fs.FileSystem, root: str, source: Source) -> Layout | None:
    """What `configs` in the snapshot's README.md says of the subset; None without such.

    Raises: UserError for a subset that is not there or must be named, and for configs that cannot
        be followed.
    """
    configs = _configs(filesystem, root, source)
    if not configs:
        return None
    names = [str(config.get("config_name", "default")) for config in configs]
    if source.subset is not None:
        if source.subset not in names:
            raise UserError(
                f"data source {source.path!r}: no subset {source.subset!r}, its {CARD} has "
                f"{', '.join(names)}"
            )
        config = configs[names.index(source.subset)]
    else:
        chosen = [config for config in configs if config.get("default") is True] or [
            config for config, name in zip(configs, names, strict=True) if name == "default"
        ]
        if not chosen and len(configs) > 1:
            raise UserError(
                f"data source {source.path!r} has the subsets {', '.join(names)}: say which with "
                "subset"
            )
        config = (chosen or configs)[0]
    folder = str(config.get("data_dir") or "").strip("/")
    prefix = f"{folder}/" if folder else ""
    splits = {
        split: [_inside(prefix + pattern, source) for pattern in patterns]
        for split, patterns in _patterns(config.get("data_files"), source).items()
    }
    return Layout(splits, None if splits else _inside(folder, source))


def _configs(filesystem: fs.FileSystem, root: str, source: Source) -> list[dict[str, Any]]:
    if not _is_file(filesystem, f"{root}/{CARD}"):
        return []
    with _opened(filesystem, f"{root}/{CARD}") as stream:
        text = stream.read().decode("utf-8", "replace").lstrip("\ufeff").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return []
    try:
        header = yaml.safe_load(text[4:].split("\n---", 1)[0])
    except yaml.YAMLError as error:
        raise UserError(
            f"data source {source.path!r}: the head of its {CARD} is not valid YAML "
            f"({str(error).splitlines()[0]})"
        ) from error
    configs = header.get("configs") if isinstance(header, dict) else None
    if not configs:
        return []
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise UserError(f"data source {source.path!r}: configs in its {CARD} is no list of configs")
    return configs


def _patterns(declared: Any, source: Source) -> dict[str, list[str]]:
    """Split -> patterns, of `data_files` in any of its spellings."""
    if declared is None:
        return {}
    if isinstance(declared, str):
        declared = [declared]
    if isinstance(declared, dict):
        declared = [{"split": split, "path": path} for split, path in declared.items()]
    found: dict[str, list[str]] = {}
    for entry in declared if isinstance(declared, list) else [None]:
        split, path = (
            ("train", entry)
            if isinstance(entry, str)
            else (entry.get("split"), entry.get("path"))
            if isinstance(entry, dict)
            else (None, None)
        )
        paths = [path] if isinstance(path, str) else path
        if (
            not isinstance(split, str)
            or not isinstance(paths, list)
            or not all(isinstance(p, str) for p in paths)
        ):
            raise UserError(
                f"data source {source.path!r}: data_files in its {CARD} holds {entry!r}, neither "
                "a path nor a split with its path"
            )
        found.setdefault(split, []).extend(paths)
    return found


def _inside(pattern: str, source: Source) -> str:
    if pattern.startswith("/") or "://" in pattern or ".." in pattern.split("/"):
        raise UserError(
            f"data source {source.path!r}: its {CARD} names {pattern!r}, which lies outside of it"
        )
    return pattern.removeprefix("./")


def _is_file(filesystem: fs.FileSystem, path: str) -> bool:
    return bool(file_info(filesystem, path).type == fs.FileType.File)


def _opened(filesystem: fs.FileSystem, path: str) -> Any:
    return io.BufferedReader(open_input(filesystem, path, f"{filesystem.type_name}://{path}"))


def _json(filesystem: fs.FileSystem, path: str, source: Source) -> dict[str, Any] | None:
    if not _is_file(filesystem, path):
        return None
    with _opened(filesystem, path) as stream:
        text = stream.read()
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"data source {source.path!r}: {path} is no JSON object")
    return found
