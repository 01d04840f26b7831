"""Sweep files: a base recipe, a search space over its keys, and what to optimise."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.config import Recipe
from pipelines.errors import UserError
from pipelines.recipe import read_mapping, set_keys, unknown_key_message, validate_recipe

_MAX_COMBINATIONS = 256


class Range(BaseModel):
    """Values of one searched key: exactly one of the fields.

    grid: every value is tried; choice: one of the values at random; uniform, loguniform: [low, high] real numbers;
    int: [low, high] whole numbers, both included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    grid: tuple[Any, ...] | None = Field(None, min_length=1)
    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    int: Annotated[tuple[int, int] | None, Field(alias="int")] = None

    @model_validator(mode="after")
    def _one(self) -> "Range":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of grid, choice, uniform, loguniform, int; got {', '.join(given) or 'none'}")
        for bounds in (self.uniform, self.loguniform, self.int):
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"range [{bounds[0]}, {bounds[1]}] is empty: low must be below high")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform low = {self.loguniform[0]}: must be > 0")
        return self

    def values(self) -> tuple[Any, ...] | None:
        """The listed values, or None for a continuous or integer range."""
        return self.grid or self.choice


class Sweep(BaseModel):
    """A validated sweep file. `recipe` is a file or packaged name; `overrides` apply to every trial."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    run_dir: str = Field(min_length=1)
    recipe: str
    overrides: tuple[str, ...] = ()
    space: dict[str, Range] = Field(min_length=1)
    metric: str = "validation/rewards/margins"
    mode: Literal["max", "min"] = "max"
    num_samples: int = Field(1, ge=1)
    max_concurrent_trials: int | None = Field(None, ge=1)
    evaluate: bool = False
    seed: int = 0

    def base(self) -> dict[str, Any]:
        """The base recipe as a plain mapping, overrides applied."""
        recipe = validate_recipe(read_mapping(self.recipe), (*self.overrides, f"run_dir={self.run_dir}"))
        return recipe.model_dump(mode="json")

    def trial_recipe(self, values: dict[str, Any], run_dir: str) -> Recipe:
        """The recipe of one point of the space."""
        overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}" for key, value in values.items()]
        return validate_recipe(set_keys(self.base(), {"run_dir": run_dir}), overrides)

    def num_trials(self) -> int:
        """Points that are tried: the grids' product, num_samples times."""
        return self.num_samples * math.prod(len(r.grid) for r in self.space.values() if r.grid)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of listed values, with the low end standing for a range; at most 256."""
        keys = list(self.space)
        listed = [r.values() or ((r.uniform or r.loguniform or r.int or (None,))[0],) for r in self.space.values()]
        for values in itertools.islice(itertools.product(*listed), _MAX_COMBINATIONS):
            yield dict(zip(keys, values, strict=True))


def load_sweep(path: str, overrides: Sequence[str] = ()) -> Sweep:
    """Read and check a sweep file; `overrides` are added to the recipe's. UserError names what is wrong."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"sweep file {path!r}: no such file")
    try:
        loaded = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"sweep file {path!r} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"sweep file {path!r} must be a mapping of keys to values")
    own = {key: value for item in overrides for key, _, value in [item.partition("=")] if key in Sweep.model_fields}
    rest = [item for item in overrides if item.partition("=")[0] not in Sweep.model_fields]
    loaded = {**loaded, **{key: yaml.safe_load(value) for key, value in own.items()}}
    loaded["overrides"] = [*(loaded.get("overrides") or []), *rest]
    for key in loaded.get("space") or {}:
        message = unknown_key_message(str(key))
        if message:
            raise UserError(f"sweep file {path!r}, space: {message}")
    try:
        sweep = Sweep.model_validate(
            {**loaded, "run_dir": str(Path(loaded.get("run_dir", "")).absolute()) if loaded.get("run_dir") else ""}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"sweep file {path!r}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for values in sweep.combinations():
        sweep.trial_recipe(values, sweep.run_dir)
    return sweep
