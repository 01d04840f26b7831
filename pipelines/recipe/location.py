"""What a recipe names outside of itself: models, data, files and directories.

A field of one of these types is a location. That it is made absolute, looked for on every machine,
or left alone because it is a name, follows from its type.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, Field

from pipelines.errors import UserError
from pipelines.recipe.keys import Content, leaves, with_leaves
from pipelines.storage import folder_of_pattern, has_wildcard, local_tree, name_pattern

Schema = TypeVar("Schema", bound=BaseModel)
_OF_A_RUN = "/train/model"
_NAME_BYTES, _PATH_BYTES = 255, 4095  # what Linux and its file systems take


@dataclass(frozen=True)
class Location:
    """Marks a text of the schema as a local path or the URI of an object store.

    Attributes:
        written: whether stages write there; "when missing" what another run may have written.
        may_be_name: it may be a name of a hub instead, as long as nothing local is called so and it
            is not written as a path.
        may_be_pattern: it may name files with *, ? and [.
        is_shared: all machines have to see the same thing there.
    """

    written: Literal["never", "when missing", "always"] = "never"
    may_be_name: bool = False
    may_be_pattern: bool = False
    is_shared: bool = True

    def absolute(self, text: str, directory: Path) -> str:
        """The location as every process understands it; a name or a URI as it stands.

        Args:
            directory: where relative paths start.
        """
        if text.startswith("file://"):
            text = unquote(urlsplit(text).path)
        if "://" in text:
            return text
        path = Path(directory, os.path.expanduser(text))  # noqa: PTH111  knows no ~user, says nothing
        is_path = (
            not self.may_be_name
            or text.startswith((".", "/", "~"))
            or text.count("/") > 1
            or (self.may_be_pattern and has_wildcard(text))
            or _is_there(path)
        )
        return str(path) if is_path else text

    def local(self, text: str) -> str | None:
        """The local path that an absolute location names and that is there.

        Of a pattern it is a file that matches.
        """
        if not text.startswith("/"):
            return None
        if _is_there(Path(text)):
            return text
        return _matching(text) if self.may_be_pattern and has_wildcard(text) else None


Model = Annotated[str, Field(min_length=1), Location(may_be_name=True)]
Data = Annotated[str, Field(min_length=1), Location(may_be_name=True, may_be_pattern=True)]
File = Annotated[str, Field(min_length=1), Location()]
Directory = Annotated[str, Field(min_length=1), Location()]
RunDirectory = Annotated[str, Field(min_length=1), Location("always")]
StoreDirectory = Annotated[str, Field(min_length=1), Location("when missing")]
# Of the machine that starts Ray.
ScratchDirectory = Annotated[str, Field(min_length=1), Location("always", is_shared=False)]


def locations(section: BaseModel) -> Iterator[tuple[str, str, Location]]:
    """(dotted key, text, kind) of every location that a section or recipe names."""
    for key, value, content in leaves(section):
        location = _location(value, content)
        if location is not None:
            yield key, value, location


def with_absolute_paths(section: Schema, directory: Path) -> Schema:
    """A copy of a section or recipe whose local paths are absolute.

    Workers and trials run in other directories.

    Args:
        directory: where relative paths start.
    """

    def absolute(value: Any, content: Content) -> Any:
        location = _location(value, content)
        return value if location is None else location.absolute(value, directory)

    return with_leaves(section, absolute)


def hub_name(text: str) -> str | None:
    """The name on a hub that an absolute location is; None for a path or a URI."""
    return None if "://" in text or text.startswith(("/", "~", ".")) else text


def public_name(text: str) -> str:
    """What an absolute location is called, without where it lies: for what others will read.

    The model of a run is called as the run is.
    """
    if (name := hub_name(text)) is not None:
        return name
    return text.rstrip("/").removesuffix(_OF_A_RUN).rpartition("/")[2]


def with_public_names(section: Schema) -> Schema:
    """A copy of a section or recipe that says of no location where it lies."""

    def named(value: Any, content: Content) -> Any:
        return value if _location(value, content) is None else public_name(value)

    return with_leaves(section, named)


def refuse_impossible(section: BaseModel) -> None:
    """UserError for a local path that no file can have."""
    for key, text, _ in locations(section):
        if "://" in text:
            continue
        shown = repr(text if len(text) <= 80 else f"{text[:77]}...")
        longest = max(len(os.fsencode(part)) for part in text.split("/"))
        size = len(os.fsencode(text))
        if "\0" in text:
            raise UserError(f"{key} = {shown}: no file can be called so")
        if longest > _NAME_BYTES:
            raise UserError(
                f"{key} = {shown}: a name in it has {longest} bytes, at most {_NAME_BYTES} are "
                "possible"
            )
        if size > _PATH_BYTES:
            raise UserError(
                f"{key} = {shown}: has {size} bytes, at most {_PATH_BYTES} are possible"
            )


def _location(value: Any, content: Content) -> Location | None:
    if not isinstance(value, str):
        return None
    return next((mark for mark in content.marks if isinstance(mark, Location)), None)


def is_file(path: Path) -> bool:
    """Whether a regular file is there; no name that no file can have raises."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name of a file, or none that this user may look at
        return False


def _matching(pattern: str) -> str | None:
    """A file that matches, as in prepare."""
    folder = folder_of_pattern(pattern)
    if not _is_there(Path(folder)):
        return None
    matches = name_pattern(pattern)
    return next((file for file in local_tree(folder).files if matches.match(file)), None)
