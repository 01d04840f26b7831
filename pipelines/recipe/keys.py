"""Keys of a schema: what stands where, and what to say of a key or value that does not fit.

Everything here is read from the schema's types: sections, tuples of sections, and unions whose
alternatives a tag names (`objective.name`, `evaluate.reward.kind`).
"""

import difflib
import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True)
class Content:
    """What a field holds, in tuples, mappings or None as well.

    Attributes:
        sections: its section, or the alternatives of a union; none for plain values.
        tag: the key that names the alternative.
        marks: what the annotation carries beside pydantic's own.
        is_mapping: whether keys of a user's own stand before the values.
    """

    sections: tuple[type[BaseModel], ...] = ()
    tag: str | None = None
    marks: tuple[Any, ...] = ()
    is_mapping: bool = False

    def alternatives(self) -> dict[str, type[BaseModel]]:
        """Tag -> section; empty where no tag chooses."""
        if self.tag is None:
            return {}
        return {
            str(name): section
            for section in self.sections
            for name in get_args(section.model_fields[self.tag].annotation)
        }


@cache
def content_of(model: type[BaseModel], name: str) -> Content:
    """What a field of a section holds."""
    field = model.model_fields[name]
    return _content(field.annotation, (field, *field.metadata))


def _content(annotation: Any, metadata: Sequence[Any]) -> Content:
    sections: tuple[type[BaseModel], ...] = ()
    tag = next(
        (m.discriminator for m in metadata if isinstance(m, FieldInfo) and m.discriminator), None
    )
    marks = tuple(m for m in metadata if not isinstance(m, FieldInfo))
    origin, is_mapping = get_origin(annotation), False
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        sections = (annotation,)
    elif origin is Annotated:
        inner, *further = get_args(annotation)
        return _content(inner, (*metadata, *further))
    elif origin in (Union, types.UnionType, tuple, list, dict):
        is_mapping = origin is dict
        for part in (_content(item, ()) for item in get_args(annotation)):
            sections, marks = (*sections, *part.sections), (*marks, *part.marks)
            tag, is_mapping = tag or part.tag, is_mapping or part.is_mapping
    return Content(sections, tag if isinstance(tag, str) else None, marks, is_mapping)


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Content]]:
    """(dotted key, value, what its field holds) of every plain value of a section."""
    for name in type(section).model_fields:
        yield from _leaves(getattr(section, name), content_of(type(section), name), prefix + name)


