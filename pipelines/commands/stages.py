"""The stages that the commands know: a new one is added here, and nowhere else in this room."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.discriminator import DISCRIMINATOR, EDIT
from pipelines.evaluate import EVALUATE, EXECUTE, SAMPLE
from pipelines.pairs import PREPARE
from pipelines.recipe import PAGE, Recipe, Run, RunPaths, Say, Stage, StageRecord
from pipelines.reference import REFERENCE
from pipelines.storage import RunStore
from pipelines.train import TRAIN


class Report(Stage[None]):
    """The page of a run; it is written again each time, so it keeps no record."""

    name = title = "report"
    help = "Write the HTML report of one run, or the comparison of several."
    is_optional = True
    has_record = False
    uses_ray = False

    def folder(self, paths: RunPaths) -> RunStore:
        return paths.report

    def needs(self, recipe: Recipe) -> tuple[Stage[Any], ...]:
        return (TRAIN,) if recipe.evaluate.model is None else (EVALUATE,)

    def resolve(self, recipe: Recipe) -> None:
        return None

    def fingerprints(
        self, recipe: Recipe, inputs: None, earlier: Mapping[str, StageRecord]
    ) -> dict[str, Any]:
        return {}

    def is_done(self, run: Run) -> bool:
        return False

    def run(self, run: Run, say: Say, quiet: bool) -> dict[str, Any]:
        from pipelines.models import quick_imports

        with quick_imports():
            from pipelines.commands.report import run_report

        return {"counts": {"page": run_report([run.recipe.run_dir])}}

    def summary(self, counts: dict[str, Any]) -> str:
        page: str = counts["page"]
        return page

    def status(self, paths: RunPaths) -> list[dict[str, Any]]:
        store = self.folder(paths)
        is_there = store.exists(PAGE)
        return [self.row("done" if is_there else "not started", PAGE if is_there else "", store)]


REPORT = Report()

# In the order in which they run.
STAGES: tuple[Stage[Any], ...] = (
    SAMPLE, PREPARE, EDIT, REFERENCE, DISCRIMINATOR, TRAIN, EVALUATE, EXECUTE, REPORT,
)  # fmt: skip
RUN = tuple(stage for stage in STAGES if stage.in_run)


def asked_for(recipe: Recipe, stages: Sequence[Stage[Any]]) -> list[Stage[Any]]:
    """Of the stages of a command those that the recipe asks for; what is named alone is done."""
    if len(stages) == 1:
        return list(stages)
    return [stage for stage in stages if stage.is_optional or stage.applies(recipe)]


def on_request(stages: Sequence[Stage[Any]]) -> tuple[Stage[Any], ...]:
    """The stages with a flag that may follow these."""
    return tuple(stage for stage in STAGES if stage.flag is not None and stage.follows in stages)


def stages_of(command: str) -> tuple[Stage[Any], ...]:
    """The stages that a command runs; of one that runs none of a recipe's, nothing."""
    named = {stage.name: (stage,) for stage in STAGES}
    return {**named, "run": RUN, "schedule": (EVALUATE,)}.get(command, ())
