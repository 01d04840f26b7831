"""Recipe files: YAML + `key=value` overrides -> a validated Recipe, or one clear line."""

import difflib
import re
import types
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from pipelines.errors import UserError
from pipelines.recipe.interpolation import refuse_resolvers, refuse_unresolved
from pipelines.recipe.schema import Recipe
from pipelines.storage import RunStore

# Alternatives of a tagged union: a key that belongs to another alternative must not survive an
# override of the tag.
_TAG_KEYS = ("objective.name", "mask.kind", "evaluate.reward.kind", "evaluate.judge.kind")
_FLOAT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def packaged(kind: Literal["recipe", "sweep"]) -> dict[str, Path]:
    """Name -> file of the recipes or sweeps shipped with the package."""
    folder = Path(str(resources.files("pipelines"))) / f"{kind}s"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe file (or a packaged recipe by name) and apply `key=value` overrides.

    Raises: UserError naming the file or key, the value and what is allowed.
    """
    return validate_recipe(read_mapping(recipe, "recipe"), overrides)


def read_mapping(name: str, kind: Literal["recipe", "sweep"]) -> dict[str, Any]:
    """Read a YAML mapping from a file (on an object store too), or a packaged one by its name."""
    try:
        loaded = OmegaConf.create(_text_of(name, kind))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{kind} {name!r} is not valid YAML: {_first_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{kind} {name!r} must be a mapping of keys to values")
    plain = OmegaConf.to_container(loaded)
    assert isinstance(plain, dict)
    refuse_resolvers(plain, f"{kind} {name!r}")
    return {str(key): value for key, value in plain.items()}


def _text_of(name: str, kind: Literal["recipe", "sweep"]) -> str:
    folder, _, file = name.rpartition("/")
    if "://" in name:
        store = RunStore(folder)
        if not store.exists(file):
            raise UserError(f"{kind} {name!r}: no such file")
        return store.read_bytes(file).decode()
    path, known = Path(name), packaged(kind)
    if not path.is_file() and name not in known:
        raise UserError(
            f"{kind} {name!r}: no such file, nor a packaged {kind} ({', '.join(known)})"
        )
    return (path if path.is_file() else known[name]).read_text()


def validate_recipe(mapping: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Apply overrides to a mapping and validate it."""
    for item in overrides:
        if "=" not in item:
            raise UserError(
                f"override {item!r}: write it as key=value, for example train.learning_rate=1e-5"
            )
    try:
        refuse_resolvers(mapping, "recipe")
        base = OmegaConf.create(mapping)
        # Tags first: switching a tagged union's alternative discards the other alternative's keys,
        # not the given ones.
        for item in sorted(overrides, key=lambda item: item.partition("=")[0] not in _TAG_KEYS):
            _override(base, item)
        merged = OmegaConf.to_container(base, resolve=True)
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"overrides {' '.join(overrides) or '(none)'}: {_first_line(error)}"
        ) from error
    refuse_unresolved(merged)
    try:
        return Recipe.model_validate(_with_absolute_paths(merged))
    except ValidationError as error:
        raise UserError(_explain(error)) from error


def _with_absolute_paths(mapping: Any) -> Any:
    """Local paths made absolute: workers may run in another directory.

    Names that are no path stay as they are.
    """

    def absolute(section: Any, *keys: str, always: bool = False) -> None:
        for key in keys:
            value = section.get(key) if isinstance(section, dict) else None
            if (
                isinstance(value, str)
                and value
                and "://" not in value
                and (always or Path(value).expanduser().exists())
            ):
                section[key] = str(Path(value).expanduser().absolute())

    if isinstance(mapping, dict):
        absolute(mapping, "run_dir", always=True)
        absolute(mapping.get("paths"), "pairs", "reference", always=True)
        absolute(
            mapping.get("model"),
            "name_or_path",
            "reference",
            "tokenizer",
            "positive_scorer",
            "negative_scorer",
            "embedder",
        )
        evaluate: Any = mapping.get("evaluate") or {}
        absolute(evaluate, "key_words")
        if isinstance(evaluate, dict):
            absolute(evaluate.get("reward"), "model")
            absolute(evaluate.get("judge"), "model")
            absolute(evaluate.get("code"), "tasks")
            absolute(evaluate.get("leaderboard"), "include_path")
            absolute(evaluate.get("summarization"), "bert_score_model", "entailment_model")
        absolute(mapping.get("schedule"), "release")
        data = mapping.get("data")
        for name in ("sources", "validation", "test"):
            for source in data.get(name) or () if isinstance(data, dict) else ():
                absolute(source, "path")
    return mapping


