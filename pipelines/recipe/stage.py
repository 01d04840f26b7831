"""What the commands know of a stage, and of a run.

A stage is added by adding a room with one of these; run, status, plan, submit and the command line
loop over the list of them (pipelines/commands/stages.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

from pipelines.recipe.record import StageRecord, read_manifest, read_started
from pipelines.recipe.run_paths import MANIFEST, STARTED, RunPaths, failure_files
from pipelines.recipe.schema import Recipe
from pipelines.recipe.section import stage_settings
from pipelines.storage import RunStore, newest_note, read_record, told_progress, whereabouts

Say = Callable[[str], None]  # takes a line for the user
Inputs = TypeVar("Inputs")


class Run:
    """What a command knows of a run.

    Each stage's inputs are resolved when they are first asked for, and never again: a command that
    runs five stages reads every source and every file of weights once.

    Attributes:
        recipe: settled. paths: where the run lies.
    """

    def __init__(self, recipe: Recipe, resolved: dict[str, Any] | None = None) -> None:
        self.recipe, self.paths = recipe, RunPaths.of(recipe)
        self._inputs: dict[str, Any] = {} if resolved is None else resolved
        self._records: dict[str, StageRecord] = {}

    def inputs(self, stage: "Stage[Inputs]") -> Inputs:
        """What a stage's own `resolve` found."""
        if stage.name not in self._inputs:
            self._inputs[stage.name] = stage.resolve(self.recipe)
        return cast(Inputs, self._inputs[stage.name])

    def record(self, stage: "Stage[Any]") -> StageRecord:
        """A stage's record, made of its inputs and the records of the stages that it needs."""
        if stage.name not in self._records:
            earlier = {need.name: self.record(need) for need in stage.needs(self.recipe)}
            self._records[stage.name] = stage.record(self.recipe, self.inputs(stage), earlier)
        return self._records[stage.name]

    def with_places(self, recipe: Recipe) -> "Run":
        """The same inputs for a recipe that differs in run_dir, paths or ray alone."""
        return Run(recipe, self._inputs)


@dataclass(frozen=True)
class Action:
    """What a stage's own command does on request instead of running the stage.

    Attributes:
        flag: of the command line, without dashes. help: its line. do: given the run, what starts
            Ray, where to say what, and whether to be quiet.
    """

    flag: str
    help: str
    do: Callable[[Run, Callable[[], None], Say, bool], None]


@dataclass(frozen=True)
class View:
    """What a stage's own command prints of its result on request, once that is there.

    Attributes:
        flag: of the command line, without dashes; it takes a number. help: its line. lines: given
            the run, the number, and whether they go to a terminal.
    """

    flag: str
    help: str
    lines: Callable[[Run, int, bool], Iterable[str]]


