"""Base of every section of a recipe.

Every field says, by its section or itself, whose stage's result it changes.

`stage_settings` reads that declaration; fingerprints, skipping and the refusal of a changed field
derive from it alone. A field of stage None (workers, budgets, logging, locations) never invalidates
anything.
"""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


def of_stage(stage: str | None, default: Any = ..., **constraints: Any) -> Any:
    """A field that changes the result of `stage` (None: of no stage) instead of its section's."""
    return Field(default, json_schema_extra={"stage": stage}, **constraints)


def added(default: Any, stage: str | None = None, **constraints: Any) -> Any:
    """A field that a section has got since runs were made with it.

    It is no setting while it has its default, so that those runs are the same recipe's.

    Args:
        stage: whose result it changes; by default its section's.
    """
    own = {} if stage is None else {"stage": stage}
    return Field(default, json_schema_extra={"added": True, **own}, **constraints)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True)
    STAGE: ClassVar[str | None] = None
    MAIN: ClassVar[str | None] = None  # the key that a text in the section's place means


def stage_settings(config: Section, stage: str | None = None) -> dict[str, Any]:
    """Dotted key -> JSON value of every field that changes the result of `stage` (None: of any)."""
    found: dict[str, Any] = {}
    _collect(config, stage, "", found)
    return found


def _collect(section: Section, stage: str | None, prefix: str, found: dict[str, Any]) -> None:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        owner = extra.get("stage", section.STAGE)
        if extra.get("added") and value == field.default:
            continue
        if isinstance(value, Section):
            _collect(value, stage, f"{prefix}{name}.", found)
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            for i, item in enumerate(value):
                _collect(item, stage, f"{prefix}{name}[{i}].", found)
        elif owner is not None and stage in (None, owner):
            found[prefix + name] = section.model_dump(mode="json")[name]
