"""What somebody who wrote a name that is not there may have meant."""

import difflib
from collections.abc import Iterable
from pathlib import Path

_ALIKE = 0.6  # of difflib's ratio
_MOST_LISTED = 5000  # names of a folder that are looked at


def did_you_mean(name: str, known: Iterable[str], alike: float = _ALIKE) -> str:
    """The end of a message: the known name that is most alike, or nothing where none is."""
    names = list(known)
    # Two letters in the wrong order are likelier than one too few.
    near = [other for other in names if sorted(other) == sorted(name)][:1]
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=alike)
    return f"; did you mean {near[0]!r}?" if near else ""


def nearest_path(path: str, suffixes: tuple[str, ...] = ()) -> str:
    """The same for a local path: what is most alike of its folder's entries.

    Args:
        suffixes: only of files that end so; of files and folders by default.
    """
    folder, name = Path(path).expanduser().parent, Path(path).name
    try:
        found = []
        for _, entry in zip(range(_MOST_LISTED), folder.iterdir(), strict=False):
            if not suffixes or (entry.name.endswith(suffixes) and entry.is_file()):
                found.append(entry.name)
    except (OSError, ValueError):  # no folder, or none that this user may look at
        return ""
    said = did_you_mean(name, sorted(found))
    if not said:
        return ""
    near = said.removeprefix("; did you mean ").removesuffix("?")[1:-1]
    shown = near if "/" not in path else f"{path.rstrip('/').rpartition('/')[0]}/{near}"
    return f"; did you mean {shown!r}?"