class Stage(ABC, Generic[Inputs]):
    """What the commands know of a stage; run, status, plan, submit and the command line loop over
    a list of these.

    A stage's module imports nothing heavy: what computes is imported by the methods that compute.

    Attributes:
        name: of its command and record. help: of its command. title: of its part of a plan.
        in_run: whether `run` takes it. has_command: whether a command is called so. is_optional:
            whether a recipe may do without it, so that commands which do not run it leave its
            checks alone. has_record: whether its result is kept. uses_ray: whether it works on Ray.
        flag: the option that asks for a stage that runs on request only, without dashes. follows:
            the stage whose commands have that option. flag_help: of the option. flag_hint: said
            where the stage applies and was not asked for.
        actions: what its command does instead, on request. views: what it prints besides.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    title: ClassVar[str]
    in_run: ClassVar[bool] = True
    has_command: ClassVar[bool] = True
    is_optional: ClassVar[bool] = False
    has_record: ClassVar[bool] = True
    uses_ray: ClassVar[bool] = True
    flag: ClassVar[str | None] = None
    follows: "ClassVar[Stage[Any] | None]" = None
    flag_help: ClassVar[str] = ""
    flag_hint: ClassVar[str] = ""
    actions: ClassVar[tuple[Action, ...]] = ()
    views: ClassVar[tuple[View, ...]] = ()

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

    def is_done(self, run: Run) -> bool:
        """Whether its result is there and matches; UserError if another run's is there."""
        return run.record(self).is_complete()

    def check(self, run: Run) -> None:
        """UserError for what it will refuse, before any work of any stage."""

    def check_place(self, run: Run, resources: Any) -> None:
        """UserError for what it will not get of the machines that it is to run on.

        Only the stages that a command runs are asked: the others may run elsewhere.

        Args:
            resources: of the cluster room, what the run may take there.
        """

    def check_pairs(
        self, recipe: Recipe, kept: Mapping[str, int], is_expected: bool = False
    ) -> None:
        """UserError if it needs pairs of a split that has none.

        Args:
            kept: split -> pairs that prepare kept. is_expected: the numbers are an estimate.
        """

    def check_room(self, run: Run) -> None:
        """UserError if its disk has no room for its result; asked once pairs are prepared."""

    @abstractmethod
    def run(self, run: Run, say: Say, quiet: bool) -> dict[str, Any]:
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

    def progress(self, paths: RunPaths) -> str:
        """What `status` says of how far a stage that has begun has come."""
        return ""

    def is_resuming(self, paths: RunPaths, since: float) -> bool:
        """Whether a command that works on it since then has not come beyond what it found.

        Args:
            since: seconds since the epoch.
        """
        return False

    def status(self, paths: RunPaths) -> list[dict[str, Any]]:
        """Rows of `status`: stage, state, detail, path; of one at work host, pid and since too.

        The state is done, running, resuming, failed, stopped (no process works on it any more) or
        not started. A stage that `run` does not take has a row only where it was begun.
        """
        store = self.folder(paths)
        if store.exists(MANIFEST):
            manifest = read_manifest(store)
            detail = f"{self.detail(manifest['counts'])}, {manifest.get('written_at', '')}"
            return [self.row("done", detail, store)]
        begun = store.exists(STARTED)
        if begun:
            read_started(store)  # or says that it is damaged
        if note := newest_note(store):
            return [self._at_work(paths, note, begun)]
        if begun:
            failure = _failure_of(store)
            far = self.progress(paths)
            cure = "; ".join([*([far] if far else []), "the same command goes on with it"])
            if failure is None:
                return [self.row("stopped", cure, store)]
            return [self.row("failed", f"failed: {failure}; {cure}", store)]
        is_awaited = self.in_run and self.is_awaited(paths)
        return [self.row("not started", "", store)] if is_awaited else []

    def is_awaited(self, paths: RunPaths) -> bool:
        """Whether the run is still to come to a stage that has not begun."""
        return True

    def _at_work(self, paths: RunPaths, note: dict[str, Any], begun: bool) -> dict[str, Any]:
        far = [self.progress(paths) if begun else "", told_progress(note)]
        is_resuming = begun and self.is_resuming(paths, note["since"])
        row = self.row(
            "resuming" if is_resuming else "running",
            "; ".join(filter(None, far)) or "starting",
            self.folder(paths),
        )
        return {**row, **whereabouts(note)}

    def row(self, state: str, detail: str, store: RunStore) -> dict[str, Any]:
        return row_of(self.name, state, detail, store)

    def forecast(self, run: Run, known: Mapping[str, Any], tflops: float) -> dict[str, Any] | None:
        """Its part of `plan`, None for a stage that has none.

        Args:
            known: the parts of the stages before it, by title. tflops: of one device.
        """
        return None

    def planned(self, forecast: Mapping[str, Any]) -> str:
        """What `plan` says of what it will make, in a few words; by its own forecast."""
        return ""


def row_of(stage: str, state: str, detail: str, place: RunStore) -> dict[str, Any]:
    """A row of `status`."""
    return {"stage": stage, "state": state, "detail": detail, "path": place.root}


def _failure_of(store: RunStore) -> str | None:
    """What ended a stage's workers, if they left word of it."""
    for name in failure_files(store):
        found: str = read_record(store, name, {"message": str})["message"]
        return found
    return None
