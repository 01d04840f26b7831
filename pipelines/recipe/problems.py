"""What to say of a key or value that does not fit a schema: which key is meant, how to write it.

No name of a class stands in a message.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines.recipe.keys import Content, all_keys, content_of, contents_at, without_numbers
from pipelines.recipe.other_names import other_name
from pipelines.storage import did_you_mean


def unknown_key_message(model: type[BaseModel], key: str, value: Any = None) -> str | None:
    """None for a key of the schema, else a line naming the one that is meant.

    Args:
        value: that was given, for an example of how to write it.
    """
    valid = all_keys(model)
    if without_numbers(key) in valid:
        return None
    return f"unknown config key {key!r}{_nearest(model, key, valid, valid, value)}"


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """The first problem as one line, with the count of further ones; unknown keys come first."""
    found = error.errors()
    # A tuple whose entries are wrong is reported as too short as well.
    problems = [
        problem
        for problem in found
        if not any(_is_within(other["loc"], problem["loc"]) for other in found)
    ]
    # What is missing is often what the unknown key means.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    first, further = problems[0], len(problems) - 1
    key, chosen = _key_of(model, first["loc"])
    value, context = first.get("input"), first.get("ctx", {})
    if first["type"] == "extra_forbidden":
        line = _unknown(model, key, chosen, value)
    elif first["type"] == "missing":
        line = f"config key {key!r} is required and missing"
    elif first["type"] == "value_error":
        line = (f"{key}: " if key else "") + str(context["error"])
    elif first["type"] == "union_tag_invalid":
        tag = context["discriminator"].strip("'")
        line = f"{key}.{tag} = {context['tag']!r}: allowed are {context['expected_tags']}"
        line += did_you_mean(
            str(context["tag"]), re.findall(r"'([^']*)'", context["expected_tags"])
        )
    elif first["type"] == "union_tag_not_found":
        tags = [tag for content in contents_at(model, key) for tag in content.alternatives()]
        line = (
            f"{key}: needs the key {context['discriminator']}: one of {', '.join(map(repr, tags))}"
        )
    else:
        shown = "" if isinstance(value, dict) else f" = {value!r}"
        said = _another_kind(model, key, first["type"], value)
        line = f"{key}{shown}: {said or first['msg'][0].lower() + first['msg'][1:]}"
    return line + (f" (and {further} more problem{'s' * (further > 1)})" if further else "")


def _another_kind(model: type[BaseModel], key: str, type_: str, value: Any) -> str | None:
    """What to say of a text or number where a list or a section stands, and how it is written."""
    if type_ not in ("tuple_type", "model_type", "model_attributes_type", "dict_type"):
        return None
    written = as_written(model, key, value)
    if type_ == "tuple_type":
        return "it is a list" + (f", write {written}" if written else "")
    if written:
        return f"{written.partition('=')[0]} is meant, write {written}"
    sections = [section for content in contents_at(model, key) for section in content.sections]
    keys = dict.fromkeys(name for section in sections for name in section.model_fields)
    return f"it has keys of its own: {', '.join(keys)}" if keys else "it is a mapping of keys"


def as_written(model: type[BaseModel], key: str, value: Any) -> str | None:
    """An override that gives a value to a key, or to the main key of a section that stands there.

    None where nothing says how.
    """
    if value is None or isinstance(value, dict | list | tuple):
        return None
    content = next(iter(contents_at(model, key)), Content())
    main = content.tag or next(
        (name for section in content.sections if (name := getattr(section, "MAIN", None))), None
    )
    text = value if isinstance(value, str) else json.dumps(value)
    if content.is_list and not key.endswith("]"):
        return f"{key}=[{{{main}: {text}}}]" if main else f"{key}=[{text}]"
    if not content.sections:
        return f"{key}={text}"
    return as_written(model, f"{key}.{main}", value) if main else None


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


def _unknown(model: type[BaseModel], key: str, chosen: _Chosen, value: Any) -> str:
    if chosen.by and without_numbers(key) in all_keys(model):
        own = ", ".join(chosen.section.model_fields)
        return f"config key {key!r} is none of {chosen.by}, whose keys are {own}"
    own_keys = all_keys(chosen.section, chosen.prefix)
    return f"unknown config key {key!r}{_nearest(model, key, own_keys, all_keys(model), value)}"


def key_meant(model: type[BaseModel], key: str) -> str | None:
    """The key that a name means for sure: itself, another trainer's name of it, or the only key
    that is called so.
    """
    valid = all_keys(model)
    if without_numbers(key) in valid:
        return key
    last = key.rpartition(".")[2]
    called_so = _called_so(valid, last)
    meant = other_name(key)
    if meant in valid:
        return meant
    return called_so[0] if len(called_so) == 1 else None


def _called_so(valid: list[str], name: str) -> list[str]:
    """The keys with this last part; a sum's terms have those of their objectives again."""
    found = [key for key in valid if key.rpartition(".")[2] == name]
    return [key for key in found if ".of." not in key or key.replace(".of.", ".") not in found]


def _nearest(model: type[BaseModel], key: str, own: list[str], valid: list[str], value: Any) -> str:
    """The key that is meant, or that probably is: of its own section, else called so elsewhere."""
    meant = key_meant(model, key)
    if meant is not None:
        example = as_written(model, meant, value)
        plain = example == f"{meant}={value}"
        return f": {meant} is meant" + (f", write {example}" if example and not plain else "")
    last = key.rpartition(".")[2]
    called_so = _called_so(valid, last)
    if (last != key or not called_so) and (said := did_you_mean(key, own, alike=0.5)):
        return f":{said[1:]}"
    if called_so:
        return f": did you mean {' or '.join(map(repr, called_so[:3]))}?"
    top = ", ".join(sorted(k for k in valid if "." not in k))
    return f": valid top-level keys are {top}"
