"""A recipe with what its stages read, worked out once."""

from typing import Any, TypeVar, cast

from pipelines.recipe.run_paths import RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Stage, StageRecord

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

    def inputs(self, stage: Stage[Inputs]) -> Inputs:
        """What a stage's own `resolve` found."""
        if stage.name not in self._inputs:
            self._inputs[stage.name] = stage.resolve(self.recipe)
        return cast(Inputs, self._inputs[stage.name])

    def record(self, stage: Stage[Any]) -> StageRecord:
        """A stage's record, made of its inputs and the records of the stages that it needs."""
        if stage.name not in self._records:
            earlier = {need.name: self.record(need) for need in stage.needs(self.recipe)}
            self._records[stage.name] = stage.record(self.recipe, self.inputs(stage), earlier)
        return self._records[stage.name]

    def with_places(self, recipe: Recipe) -> "Run":
        """The same inputs for a recipe that differs in run_dir, paths or ray alone."""
        return Run(recipe, self._inputs)