def _leaves(value: Any, content: Content, key: str) -> Iterator[tuple[str, Any, Content]]:
    if isinstance(value, BaseModel):
        yield from leaves(value, f"{key}.")
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from _leaves(item, content, f"{key}[{number}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, content, f"{key}.{name}")
    else:
        yield key, value, content


def with_leaves(section: Schema, change: Callable[[Any, Content], Any]) -> Schema:
    """A copy of a section with every plain value changed; the new values are not validated."""
    changed = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        new = _with_leaves(value, content_of(type(section), name), change)
        if new != value:
            changed[name] = new
    return section.model_copy(update=changed) if changed else section


def _with_leaves(value: Any, content: Content, change: Callable[[Any, Content], Any]) -> Any:
    if isinstance(value, BaseModel):
        return with_leaves(value, change)
    if isinstance(value, tuple | list):
        return type(value)(_with_leaves(item, content, change) for item in value)
    if isinstance(value, dict):
        return {name: _with_leaves(item, content, change) for name, item in value.items()}
    return change(value, content)


def is_tag(model: type[BaseModel], key: str) -> bool:
    """Whether a dotted key chooses between the alternatives of a union."""
    parent, _, last = key.rpartition(".")
    return any(content.tag == last for content in _contents_at(model, parent))


def _contents_at(model: type[BaseModel], key: str) -> list[Content]:
    """What a dotted key may hold, in whichever alternatives the way to it goes through."""
    contents = [Content((model,))]
    for name in _without_numbers(key).split("."):
        contents = [
            content_of(section, name)
            for content in contents
            for section in content.sections
            if name in section.model_fields
        ]
    return contents


def _without_numbers(key: str) -> str:
    return re.sub(r"\[\d+\]", "", key)


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key below a section, of all alternatives, in the schema's order."""
    found: dict[str, None] = {}
    for name in model.model_fields:
        found[prefix + name] = None
        for section in content_of(model, name).sections:
            found |= dict.fromkeys(all_keys(section, f"{prefix}{name}."))
    return list(found)


def unknown_key_message(model: type[BaseModel], key: str) -> str | None:
    """None for a key of the schema, else a line naming the nearest one."""
    valid = all_keys(model)
    if _without_numbers(key) in valid:
        return None
    return f"unknown config key {key!r}{_nearest(key, valid, valid)}"


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """The first problem as one line, with the count of further ones."""
    found = error.errors()
    # A tuple whose entries are wrong is reported as too short as well.
    problems = [
        problem
        for problem in found
        if not any(_is_within(other["loc"], problem["loc"]) for other in found)
    ]
    first, further = problems[0], len(problems) - 1
    key, chosen = _key_of(model, first["loc"])
    value, context = first.get("input"), first.get("ctx", {})
    if first["type"] == "extra_forbidden":
        line = _unknown(model, key, chosen)
    elif first["type"] == "missing":
        line = f"config key {key!r} is required and missing"
    elif first["type"] == "value_error":
        line = (f"{key}: " if key else "") + str(context["error"])
    elif first["type"] == "union_tag_invalid":
        tag = context["discriminator"].strip("'")
        line = f"{key}.{tag} = {context['tag']!r}: allowed are {context['expected_tags']}"
    elif first["type"] == "union_tag_not_found":
        tags = [tag for content in _contents_at(model, key) for tag in content.alternatives()]
        line = (
            f"{key}: needs the key {context['discriminator']}: one of {', '.join(map(repr, tags))}"
        )
    else:
        shown = "" if isinstance(value, dict) else f" = {value!r}"
        line = f"{key}{shown}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return line + (f" (and {further} more problem{'s' * (further > 1)})" if further else "")


def _is_within(location: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    return len(location) > len(other) and location[: len(other)] == other


@dataclass(frozen=True)
class _Chosen:
    """The section that a key stands in, and what chose it where it is an alternative."""

    section: type[BaseModel]
    prefix: str
    by: str = ""


def _key_of(model: type[BaseModel], location: Sequence[int | str]) -> tuple[str, _Chosen]:
    """(dotted key, its section) of a validation error.

    The location names alternatives by their tags, and the types of plain values; neither is a key.
    """
    key, chosen, content = "", _Chosen(model, ""), Content((model,))
    expects_tag = expects_name = False
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
        elif expects_name:
            key, expects_name = f"{key}.{part}", False
        elif expects_tag and content.tag is not None:
            section = content.alternatives()[part]
            chosen = _Chosen(section, f"{key}.", f"{key}.{content.tag}={part}")
            expects_tag = False
        elif content.sections:
            if not content.tag:
                chosen = _Chosen(content.sections[0], f"{key}." if key else "")
            key = f"{chosen.prefix}{part}"
            if part not in chosen.section.model_fields:
                break
            content = content_of(chosen.section, part)
            expects_tag, expects_name = content.tag is not None, content.is_mapping
    return key, chosen


def _unknown(model: type[BaseModel], key: str, chosen: _Chosen) -> str:
    if chosen.by and _without_numbers(key) in all_keys(model):
        own = ", ".join(chosen.section.model_fields)
        return f"config key {key!r} is none of {chosen.by}, whose keys are {own}"
    own_keys = all_keys(chosen.section, chosen.prefix)
    return f"unknown config key {key!r}{_nearest(key, own_keys, all_keys(model))}"


def _nearest(key: str, own: list[str], valid: list[str]) -> str:
    """The key that was probably meant: one of its own section, else the same name elsewhere."""
    near = difflib.get_close_matches(key, own, n=1, cutoff=0.5)
    if not near:
        last = key.rpartition(".")[2]
        near = [k for k in valid if k.rpartition(".")[2] == last][:1]
    top = ", ".join(sorted(k for k in valid if "." not in k))
    return f": did you mean {near[0]!r}?" if near else f": valid top-level keys are {top}"
