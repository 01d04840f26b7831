"""Which files of a local directory or pattern belong to the split that a source asks for.

Names as the hub's library reads them: a word for the split in the file's name or a folder's
(train.jsonl, test/part-0.parquet), or the split before a shard's number
(train_prefs-00000-of-00002.parquet).
"""

import re
from collections.abc import Mapping, Sequence

from pipelines.errors import UserError
from pipelines.recipe import Source

ALL = "all"
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = re.compile(r"(.+?)-\d{5,}-of-\d{5,}([-.].*)?")


def split_of(path: str) -> str | None:
    """The split that a path says it belongs to; None if it says none or two in one name.

    Folders count after the file's name.
    """
    for part in reversed(path.split("/")):
        shard = _SHARD.fullmatch(part)
        name = shard.group(1) if shard else part
        said = {_WORDS[word] for word in re.split(r"[-._ 0-9]+", name.lower()) if word in _WORDS}
        if len(said) == 1:
            return name if shard else said.pop()
    return None


def split_names(root: str, paths: Sequence[str]) -> dict[str, str | None]:
    """Path -> the split that it says it belongs to, as `split_of`.

    Args:
        root: the directory below which names count, or of a single file its path.
    """
    return {
        path: split_of(path.removeprefix(root).lstrip("/") or path.rsplit("/", 1)[-1])
        for path in paths
    }


def files_of_split(source: Source, root: str, paths: Sequence[str]) -> list[str]:
    """The files that a source's split names, of those that its path names.

    Args:
        root: the directory below which names count, or of a single file its path. paths: all files,
            below it.
    Raises: UserError if the files are of several splits and the source does not say which, or has
        not the one it says.
    """
    names = split_names(root, paths)
    known = sorted({name for name in names.values() if name is not None})
    wanted = source.split
    if wanted == ALL or not paths:
        return list(paths)
    if wanted is None:
        if len(set(names.values())) > 1 and known:
            raise UserError(
                f"data source {source.path!r} holds {_listed(names)}: say which with split, or "
                f"split: {ALL}"
            )
        return list(paths)
    if not known:
        if wanted == "train":  # as the hub's library calls what has no split
            return list(paths)
        raise UserError(
            f"data source {source.path!r}: split = {wanted!r}, but no file's name there says that "
            "it is of a split; leave split out"
        )
    found = [path for path in paths if names[path] == wanted] or [
        path for path in paths if names[path] == _WORDS.get(wanted, wanted)
    ]
    if not found:
        raise UserError(
            f"data source {source.path!r}: no split {wanted!r}, it holds {_listed(names)}"
        )
    return found


def chosen_split(source: Source, splits: Mapping[str, str]) -> list[str]:
    """The splits that a source asks for, of those that a data set declares.

    Args:
        splits: split -> one of its files, to name it by.
    Raises: UserError if it does not say which of several, or has not the one it says.
    """
    if source.split == ALL:
        return list(splits)
    named = {path: split for split, path in splits.items()}
    if source.split is None:
        if len(splits) > 1:
            raise UserError(
                f"data source {source.path!r} holds {_listed(named)}: say which with split, or "
                f"split: {ALL}"
            )
        return list(splits)
    if source.split not in splits:
        raise UserError(
            f"data source {source.path!r}: no split {source.split!r}, it holds {_listed(named)}"
        )
    return [source.split]


def _listed(names: Mapping[str, str | None]) -> str:
    """Every split with one of its files."""
    examples = {name: path for path, name in reversed(list(names.items()))}
    parts = [
        f"{'files of no split' if name is None else name} ({examples[name].rsplit('/', 1)[-1]})"
        for name in sorted(examples, key=lambda name: (name is None, name or ""))
    ]
    return ", ".join(parts)
