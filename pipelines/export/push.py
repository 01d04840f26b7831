"""The Hub, by huggingface_hub's own client: asked before any work, filled once all is checked.

The token is that of the environment, and no line repeats it. Nothing is sent unless it is asked
for.
"""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from pipelines.errors import StageFailed, UserError
from pipelines.recipe import Say
from pipelines.storage import file_hash

TOKEN = "HF_TOKEN"
_OWN = (".gitattributes",)  # what a new repository holds
_USERS_FAULT = (400, 401, 402, 403, 404, 409, 413, 422)


@dataclass(frozen=True)
class Hub:
    """A repository that will be made, and who makes it.

    Attributes:
        repository: owner and name. has_all: whether the whole export is there already.
    """

    repository: str
    is_public: bool
    has_all: bool
    api: Any
    token: str

    @classmethod
    def ready(cls, name: str, is_public: bool, folder: Path | None) -> "Hub":
        """The repository: not there yet, empty, or with files of this export; nothing is made.

        Args:
            folder: the export, if it is made already: of one whose sending was interrupted, a part
                may be there.
        Raises: UserError for a name that is none, without a token or with a wrong one, offline, for
            a repository with other files; StageFailed if the Hub does not answer.
        """
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise UserError(
                f"--push {name!r}: no name of a repository (OWNER/NAME of letters, digits, '-', "
                "'_' and '.'), nor a directory (./DIR, /DIR, s3://...)"
            ) from error
        if constants.HF_HUB_OFFLINE:
            raise UserError("--push: HF_HUB_OFFLINE is set, so nothing is sent: unset it")
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            raise UserError(
                f"--push: set {TOKEN} to a token that may write; it is read from the environment "
                "alone"
            )
        api = HfApi(token=token)
        kept = "nothing was written" if folder is None else "the export is kept"
        with told(api.endpoint, token, kept):
            owner = api.whoami()["name"]  # or says that the token is wrong, before any work
            full = name if "/" in name else f"{owner}/{name}"
            try:
                files = [f for f in api.list_repo_tree(full, recursive=True) if hasattr(f, "size")]
            except RepositoryNotFoundError:
                files = []
        others = [f.path for f in files if f.path not in _OWN and not _is_same(f, folder)]
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            raise UserError(
                f"--push {full}: the repository holds other files already ({others[0]}{more}): "
                "name another"
            )
        own = {path for path in folder.rglob("*") if path.is_file()} if folder else set()
        has_all = bool(own) and len(own) == len([f for f in files if f.path not in _OWN])
        return cls(full, is_public, has_all, api, token)

    def send(self, folder: Path, kept: str, say: Say) -> str:
        """Make the repository and commit all files of a folder; returns its address.

        Args:
            kept: what to say is not lost where that fails.
        """
        with (
            told(self.api.endpoint, self.token, kept),
            warnings.catch_warnings(record=True) as found,
        ):
            warnings.simplefilter("always")
            place = self.api.create_repo(self.repository, private=not self.is_public, exist_ok=True)
            self.api.upload_folder(
                repo_id=self.repository,
                folder_path=folder,
                commit_message="Model, cards and masks of a run of sparsepo",
            )
        for warning in found:
            if issubclass(warning.category, UserWarning):
                say(f"warning: {' '.join(str(warning.message).split())}")
        return str(place)


def _is_same(file: Any, folder: Path | None) -> bool:
    """Whether a file of a repository is the one of that name in a folder."""
    own = None if folder is None else folder / file.path
    if own is None or not own.is_file() or own.stat().st_size != file.size:
        return False
    if file.lfs is not None:
        return bool(file_hash(own) == file.lfs.sha256)
    header = f"blob {file.size}\0".encode()
    return bool(hashlib.sha1(header + own.read_bytes()).hexdigest() == file.blob_id)  # git's


@contextlib.contextmanager
def told(endpoint: str, token: str, kept: str) -> Iterator[None]:
    """Errors of the client as one line: UserError for what the Hub refuses, StageFailed for what
    may pass.
    """
    try:
        yield
    except (UserError, StageFailed):
        raise
    except Exception as error:  # the client's, those of its transports, and what it wraps them in
        cause = next((e for e in _causes(error) if isinstance(e, HfHubHTTPError)), error)
        status = getattr(getattr(cause, "response", None), "status_code", None)
        line = _line(cause, status).replace(token, "...")
        if status in _USERS_FAULT or isinstance(cause, ValueError):
            raise UserError(f"--push: {endpoint} refuses it: {line}; {kept}") from None
        away = "does not take it now" if status else "cannot be reached"
        raise StageFailed(f"--push: {endpoint} {away}: {line}; {kept}") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _line(error: BaseException, status: int | None) -> str:
    if status == 401:
        return f"{TOKEN} is no token that it knows"
    if status == 403:
        return f"the token of {TOKEN} may not write there"
    told_by_server = getattr(error, "server_message", None)
    text = " ".join(str(told_by_server or error).split())[:300] or type(error).__name__
    return f"{status}: {text}" if status else text
