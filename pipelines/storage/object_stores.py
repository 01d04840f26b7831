"""File systems of locations, and patience with object stores that are slow, away or throttling.

A request that brings nothing is given up after seconds and made again; so is a call whose requests
failed. All of it ends: a store that stays silent is one line after ten minutes.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.errors import StageFailed, UserError

if TYPE_CHECKING:
    from pyarrow import fs

_WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # between tries of a call
_REQUESTS = 5  # of a try, with pyarrow's own waits between them
_REQUEST_SECONDS, _CONNECT_SECONDS = 15.0, 10.0  # that may pass without a byte
# What an object store says that no repetition will change.
_LASTING = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|SIGNATURE|INVALID_CLIENT|MISSING_AUTH|HTTP "
    r"(code|status) 4(?!08|29)"
)
Result = TypeVar("Result")


def filesystem_of(uri: str) -> tuple[fs.FileSystem, str]:
    """(file system, path on it) of a local path or a URI that pyarrow knows.

    Raises: UserError naming a URI that it does not know.
    """
    import pyarrow as pa
    from pyarrow import fs

    try:
        if re.match(r"^[a-z][a-z0-9+.-]+://", uri):
            found, path = fs.FileSystem.from_uri(uri)
            return (_patient(found) if found.type_name == "s3" else found), path
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise UserError(f"cannot open {uri!r}: {str(error).splitlines()[0]}") from error
    return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111


def _patient(found: fs.FileSystem) -> fs.FileSystem:
    """The same S3 file system for stores whose first byte takes longer than three seconds."""
    from pyarrow import fs

    _, (options,) = found.__reduce__()
    limits = {"request_timeout": _REQUEST_SECONDS, "connect_timeout": _CONNECT_SECONDS}
    repeats = fs.AwsStandardS3RetryStrategy(max_attempts=_REQUESTS)
    return fs.S3FileSystem(**{**options, **limits}, retry_strategy=repeats)


def repeated(action: Callable[[], Result], place: str) -> Result:
    """Call `action`, which asks an object store for `place`, until no error of it may pass.

    Raises: FileNotFoundError; UserError for a lasting refusal; StageFailed if the store stays away.
    """
    started = time.monotonic()
    for wait in (*_WAITS_SECONDS, None):
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as error:
            message = str(error).splitlines()[0].rstrip(".")
            if isinstance(error, PermissionError) or _LASTING.search(message):
                raise UserError(f"{place}: {message}") from error
            if wait is None:
                raise StageFailed(
                    f"{place}: still failing after {len(_WAITS_SECONDS) + 1} tries in "
                    f"{time.monotonic() - started:.0f} s: {message}; what was written is kept: "
                    "give the same command again when the store answers"
                ) from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def file_info(filesystem: fs.FileSystem, asked: Any) -> Any:
    """What a file system says of a path, or of what a selector selects; asked again as need be."""
    from pyarrow import fs

    if isinstance(filesystem, fs.LocalFileSystem):
        return filesystem.get_file_info(asked)
    place = getattr(asked, "base_dir", asked)
    return repeated(lambda: filesystem.get_file_info(asked), f"{filesystem.type_name}://{place}")


def open_input(filesystem: fs.FileSystem, path: str, uri: str) -> Any:
    """The bytes of a file, at any place of it; on an object store every read is repeated."""
    from pyarrow import fs

    if isinstance(filesystem, fs.LocalFileSystem):
        return filesystem.open_input_file(path)
    return _RepeatedReads(filesystem, path, uri)


class _RepeatedReads(io.RawIOBase):
    """A file of an object store."""

    def __init__(self, filesystem: fs.FileSystem, path: str, uri: str) -> None:
        self._file = repeated(lambda: filesystem.open_input_file(path), uri)
        self._uri, self._at, self._size = uri, 0, int(self._file.size())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer unless the file ends before. Raises: OSError if it has become shorter."""
        wanted = max(0, min(len(buffer), self._size - self._at))

        def read() -> bytes:
            self._file.seek(self._at)
            found: bytes = self._file.read(wanted)
            if len(found) != wanted:
                raise OSError(f"{len(found)} of {wanted} bytes came")
            return found

        if wanted:
            buffer[:wanted] = repeated(read, self._uri)
            self._at += wanted
        return wanted

    def close(self) -> None:
        self._file.close()
        super().close()
