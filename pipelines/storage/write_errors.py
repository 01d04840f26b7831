"""Errors of writing to a disk that the user can mend, in one line that names the place."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MENDABLE = frozenset(
    {
        *_FULL,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EFBIG,
        errno.ENAMETOOLONG,
    }
)
# How libraries written in Rust (safetensors, tokenizers) and Arrow tell the system's error.
_TOLD = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)


@contextlib.contextmanager
def told_where(place: str | Path) -> Iterator[None]:
    """Raise what kept a local file from being written as a UserError that names the place.

    An error that names a file elsewhere is another's.

    Args:
        place: a file, or the folder that files are written to.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _number_of(error)
        if number not in _MENDABLE or _is_elsewhere(error, place):
            raise
        kept = "; what was published before is kept" if number in _FULL else ""
        raise UserError(f"cannot write {place}: {os.strerror(number)}{kept}") from error


def _is_elsewhere(error: Exception, place: str | Path) -> bool:
    named = error.filename if isinstance(error, OSError) else None
    if not isinstance(named, str | bytes):
        return False
    target, other = Path(place).absolute(), Path(os.fsdecode(named)).absolute()
    return not (target.parent in (other, *other.parents) or other in target.parents)


def _number_of(error: Exception) -> int:
    """The system's number of an error, 0 if it has none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _TOLD.search(str(error))
    return int(found[1] or found[2]) if found else 0
