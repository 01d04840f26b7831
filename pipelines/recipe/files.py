"""Recipe files: YAML + `key=value` overrides -> a validated Recipe, or one clear line."""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from copy import deepcopy
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from pipelines.errors import UserError
from pipelines.recipe.interpolation import refuse_resolvers, refuse_unresolved
from pipelines.recipe.keys import is_tag
from pipelines.recipe.location import is_file, refuse_impossible, with_absolute_paths
from pipelines.recipe.problems import explain
from pipelines.recipe.schema import Recipe
from pipelines.storage import RunStore, damaged, did_you_mean, nearest_path, read_whole

_FLOAT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_REFERENCE = re.compile(r"\$\{(\w+)")
_PART = re.compile(r"[^.\[\]]+")
Schema = TypeVar("Schema", bound=BaseModel)
Kind = Literal["recipe", "sweep", "merge"]
_COMMANDS: dict[Kind, str] = {"recipe": "run", "sweep": "tune", "merge": "merge"}


def packaged(kind: Kind) -> dict[str, Path]:
    """Name -> file of the recipes, sweeps or merges shipped with the package."""
    folder = Path(str(resources.files("pipelines"))) / f"{kind}s"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def packaged_template(name: str) -> Path | None:
    """The file of a chat template shipped with the package; None if none is called so."""
    folder = Path(str(resources.files("pipelines"))) / "recipes"
    known = {path.stem: path for path in folder.glob("*.jinja")}
    return known.get(name)


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe file (or a packaged recipe by name) and apply `key=value` overrides.

    Raises: UserError naming the file or key, the value and what is allowed.
    """
    return validate_recipe(read_mapping(recipe, "recipe"), overrides)


def read_mapping(name: str, kind: Kind) -> dict[str, Any]:
    """Read a YAML mapping from a file (on an object store too), or a packaged one by its name."""
    try:
        plain = deepcopy(_parsed(_text_of(name, kind)))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{kind} {name!r} is not valid YAML: {_fault_of(error)}") from error
    if not isinstance(plain, dict):
        raise UserError(f"{kind} {name!r} must be a mapping of keys to values")
    refuse_resolvers(plain, f"{kind} {name!r}")
    return {str(key): value for key, value in plain.items()}


@lru_cache(maxsize=128)
def _parsed(text: str) -> Any:
    """What a YAML text holds; None unless it is a mapping. Files are read more than once."""
    # What is neither a mapping nor a list (a number, a word) is no configuration to OmegaConf.
    if not isinstance(yaml.safe_load(text), dict):
        return None
    return OmegaConf.to_container(OmegaConf.create(text))


def _text_of(name: str, kind: Kind) -> str:
    folder, _, file = name.rpartition("/")
    if "://" in name:
        store = RunStore(folder)
        if not store.exists(file):
            raise UserError(f"{kind} {name!r}: no such file")
        return store.read_bytes(file).decode()
    path, known = Path(name), packaged(kind)
    is_there = is_file(path)
    if not is_there and name not in known:
        raise UserError(_not_there(name, kind, known))
    return (path if is_there else known[name]).read_text()


def _not_there(name: str, kind: Kind, known: Collection[str]) -> str:
    """What to say of a name that is neither a file nor packaged, with what it may mean."""
    for other, command in _COMMANDS.items():
        if other != kind and name in packaged(other):
            return f"{kind} {name!r}: it is a packaged {other}: sparsepo {command} {name}"
    if "=" in name:
        return f"{kind} {name!r}: a file or a packaged {kind} comes first, overrides after it"
    if os.path.isdir(name):  # noqa: PTH112  False for what no folder can be called
        inside = sorted(str(path) for path in Path(name).glob("*.yaml"))
        return f"{kind} {name!r} is a folder" + (f"; it holds {inside[0]}" if inside else "")
    near = did_you_mean(name, known) or nearest_path(name, (".yaml", ".yml"))
    listed = "" if near else f" ({', '.join(known)})"
    return f"{kind} {name!r}: no such file, nor a packaged {kind}{listed}{near}"


def validate_recipe(
    mapping: dict[str, Any], overrides: Sequence[str] = (), directory: str | None = None
) -> Recipe:
    """Apply overrides to a mapping and validate it.

    Args:
        directory: where relative paths start; the current one by default.
    Raises: UserError naming the key, the value and what is allowed.
    """
    return validate(Recipe, mapping, overrides, directory)


def validate(
    schema: type[Schema],
    mapping: dict[str, Any],
    overrides: Sequence[str] = (),
    directory: str | None = None,
) -> Schema:
    """`validate_recipe` for any schema."""
    for item in overrides:
        if "=" not in item:
            raise UserError(
                f"override {item!r}: write it as key=value, for example train.learning_rate=1e-5"
            )
    try:
        refuse_resolvers(mapping, "recipe")
        merged = _merged(schema, mapping, _in_order(schema, overrides))
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"overrides {' '.join(overrides) or '(none)'}: {_fault_of(error)}"
        ) from error
    refuse_unresolved(merged)
    try:
        found = schema.model_validate(merged)
    except ValidationError as error:
        raise UserError(explain(schema, error)) from error
    absolute = with_absolute_paths(found, Path(directory) if directory else Path.cwd())
    refuse_impossible(absolute)
    return absolute


def _merged(schema: type[BaseModel], mapping: dict[str, Any], overrides: Sequence[str]) -> Any:
    """The mapping with the overrides, as plain values.

    OmegaConf takes milliseconds for a recipe, and a sweep makes hundreds: it gets the sections that
    an override names, those that refer to others, and what they refer to.
    """
    refers = any("${" in item for item in overrides)
    keys = mapping if refers else (item.partition("=")[0] for item in overrides)
    named = _needed(mapping, keys)
    base = OmegaConf.create({key: value for key, value in mapping.items() if key in named})
    for item in overrides:
        _override_named(schema, base, item)
    return _put_back(mapping, OmegaConf.to_container(base, resolve=True), named)


def _needed(mapping: dict[str, Any], keys: Iterable[str]) -> set[str]:
    """Sections that OmegaConf has to see if these keys are set."""
    needed = {next(iter(_PART.findall(str(key))), "") for key in keys}
    for section, value in mapping.items():
        found = _references(value)
        if found is None:
            return set(mapping)
        needed |= {section, *found} if found else set()
    return needed


def _references(value: Any) -> set[str] | None:
    """Sections that a value refers to; None if OmegaConf may make something else of it."""
    if type(value) is str:
        found = _REFERENCE.findall(value)
        return set(found) if len(found) == value.count("${") else None
    if type(value) in (bool, int, float, type(None)):
        return set()
    if type(value) is dict and all(type(key) is str for key in value):
        parts = [_references(part) for part in value.values()]
    elif type(value) is list:
        parts = [_references(part) for part in value]
    else:
        return None
    return None if None in parts else {name for part in parts for name in part or ()}


def _put_back(mapping: dict[str, Any], found: Any, named: Collection[str]) -> dict[str, Any]:
    """A copy of a mapping with the sections that were changed, in its order."""
    rest = {key: deepcopy(value) for key, value in mapping.items() if key not in named}
    order = dict.fromkeys([*mapping, *found])
    return {str(key): found[key] if key in found else rest[key] for key in order}


def _in_order(schema: type[BaseModel], overrides: Sequence[str]) -> list[str]:
    """Overrides in the order in which they are applied: as given, but tags before their siblings.

    Switching a union's alternative discards the other alternative's keys, not the given ones.
    """

    def scope(item: str) -> list[str]:
        """What an override replaces, as parts of its key."""
        key = item.partition("=")[0]
        return _PART.findall(key.rpartition(".")[0] if is_tag(schema, key) else key)

    tags = [i for i, item in enumerate(overrides) if is_tag(schema, item.partition("=")[0])]
    order = [i for i in range(len(overrides)) if i not in tags]
    for tag in sorted(tags, key=lambda i: len(scope(overrides[i]))):
        own = scope(overrides[tag])
        around = [
            place
            for place, i in enumerate(order)
            if (i < tag or i in tags) and (outer := scope(overrides[i])) == own[: len(outer)]
        ]
        order.insert(max(around, default=-1) + 1, tag)
    return [overrides[i] for i in order]


def override(schema: type[BaseModel], mapping: dict[str, Any], item: str) -> dict[str, Any]:
    """A copy of a mapping with one key=value set; another tag discards the other alternative."""
    base = OmegaConf.create(mapping)
    _override(schema, base, item)
    plain: Any = OmegaConf.to_container(base)
    return plain


def _override_named(schema: type[BaseModel], base: DictConfig, item: str) -> None:
    """`_override`, whose error names it among others."""
    try:
        _override(schema, base, item)
    except YAMLError as error:
        raise UserError(f"override {item!r} is not valid YAML: {_fault_of(error)}") from error


def _override(schema: type[BaseModel], base: DictConfig, item: str) -> None:
    """Set one key=value (key may index lists: data.sources[0].path); the value is read as YAML."""
    key, _, text = item.partition("=")
    value = yaml.safe_load(text) if text else None
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        value = float(value)  # YAML 1.1 takes 1e-5 for a string
    refuse_resolvers(value, "command line", key)
    if is_tag(schema, key) and OmegaConf.select(base, key) not in (None, value):
        OmegaConf.update(base, key.rpartition(".")[0], {}, merge=False)
    OmegaConf.update(base, key, value, merge=False, force_add=True)


def write_yaml(recipe: Recipe) -> str:
    """The fully resolved recipe as YAML."""
    return to_yaml(recipe.model_dump(mode="json"))


def write_yaml_beside(recipe: Recipe, other: dict[str, Any]) -> str:
    """The recipe as YAML, with the evaluation of another one that was there before."""
    mapping = recipe.model_dump(mode="json")
    return to_yaml({**mapping, "evaluate": other.get("evaluate", mapping["evaluate"])})


def to_yaml(mapping: dict[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(mapping))


def from_yaml(text: str) -> dict[str, Any]:
    """A recipe's mapping from what `write_yaml` wrote."""
    found: Any = OmegaConf.to_container(OmegaConf.create(text))
    return found


