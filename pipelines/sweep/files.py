"""Sweep files: YAML and `key=value` overrides -> a checked Sweep, or one clear line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipelines.errors import UserError
from pipelines.evaluate import EVALUATE
from pipelines.recipe import (
    Recipe,
    explain,
    override,
    read_mapping,
    refuse_resolvers,
    unknown_key_message,
    with_absolute_paths,
)
from pipelines.sweep.space import RECIPE, Sweep


def is_sweep(name: str) -> bool:
    """Whether a file (or packaged name) is a sweep rather than a recipe."""
    try:
        return "space" in read_mapping(name, "sweep")
    except UserError:
        return False


def load_sweep(name: str, overrides: Sequence[str] = (), shard: str | None = None) -> Sweep:
    """Read and check a sweep file, or a packaged sweep by name.

    Args:
        overrides: key=value; keys of the sweep replace what the file says, all others are overrides
            of the recipe. shard: the part that is run; by default what the file says.
    Raises: UserError naming what is wrong.
    """
    loaded = read_mapping(name, "sweep") | ({} if shard is None else {"shard": shard})
    rest = []
    for item in overrides:
        key, sign, text = item.partition("=")
        if sign and key.partition(".")[0] in Sweep.model_fields.keys() - {"overrides"}:
            if key.startswith("space."):
                loaded["space"] = {
                    **(loaded.get("space") or {}),
                    key.removeprefix("space."): yaml.safe_load(text),
                }
            else:
                loaded = _with_key(loaded, item)
        else:
            rest.append(item)
    refuse_resolvers(loaded, f"sweep file {name!r}")
    loaded["overrides"] = [*(loaded.get("overrides") or []), *rest]
    for key in loaded.get("space") or {}:
        message = None if key == RECIPE else unknown_key_message(Recipe, str(key))
        if message:
            raise UserError(f"sweep file {name!r}, space: {message}")
    _make_absolute(loaded)
    try:
        # Trials run in other directories.
        sweep = Sweep.model_validate({"directory": str(Path.cwd()), **loaded})
    except ValidationError as error:
        raise UserError(f"sweep file {name!r}: {explain(Sweep, error)}") from error
    sweep = _in_its_folder(with_absolute_paths(sweep, Path.cwd()))
    for point in sweep.points or sweep.sample_of_points():
        try:
            recipe = sweep.recipe_at(point, sweep.run_dir)
        except UserError as error:
            raise UserError(f"sweep file {name!r} at {sweep.title(point)}: {error}") from error
        _check_metrics(sweep, recipe)
    return sweep


def _in_its_folder(sweep: Sweep) -> Sweep:
    """A shard in a directory of its own."""
    if sweep.part is None or sweep.run_dir.rstrip("/").endswith(f"/{sweep.part.folder}"):
        return sweep
    return sweep.model_copy(update={"run_dir": f"{sweep.run_dir.rstrip('/')}/{sweep.part.folder}"})


def _with_key(mapping: dict[str, Any], item: str) -> dict[str, Any]:
    """A copy of a sweep mapping with one key=value set.

    The keys of its space have dots of their own.
    """
    space = mapping.get("space")
    found = override(Sweep, {k: v for k, v in mapping.items() if k != "space"}, item)
    return found if space is None or "space" in found else {**found, "space": space}


def _check_metrics(sweep: Sweep, recipe: Recipe) -> None:
    """UserError for a metric that no trial could report."""
    for key in ("model", "name"):
        if (given := getattr(recipe.evaluate, key)) is not None:
            raise UserError(f"evaluate.{key} = {given}: a trial evaluates the model that it trains")
    if sweep.evaluates():
        EVALUATE.check_recipe(recipe)
    held_out = bool(recipe.data.validation or recipe.data.validation_fraction)
    asked = [("objectives", goal.metric) for goal in sweep.objectives]
    if sweep.scheduler.name != "none":
        asked.append(("scheduler", sweep.guide().metric))
        if recipe.train.validate_every is None:
            raise UserError(
                "scheduler asha compares trials while they train: set train.validate_every in "
                "overrides"
            )
    for where, metric in asked:
        if metric.startswith("validation/") and not held_out:
            raise UserError(
                f"{where}: {metric} needs held-out pairs: set data.validation_fraction or "
                "data.validation in overrides"
            )
        benchmark = metric.split("/")[1]
        if metric.startswith("evaluation/") and benchmark not in recipe.evaluate.benchmarks:
            raise UserError(
                f"{where}: {metric}: no trial runs the benchmark {benchmark!r}: it runs "
                f"{', '.join(recipe.evaluate.benchmarks)}"
            )


def _make_absolute(loaded: dict[str, Any]) -> None:
    """Recipe files made absolute: trials may run in another directory. Packaged names stay."""

    def absolute(value: Any) -> Any:
        return (
            str(Path(value).absolute())
            if isinstance(value, str) and Path(value).is_file()
            else value
        )

    if RECIPE in loaded:
        loaded[RECIPE] = absolute(loaded[RECIPE])
    space = loaded.get("space")
    for key, values in space.items() if isinstance(space, dict) else ():
        if not isinstance(values, dict):
            continue
        named = [(values, kind) for kind in ("grid", "choice")] if key == RECIPE else []
        named += [(values["when"], RECIPE)] if isinstance(values.get("when"), dict) else []
        for mapping, name in named:
            if name in mapping:
                found = mapping[name]
                mapping[name] = (
                    [absolute(value) for value in found]
                    if isinstance(found, list)
                    else absolute(found)
                )
