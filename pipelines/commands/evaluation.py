"""evaluate: which recipe its arguments mean; flags make one for a foreign model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipelines.commands.stages import REPORT
from pipelines.errors import UserError
from pipelines.evaluate import EVALUATE
from pipelines.pairs import PREPARE
from pipelines.recipe import Recipe, Stage, load_recipe, validate_recipe

_UNMASKED = ["preference", "sentiment"]
_MISSING = {
    "pairs": "--pairs FILE: preference pairs that the model has not seen",
    "output": "--output DIR: where samples, numbers and the page go",
}


@dataclass(frozen=True)
class Flags:
    """Of `sparsepo evaluate`; the model, a reference, pairs and output take a recipe's place."""

    model: str | None = None
    reference: str | None = None
    pairs: str | None = None
    output: str | None = None

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "Flags":
        """Those among the parameters of the command."""
        return cls(**{part.name: parameters[part.name] for part in fields(cls)})

    def recipe(self, recipe: str | None, overrides: Sequence[str], name: str | None) -> Recipe:
        """The recipe that is meant.

        Args:
            recipe: file or name; with flags it may be the first override. name: of the evaluation.
        Raises: UserError for flags that do not go together.
        """
        given = {key: value for key, value in asdict(self).items() if value is not None}
        named = [] if name is None else [f"evaluate.name={name}"]
        if not given:
            if recipe is None:
                raise UserError(
                    "evaluate: name a RECIPE, or a model that was not trained here with --model "
                    "DIR --pairs FILE --output DIR"
                )
            return load_recipe(recipe, [*overrides, *named])
        if recipe is not None and "=" not in recipe:
            raise UserError(
                f"evaluate: a recipe ({recipe}) and --{next(iter(given))}: flags make a recipe of "
                "their own; by a recipe, evaluate.model=DIR evaluates another model"
            )
        if self.model is None:
            raise UserError(f"--{next(iter(given))}: goes with --model DIR, which is missing")
        if missing := [text for key, text in _MISSING.items() if key not in given]:
            raise UserError(f"--model: needs {' and '.join(missing)}")
        first = [] if recipe is None else [recipe]
        return validate_recipe(self._mapping(), [*first, *overrides, *named])

    def _mapping(self) -> dict[str, Any]:
        return {
            "run_dir": self.output,
            "model": {"name_or_path": self.reference or self.model},
            "data": {"sources": [], "test": [{"path": self.pairs}]},
            "evaluate": {"model": self.model, "benchmarks": _UNMASKED},
        }

    def stages(self) -> tuple[Stage[Any], ...]:
        return (EVALUATE,) if self.model is None else (PREPARE, EVALUATE, REPORT)