def read_config(store: RunStore, path: str) -> tuple[dict[str, Any], str]:
    """The mapping and the text of a configuration that a run has written.

    Raises: FileNotFoundError; DamagedFile if it is none, or lacks what every run has.
    """
    cure = "restore it, or give the run's command again, which writes it anew"
    try:
        text = read_whole(store, path, cure).decode()
        mapping = deepcopy(_parsed(text))
    except UnicodeDecodeError as error:
        raise damaged(store, path, "it is not UTF-8", cure) from error
    except (YAMLError, OmegaConfBaseException, AssertionError, RecursionError) as error:
        raise damaged(store, path, f"it is not YAML ({_fault_of(error)})", cure) from error
    found: Any = mapping if isinstance(mapping, dict) else {}
    name, places = (_inner(found, *keys) for keys in (("objective", "name"), ("paths",)))
    if not isinstance(name, str) or not isinstance(places, dict):
        raise damaged(store, path, "it has no objective.name or no paths", cure)
    for key, place in places.items():
        if not isinstance(place, str | None):
            raise damaged(store, path, f"paths.{key} is no path", cure)
    return found, text


def check_config(
    store: RunStore, path: str, mapping: dict[str, Any], settings: dict[str, Any]
) -> None:
    """DamagedFile if a configuration says otherwise than the settings of a stage that it made."""
    for key, value in settings.items():
        parts = _PART.findall(key)
        said = _inner(mapping, *(int(part) if part.isdigit() else part for part in parts))
        if said not in (_NOTHING, value):
            raise damaged(
                store,
                path,
                f"it says {key} = {said}, and the stage was made with {value}",
                "restore it, or give the run's command again, which writes it anew",
            )


_NOTHING = object()


def _inner(value: Any, *keys: str | int) -> Any:
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return _NOTHING
    return value


def set_keys(mapping: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe mapping with dotted keys set to plain values."""
    named = _needed(mapping, values)
    config = OmegaConf.create({key: value for key, value in mapping.items() if key in named})
    for key, value in values.items():
        OmegaConf.update(config, key, value, force_add=True)
    return _put_back(mapping, OmegaConf.to_container(config), named)


def _fault_of(error: BaseException) -> str:
    """What is wrong with a text, in a line: of YAML with the line and column where it is."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is None or not problem:
        return _first_line(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(str(problem).split())}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
