"""Errors of reading that say nothing of the file: nobody may take it for damaged."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import StageFailed

_CURES = {
    errno.EMFILE: "raise the limit of open files where the command starts (ulimit -n 8192)",
    errno.ENFILE: "this machine has too many open files: end other programs",
    errno.ENOMEM: "this machine has no memory left: end other programs",
    errno.EACCES: "ask its owner for permission to read it",
    errno.EPERM: "ask its owner for permission to read it",
}


@contextlib.contextmanager
def told_why(place: str | Path) -> Iterator[None]:
    """Raise what kept a file from being opened, without its fault, as a StageFailed naming it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CURES:
            raise
        why = f"{os.strerror(error.errno)}; {_CURES[error.errno]}"
        raise StageFailed(f"cannot read {place}: {why}") from error
