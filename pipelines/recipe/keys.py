"""Keys of a schema: what stands where, and what it may be set to.

Everything here is read from the schema's types: sections, tuples of sections, and unions whose
alternatives a tag names (`objective.name`, `evaluate.reward.kind`).
"""

import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
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
        is_list: whether it holds several.
    """

    sections: tuple[type[BaseModel], ...] = ()
    tag: str | None = None
    marks: tuple[Any, ...] = ()
    is_mapping: bool = False
    is_list: bool = False

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
    origin, is_mapping, is_list = get_origin(annotation), False, False
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        sections = (annotation,)
    elif origin is Annotated:
        inner, *further = get_args(annotation)
        return _content(inner, (*metadata, *further))
    elif origin in (Union, types.UnionType, tuple, list, dict):
        is_mapping, is_list = origin is dict, origin in (tuple, list)
        for part in (_content(item, ()) for item in get_args(annotation)):
            sections, marks = (*sections, *part.sections), (*marks, *part.marks)
            tag, is_mapping = tag or part.tag, is_mapping or part.is_mapping
            is_list = is_list or part.is_list
    return Content(sections, tag if isinstance(tag, str) else None, marks, is_mapping, is_list)


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
    return any(content.tag == last for content in contents_at(model, parent))


def contents_at(model: type[BaseModel], key: str) -> list[Content]:
    """What a dotted key may hold, in whichever alternatives the way to it goes through."""
    contents = [Content((model,))]
    for name in without_numbers(key).split("."):
        contents = [
            content_of(section, name)
            for content in contents
            for section in content.sections
            if name in section.model_fields
        ]
    return contents


def without_numbers(key: str) -> str:
    return re.sub(r"\[\d+\]", "", key)


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key below a section, of all alternatives, in the schema's order."""
    found: dict[str, None] = {}
    for name in model.model_fields:
        found[prefix + name] = None
        for section in content_of(model, name).sections:
            found |= dict.fromkeys(all_keys(section, f"{prefix}{name}."))
    return list(found)


def plain_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key that takes a value as it is typed: no section, nothing within a list of
    sections.
    """
    found: dict[str, None] = {}
    for name in model.model_fields:
        content = content_of(model, name)
        if content.is_list or not content.sections:
            found[prefix + name] = None
        else:
            for section in content.sections:
                found |= dict.fromkeys(plain_keys(section, f"{prefix}{name}."))
    return list(found)


def values_of(model: type[BaseModel], key: str) -> list[str]:
    """What a dotted key may be set to, where the schema lists it: a tag's or literal's values."""
    parent, _, last = without_numbers(key).rpartition(".")
    holders = contents_at(model, parent) if parent else [Content((model,))]
    found: dict[str, None] = {}
    for content in holders:
        for section in content.sections:
            if last in section.model_fields:
                found |= dict.fromkeys(_listed(section.model_fields[last].annotation))
    return list(found)


def _listed(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    if annotation is bool:
        return ["true", "false"]
    return [value for part in get_args(annotation) for value in _listed(part)]
