"""A secret of the user's own, for files that nobody else may have written."""

import contextlib
import os
import secrets

from pipelines.storage.hashes import CACHE

_BYTES = 32


def user_key() -> bytes:
    """The user's key on this machine, made when it is first asked for.

    Where the cache cannot be written it is another one every time: what was signed is made anew.
    """
    file, made = CACHE / "key", secrets.token_bytes(_BYTES)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(made)
        found = file.read_bytes()
        if len(found) == _BYTES:
            return found
    return made
