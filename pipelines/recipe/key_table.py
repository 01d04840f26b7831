"""The page docs/keys.md: every key of a recipe and of a sweep, out of the schema.

python -m pipelines.recipe.key_table > docs/keys.md
"""

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipelines.recipe.keys import content_of, is_tag
from pipelines.recipe.location import Location
from pipelines.recipe.masks import MaskConfig
from pipelines.recipe.objectives import ObjectiveConfig
from pipelines.recipe.schema import Recipe
from sparsepo.masks.declarations import MASKS
from sparsepo.objectives.declarations import OBJECTIVES

_RANGES = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}


@dataclass(frozen=True)
class KeyRow:
    """One key.

    Attributes:
        key: dotted. kind: of its values. default: as YAML would write it; "required". stage: whose
            result it changes, "" for none. meaning: what its section's docstring says of it.
    """

    key: str
    kind: str
    default: str
    stage: str
    meaning: str


@dataclass(frozen=True)
class KeyGroup:
    """The keys of one section.

    Attributes:
        title: where it stands, with what chooses it. summary: the first paragraph of its docstring.
    """

    title: str
    summary: str
    rows: tuple[KeyRow, ...]


def key_groups(
    model: type[BaseModel] = Recipe,
    prefix: str = "",
    title: str = "",
    shown: dict[type[BaseModel], str] | None = None,
) -> list[KeyGroup]:
    """The section's own keys, then those of every section below it, in the schema's order.

    Args:
        shown: sections that stand above, by where: they are named and not repeated.
    """
    shown = {} if shown is None else shown
    if model in shown:
        return [KeyGroup(title, f"The keys of `{shown[model]}`.", ())]
    above = next((one for one in model.__mro__[1:] if one in shown), None)
    shown[model] = title
    meanings, summary = _meanings(model)
    if above is not None:
        summary = f"The keys of `{shown[above]}`, and:"
    rows, below = [], []
    for name, field in model.model_fields.items():
        if above is not None and name in above.model_fields:
            continue
        key, content = prefix + name, content_of(model, name)
        if not content.sections:
            meaning = "chooses these keys" if is_tag(Recipe, key) else meanings.get(name, "")
            rows.append(_row(model, key, field, meaning))
            continue
        alternatives = content.alternatives() or {"": content.sections[0]}
        is_list = get_origin(field.annotation) is tuple
        for tag, section in alternatives.items():
            chosen = f"{key}: {content.tag} = {tag}" if tag else key
            place = f"{key}[]." if is_list else f"{key}."
            below += key_groups(section, place, chosen, shown)
    return [KeyGroup(title, summary, tuple(rows)), *below] if rows else below


def page() -> str:
    """The whole page, in Markdown."""
    lines = [
        "# Every key",
        "",
        "Made from the schema by `python -m pipelines.recipe.key_table`; a test compares. A key's "
        "stage is the one whose result it changes: another value makes that stage refuse or run "
        "anew. A key without one (`-`) never does. `[]` stands for a place in a list.",
    ]
    for group in key_groups():
        title = f"`{group.title}`" if group.title else "At the top"
        lines += ["", f"## {title}", ""]
        if group.summary:
            lines += [group.summary, ""]
        if not group.rows:
            continue
        lines += ["| key | values | default | stage | |", "|---|---|---|---|---|"]
        lines += [
            f"| `{row.key}` | {row.kind} | {row.default} | {row.stage or '-'} | {row.meaning} |"
            for row in group.rows
        ]
    return "\n".join(lines) + "\n"


def _row(model: type[BaseModel], key: str, field: FieldInfo, meaning: str) -> KeyRow:
    extra = field.json_schema_extra
    own = isinstance(extra, dict) and "stage" in extra
    stage = extra["stage"] if own else getattr(model, "STAGE", None)  # type: ignore[index]
    kind = _kind(field.annotation, field.metadata)
    return KeyRow(key, kind, _default(field), str(stage or ""), _cell(meaning))


def _kind(annotation: Any, metadata: Any = ()) -> str:
    """What may stand there, in words."""
    marks = list(metadata)
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *further = get_args(annotation)
        for mark in further:
            marks += mark.metadata if isinstance(mark, FieldInfo) else [mark]
        return _kind(inner, marks)
    location = next((mark for mark in marks if isinstance(mark, Location)), None)
    if location is not None:
        return "path or name of a hub" if location.may_be_name else "path"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return " or ".join(dict.fromkeys(_kind(part, marks) for part in parts))
    if origin is tuple:
        items = get_args(annotation)
        if len(items) == 2 and items[1] is ...:
            return f"list of {_kind(items[0])}"
        return f"list of {len(items)}: {', '.join(_kind(item) for item in items)}"
    if origin is dict:
        return f"name: {_kind(get_args(annotation)[1])}"
    found = _PLAIN.get(annotation, str(annotation))
    limits = [
        f"{_RANGES[type(mark)][1]} {getattr(mark, _RANGES[type(mark)][0])}"
        for mark in marks
        if type(mark) in _RANGES
    ]
    if any(isinstance(mark, MinLen) for mark in marks):
        found = f"{found}, not empty"
    return f"{found} {', '.join(limits)}".strip()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return "-"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meanings(model: type[BaseModel]) -> tuple[dict[str, str], str]:
    """(key -> what it means, the section's summary), of its docstring and of those above it.

    Objectives and masks are told by the classes that they build.
    """
    meanings, summary = _told(model, model.__doc__ or "")
    built: type | None = None
    if issubclass(model, ObjectiveConfig):
        built = OBJECTIVES[model.model_fields["name"].default].load()
    elif issubclass(model, MaskConfig):
        built = MASKS[model.model_fields["kind"].default].load()
    if built is not None and not summary:
        summary = next(_paragraphs(inspect.cleandoc(built.__doc__ or "")), "")
    for above in (*model.__mro__[1:], *(built.__mro__ if built else ())):
        meanings = {**_told(model, above.__dict__.get("__doc__") or "")[0], **meanings}
    return meanings, summary


def _told(model: type[BaseModel], docstring: str) -> tuple[dict[str, str], str]:
    """(key -> what the docstring says of it, what the docstring says before)."""
    text = " ".join(_paragraphs(docstring))
    names = "|".join(sorted(map(re.escape, model.model_fields), key=len, reverse=True))
    found = list(re.finditer(rf"(?<![\w.])((?:{names})(?:, (?:{names}))*): ", text))
    meanings: dict[str, str] = {}
    ends = [match.start() for match in found[1:]] + [len(text)]
    for match, end in zip(found, ends, strict=False):
        said = re.split(r"\. Raises: ", text[match.end() : end])[0].strip().rstrip(".;")
        if not said.startswith("see "):  # what a class above says itself
            for name in match.group(1).split(", "):
                meanings.setdefault(name, said)
    return meanings, (text[: found[0].start()] if found else text).strip()


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        yield " ".join(paragraph.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
