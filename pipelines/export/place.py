"""Where an export goes: a directory of its own, which appears whole or not at all.

On a local disk it is written beside its place and moved. On an object store the record is uploaded
last; what lies there without it was interrupted, and is written anew.
"""

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.recipe import CARD, EXPORTED
from pipelines.storage import RunStore, present, read_record, told_where, who_works, write_record

_BEGUN, _FILES = "export-begun", "files"
_FIELDS = {"training": str, "files": dict, "checked": list}


@dataclass(frozen=True)
class Place:
    """Attributes:
    store: rooted at the directory. training: fingerprint of the one whose model goes there.
    """

    store: RunStore
    training: str

    @classmethod
    def at(cls, directory: str, training: str) -> "Place":
        """UserError for a name that no directory can have."""
        if not directory.strip() or "\0" in directory:
            raise UserError(f"--to {directory!r}: no directory can be called so")
        store = RunStore(directory)
        if store.is_local:  # a link stays, what it leads to is filled
            store = RunStore(str(store.local_path().resolve()))
        return cls(store, training)

    def made(self) -> dict[str, Any] | None:
        """The record of the finished export of this training that is there; None if none is.

        Raises: UserError for a directory that holds anything else, or an export that was changed;
            cards may be.
        """
        store = self.store
        if store.is_local and store.exists() and not store.local_path().is_dir():
            raise UserError(f"{store.root} is a file: name a directory that is empty or not there")
        names = self._names()
        if EXPORTED not in names:
            if names and _BEGUN not in names:
                shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                raise UserError(
                    f"{store.root} is not empty ({shown}): name a directory that is empty or not "
                    "there with --to"
                )
            return None
        record = read_record(store, EXPORTED, _FIELDS, "remove the directory and export again")
        if record["training"] != self.training:
            raise UserError(
                f"{store.root} is the export of another training: name another directory with --to"
            )
        for name, expected in record["files"].items():
            if not name.endswith(CARD) and (
                store.size(name) < 0 or store.checksum(name) != expected
            ):
                raise UserError(
                    f"{store.root}/{name} is missing or not what was exported: remove the "
                    "directory and export again"
                )
        return record

    def _names(self) -> list[str]:
        if not self.store.is_local:
            return self.store.names()
        folder = self.store.local_path()
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def check_room(self, needed: int) -> None:
        """UserError where nothing can be written, or not so many bytes."""
        self.store.check_writable()
        near = self.store.nearest() if self.store.is_local else Path(tempfile.gettempdir())
        free = shutil.disk_usage(near).free
        if needed > free:
            raise UserError(
                f"{self.store.root}: the export takes about {needed / 2**30:.3g} GiB and the disk "
                f"has {free / 2**30:.3g} GiB free: free some, or name another place with --to"
            )

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path]:
        """An empty local folder beside the place; gone after the block, as are those of the dead.

        Raises: UserError if another process writes an export there.
        """
        if not self.store.is_local:
            staging = self.store.staging_directory()
        else:
            target = self.store.local_path()
            prefix = f".tmp-export-{target.name}-"
            for left in target.parent.glob(f"{prefix}*"):
                if working := who_works(RunStore(str(left))):
                    note = working[0]
                    raise UserError(
                        f"{self.store.root}: another command exports there (on {note['host']}, "
                        f"process {note['pid']})"
                    )
                shutil.rmtree(left)
            staging = target.parent / f"{prefix}{uuid.uuid4().hex}"
        with told_where(self.store.root):
            (staging / _FILES).mkdir(parents=True)
        try:
            with present(RunStore(str(staging)), stage="export"), told_where(self.store.root):
                yield staging / _FILES
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def publish(self, folder: Path, record: dict[str, Any]) -> None:
        """Move a complete folder to the place, with its record."""
        staged = RunStore(str(folder))
        if self.store.is_local:
            write_record(staged, EXPORTED, record)
            target = self.store.local_path()
            RunStore(str(target.parent)).publish_directory(folder, target.name)
            return
        write_record(self.store, _BEGUN, {"training": self.training})
        for name, _, _ in staged.files():
            self.store.publish_file(folder / name, name)
        write_record(self.store, EXPORTED, record)
        self.store.delete(_BEGUN)