def _override(base: DictConfig, item: str) -> None:
    """Set one key=value (key may index lists: data.sources[0].path); the value is read as YAML."""
    key, _, text = item.partition("=")
    value = yaml.safe_load(text) if text else None
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        value = float(value)  # YAML 1.1 takes 1e-5 for a string
    refuse_resolvers(value, "command line", key)
    if key in _TAG_KEYS and OmegaConf.select(base, key) not in (None, value):
        OmegaConf.update(base, key.rpartition(".")[0], {}, merge=False)
    OmegaConf.update(base, key, value, merge=False, force_add=True)


def write_yaml(recipe: Recipe) -> str:
    """The fully resolved recipe as YAML."""
    return to_yaml(recipe.model_dump(mode="json"))


def to_yaml(mapping: dict[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(mapping))


def from_yaml(text: str) -> dict[str, Any]:
    """A recipe's mapping from what `write_yaml` wrote."""
    found: Any = OmegaConf.to_container(OmegaConf.create(text))
    return found


def set_keys(mapping: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe mapping with dotted keys set to plain values."""
    config = OmegaConf.create(mapping)
    for key, value in values.items():
        OmegaConf.update(config, key, value, force_add=True)
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return {str(key): item for key, item in plain.items()}


def unknown_key_message(key: str) -> str | None:
    """None for a leaf or section of the recipe schema, else a line naming the nearest valid key."""
    valid = _all_keys(Recipe, "")
    if key in valid:
        return None
    return f"unknown config key {key!r}{_nearest(key, valid)}"


def _explain(error: ValidationError) -> str:
    """The first problem as one line, with the count of further ones."""
    problems = error.errors()
    first = problems[0]
    parts = [str(part) for part in first["loc"]]
    # The tag of a union appears in the location but is no key of the recipe.
    if len(parts) > 1 and parts[0] in ("objective", "mask", "evaluate", "sample"):
        parts = [p for i, p in enumerate(parts) if i == 0 or p not in _all_tags()]
    key = ".".join(parts)
    value = first.get("input")
    if first["type"] == "extra_forbidden":
        scope = _all_keys(Recipe, "")
        line = f"unknown config key {key!r}{_nearest(key, scope)}"
    elif first["type"] == "missing":
        line = f"config key {key!r} is required and missing"
    elif first["type"] == "value_error":
        line = (f"{key}: " if key else "") + str(first["ctx"]["error"])
    elif first["type"] == "union_tag_invalid":
        context = first["ctx"]
        line = (
            f"{key}.{context['discriminator'].strip(chr(39))} = {context['tag']!r}: allowed are "
            f"{context['expected_tags']}"
        )
    elif first["type"] == "union_tag_not_found":
        line = (
            f"{key}: needs the key {first['ctx']['discriminator']}: one of "
            f"{', '.join(map(repr, _tags_of(key)))}"
        )
    else:
        shown = "" if isinstance(value, dict) else f" = {value!r}"
        line = f"{key}{shown}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return line + (f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else "")


def _tags_of(key: str) -> list[str]:
    """The alternatives of a tagged union, from the schema."""
    model: Any = Recipe
    for part in key.split("."):
        field = model.model_fields[part]
        sections = _sections_in(field.annotation)
        model = sections[0]
    tag = "name" if "name" in sections[0].model_fields else "kind"
    return [section.model_fields[tag].default for section in sections]


def _all_tags() -> set[str]:
    """Every alternative's name in the schema's tagged unions.

    They appear in error locations but are no keys.
    """
    return {
        tag
        for key in ("objective", "mask", "evaluate.reward", "evaluate.judge")
        for tag in _tags_of(key)
    }


def _all_keys(model: type[BaseModel], prefix: str) -> set[str]:
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        keys.add(prefix + name)
        for section in _sections_in(field.annotation):
            keys |= _all_keys(section, f"{prefix}{name}.")
    return keys


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, tuple, Annotated):
        return [section for item in get_args(annotation) for section in _sections_in(item)]
    return []


def _nearest(key: str, valid: set[str]) -> str:
    near = difflib.get_close_matches(key, sorted(valid), n=1, cutoff=0.5)
    if not near:
        last = key.rsplit(".", 1)[-1]
        near = [k for k in sorted(valid) if k.rsplit(".", 1)[-1] == last][:1]
    return (
        f": did you mean {near[0]!r}?"
        if near
        else f": valid top-level keys are {', '.join(sorted(k for k in valid if '.' not in k))}"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
