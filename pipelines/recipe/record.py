"""Stage records: what a stage was made from.

A stage is skipped when its record matches and refused when it does not.

`started.json` appears when a stage begins, `manifest.json` when it is complete. Both hold the
stage's own settings and its inputs' fingerprints; status, skipping and refusal read nothing else.
"""

import json
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from pipelines.errors import UserError
from pipelines.recipe.run_paths import MANIFEST, STARTED
from pipelines.storage import RunStore, digest, read_record, write_record

SCHEMA_VERSION = 2
_SETTLED = {"schema_version": int, "settings": dict, "inputs": dict}
_LIBRARIES = ("torch", "transformers", "ray", "pyarrow", "tokenizers", "sparsepo")


@dataclass(frozen=True)
class StageRecord:
    """A stage of a recipe at one place.

    Attributes:
        stage: its name. store: rooted at the stage's directory. settings: dotted key -> value that
            the result depends on.
        inputs: name -> fingerprint of everything the stage reads. or_else: what a refusal offers
            besides another place.
    """

    stage: str
    store: RunStore
    settings: dict[str, Any]
    inputs: dict[str, Any]
    or_else: str = ""

    def fingerprint(self) -> str:
        """Content hash of settings and inputs; what later stages record as their input."""
        return digest({"stage": self.stage, "settings": self.settings, "inputs": self.inputs})

    def is_complete(self) -> bool:
        """True if the stage's manifest exists and matches.

        Raises: UserError naming the difference if it does not match.
        """
        if not self.store.exists(MANIFEST):
            return False
        self._compare(read_manifest(self.store))
        return True

    def check(self) -> None:
        """UserError naming the difference if another configuration started or finished here.

        Nothing is written.
        """
        if self.store.exists(STARTED):
            self._compare(read_started(self.store))
        if self.store.exists(MANIFEST):
            self._compare(read_manifest(self.store))

    def begin(self) -> None:
        """Record that the stage starts; refuses a place where another configuration started."""
        if self.store.exists(STARTED):
            self._compare(read_started(self.store))
        else:
            write_record(self.store, STARTED, self._body())

    def finish(
        self, counts: dict[str, Any], outputs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Publish the manifest: the stage is complete from here on. Returns it."""
        manifest = {**self._body(), "counts": counts, "outputs": outputs or {}}
        write_record(self.store, MANIFEST, manifest)
        return manifest

    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.store)

    def version_changes(self) -> list[str]:
        """What has another version now than when this stage began, one line each.

        The list is empty if the stage has not begun.
        """
        if not self.store.exists(STARTED):
            return []
        then, now = read_started(self.store).get("versions", {}), library_versions()
        return [
            f"{self.store.root} was begun with {name} {then.get(name, 'unknown')}, this is "
            f"{version}; their rounding may differ"
            for name, version in now.items()
            if then.get(name) != version
        ]

    def _body(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "stage": self.stage,
            "settings": self.settings,
            "inputs": self.inputs,
            "fingerprint": self.fingerprint(),
            "versions": library_versions(),
            "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _compare(self, found: dict[str, Any]) -> None:
        if found.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{self.store.root} was written with schema version "
                f"{found.get('schema_version')}, this program writes {SCHEMA_VERSION}"
            )
        for kind, ours, theirs in (
            ("setting", self.settings, found["settings"]),
            ("input", self.inputs, found["inputs"]),
        ):
            for key in sorted({*ours, *theirs}):
                if ours.get(key) != theirs.get(key):
                    raise UserError(
                        f"{self.store.root} holds another run's {self.stage} stage: {kind} {key} "
                        f"was {_short(theirs.get(key))}, now it is {_short(ours.get(key))}; "
                        f"choose another run_dir or restore the {kind}{self.or_else}"
                    )


def read_manifest(store: RunStore) -> dict[str, Any]:
    """The manifest of a finished stage. Raises: DamagedFile if it is not what was written."""
    cure = "restore it, or remove it and run its stage again, which goes on from what is there"
    return read_record(store, MANIFEST, {**_SETTLED, "counts": dict, "outputs": dict}, cure)


def read_started(store: RunStore) -> dict[str, Any]:
    """What a stage was begun with. Raises: DamagedFile if it is not what was written."""
    cure = "restore it, or remove it and run its stage again"
    return read_record(store, STARTED, _SETTLED, cure)


def library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
