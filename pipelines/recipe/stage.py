"""Stages, and their records of what they were made from.

A stage is skipped when its record matches and refused when it does not.

`started.json` appears when a stage begins, `manifest.json` when it is complete. Both hold the
stage's own settings and its inputs' fingerprints; status, skipping and refusal read nothing else.
"""

import json
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pipelines.errors import UserError
from pipelines.recipe.run_paths import FAILURE, MANIFEST, STARTED, RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.recipe.section import stage_settings
from pipelines.storage import RunStore, digest

if TYPE_CHECKING:
    from pipelines.recipe.run import Run

SCHEMA_VERSION = 2
Say = Callable[[str], None]  # takes a line for the user
Inputs = TypeVar("Inputs")
_LIBRARIES = ("torch", "transformers", "ray", "pyarrow", "tokenizers", "sparsepo")


@dataclass(frozen=True)
class StageRecord:
    """A stage of a recipe at one place.

    Attributes:
        stage: its name. store: rooted at the stage's directory. settings: dotted key -> value that
            the result depends on.
        inputs: name -> fingerprint of everything the stage reads.
    """

    stage: str
    store: RunStore
    settings: dict[str, Any]
    inputs: dict[str, Any]

    def fingerprint(self) -> str:
        """Content hash of settings and inputs; what later stages record as their input."""
        return digest({"stage": self.stage, "settings": self.settings, "inputs": self.inputs})

    def is_complete(self) -> bool:
        """True if the stage's manifest exists and matches.

        Raises: UserError naming the difference if it does not match.
        """
        if not self.store.exists(MANIFEST):
            return False
        self._compare(self.store.read_json(MANIFEST))
        return True

    def check(self) -> None:
        """UserError naming the difference if another configuration started or finished here.

        Nothing is written.
        """
        for name in (STARTED, MANIFEST):
            if self.store.exists(name):
                self._compare(self.store.read_json(name))

    def begin(self) -> None:
        """Record that the stage starts; refuses a place where another configuration started."""
        if self.store.exists(STARTED):
            self._compare(self.store.read_json(STARTED))
        else:
            self.store.write_json(STARTED, self._body())

    def finish(
        self, counts: dict[str, Any], outputs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Publish the manifest: the stage is complete from here on. Returns it."""
        manifest = {**self._body(), "counts": counts, "outputs": outputs or {}}
        self.store.write_json(MANIFEST, manifest)
        return manifest

    def manifest(self) -> dict[str, Any]:
        loaded: dict[str, Any] = self.store.read_json(MANIFEST)
        return loaded

    def version_changes(self) -> list[str]:
        """What has another version now than when this stage began, one line each.

        The list is empty if the stage has not begun.
        """
        if not self.store.exists(STARTED):
            return []
        then, now = self.store.read_json(STARTED)["versions"], library_versions()
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
                        f"choose another run_dir or restore the {kind}"
                    )


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


@dataclass(frozen=True)
class Action:
    """What a stage's own command does on request instead of running the stage.

    Attributes:
        flag: of the command line, without dashes. help: its line. do: given the run, what starts
            Ray, where to say what, and whether to be quiet.
    """

    flag: str
    help: str
    do: Callable[["Run", Callable[[], None], Say, bool], None]


class Stage(ABC, Generic[Inputs]):
    """What the commands know of a stage; run, status, plan, submit and the command line loop over
    a list of these.

    A stage's module imports nothing heavy: what computes is imported by the methods that compute.

    Attributes:
        name: of its command and record. help: of its command. title: of its part of a plan.
        in_run: whether `run` takes it. has_record: whether its result is kept. uses_ray: whether it
            works on Ray.
        flag: the option that asks for a stage that runs on request only, without dashes. follows:
            the stage whose commands have that option. flag_help: of the option. flag_hint: said
            where the stage applies and was not asked for.
        actions: what its command does instead, on request.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    title: ClassVar[str]
    in_run: ClassVar[bool] = True
    has_record: ClassVar[bool] = True
    uses_ray: ClassVar[bool] = True
    flag: ClassVar[str | None] = None
    follows: "ClassVar[Stage[Any] | None]" = None
    flag_help: ClassVar[str] = ""
    flag_hint: ClassVar[str] = ""
    actions: ClassVar[tuple[Action, ...]] = ()

    @abstractmethod
    def folder(self, paths: RunPaths) -> RunStore:
        """Where it writes."""

    def needs(self, recipe: Recipe) -> "tuple[Stage[Any], ...]":
        """The stages whose results it reads."""
        return ()

    def applies(self, recipe: Recipe) -> bool:
        """Whether the recipe asks for it at all."""
        return True

    def refuse_absent(self, recipe: Recipe) -> str:
        """What to say where its flag is given and the recipe does not ask for it."""
        return f"--{self.flag}: this recipe has nothing for the {self.name} stage to do"

    def settle(self, recipe: Recipe) -> Recipe:
        """The recipe with what `auto` leaves to the machine decided, as far as it is this
        stage's business.
        """
        return recipe

    def check_recipe(self, recipe: Recipe) -> None:
        """UserError for a recipe that this stage will refuse wherever it runs."""

    @abstractmethod
    def resolve(self, recipe: Recipe) -> Inputs:
        """Place and fingerprint of all that it reads besides other stages' results.

        Raises: UserError for what is not there.
        """

    def settings(self, recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
        """Dotted key -> value of every setting that its result depends on."""
        return stage_settings(recipe, self.name)

    @abstractmethod
    def fingerprints(
        self, recipe: Recipe, inputs: Inputs, earlier: Mapping[str, StageRecord]
    ) -> dict[str, Any]:
        """Name -> fingerprint of everything it reads.

        Args:
            earlier: records of the stages that it needs, by name.
        """

    def record(
        self, recipe: Recipe, inputs: Inputs, earlier: Mapping[str, StageRecord]
    ) -> StageRecord:
        return StageRecord(
            self.name,
            self.folder(RunPaths.of(recipe)),
            self.settings(recipe, inputs),
            self.fingerprints(recipe, inputs, earlier),
        )

    def is_done(self, run: "Run") -> bool:
        """Whether its result is there and matches; UserError if another run's is there."""
        return run.record(self).is_complete()

    def check(self, run: "Run") -> None:
        """UserError for what it will refuse, before any work of any stage."""

    def check_pairs(
        self, recipe: Recipe, kept: Mapping[str, int], is_expected: bool = False
    ) -> None:
        """UserError if it needs pairs of a split that has none.

        Args:
            kept: split -> pairs that prepare kept. is_expected: the numbers are an estimate.
        """

    @abstractmethod
    def run(self, run: "Run", say: Say, quiet: bool) -> dict[str, Any]:
        """Do the work, or go on with it; returns its manifest."""

    @abstractmethod
    def summary(self, counts: dict[str, Any]) -> str:
        """What `run` says of its result in a line."""

    def detail(self, counts: dict[str, Any]) -> str:
        """What `status` says of its result in a few words."""
        return ""

    def result(self, paths: RunPaths) -> str | None:
        """What its command prints at its end: where the result is, if others are to find it."""
        return None

    def progress(self, store: RunStore) -> str:
        """What `status` says of a stage that has begun."""
        return "run the same command again to finish it"

    def status(self, paths: RunPaths) -> list[dict[str, str]]:
        """Rows of `status`: stage, state (done, unfinished, not started), detail, path."""
        store = self.folder(paths)
        if store.exists(MANIFEST):
            manifest = store.read_json(MANIFEST)
            detail = f"{self.detail(manifest['counts'])}, {manifest['written_at']}"
            return [self.row("done", detail, store)]
        if store.exists(STARTED):
            failure = _failure_of(store)
            detail = self.progress(store) if failure is None else f"failed: {failure}"
            return [self.row("unfinished", detail, store)]
        return [self.row("not started", "", store)]

    def row(self, state: str, detail: str, store: RunStore) -> dict[str, str]:
        return {"stage": self.name, "state": state, "detail": detail, "path": store.root}

    def forecast(
        self, run: "Run", known: Mapping[str, Any], tflops: float
    ) -> dict[str, Any] | None:
        """Its part of `plan`, None for a stage that has none.

        Args:
            known: the parts of the stages before it, by title. tflops: of one device.
        """
        return None


def _failure_of(store: RunStore) -> str | None:
    """What ended a stage's workers, if they left word of it."""
    for name in store.names():
        if name.startswith(FAILURE):
            found: str = store.read_json(name)["message"]
            return found
    return None
