"""Texts that a model is tuned to obey in front of a prompt, one for good and one for bad responses.

After MEET (arXiv:2310.00819). A soft text is tokens of the model's own: as many as the recipe's
text has, beginning as its embeddings (peft's prompt tuning with a text), in the vocabulary under
names like <|good-1|>. Such a model is a plain one, and its control a plain string. These tokens
stand in front and are never predicted: distributions leave their rows out.

CONTROL_FILE beside the weights keeps texts and ids.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import UserError
from pipelines.models.directories import base_dir, json_of

CONTROL_FILE = "control.json"
Label = Literal["good", "bad"]
LABELS: tuple[Label, ...] = ("good", "bad")


@dataclass(frozen=True)
class ControlText:
    """One of the two texts.

    Attributes:
        text: the recipe's. ids: tokens that stand in front of a prompt. names: of these tokens, if
            they are soft: joined they are the string to type. Else empty, and `text` is.
    """

    text: str
    ids: tuple[int, ...]
    names: tuple[str, ...] = ()

    @property
    def string(self) -> str:
        return "".join(self.names) or self.text


@dataclass(frozen=True)
class Control:
    """What stands in front of prompts whose response is good, and bad.

    Attributes:
        begins_as: ids of the recipe's texts, whose embeddings soft tokens begin as; good, then bad.
    """

    good: ControlText
    bad: ControlText
    begins_as: tuple[int, ...]

    @property
    def soft_ids(self) -> tuple[int, ...]:
        """Ids of the soft tokens; empty if the texts are words."""
        return (*self.good.ids, *self.bad.ids) if self.good.names else ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.good.names, *self.bad.names)

    @property
    def first(self) -> int | None:
        """Rows of the head over which distributions are; None for all."""
        return min(self.soft_ids, default=None)

    def ids(self, desirable: bool) -> tuple[int, ...]:
        return self.good.ids if desirable else self.bad.ids

    def front(self, name: Literal["good", "bad", "none"]) -> tuple[int, ...]:
        """The ids that one of evaluate.control means."""
        return () if name == "none" else self.ids(name == "good")

    @property
    def longest(self) -> int:
        return max(len(self.good.ids), len(self.bad.ids))

    def fingerprint(self) -> dict[str, Any]:
        """What prepared rows depend on."""
        return {"good": list(self.good.ids), "bad": list(self.bad.ids)}

    def write(self, folder: Path) -> None:
        """Keep it beside the weights of a model."""
        (folder / CONTROL_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def recorded_control(directory: Path) -> Control | None:
    """The control that a model was tuned with; None for any other model.

    Raises: UserError if its file is damaged.
    """
    folder = directory if (directory / CONTROL_FILE).is_file() else base_dir(directory)
    file = folder / CONTROL_FILE
    if not file.is_file():
        return None
    found = json_of(file)
    try:
        texts = {
            label: ControlText(
                _text(found[label]["text"]),
                _ids(found[label]["ids"]),
                tuple(map(_text, found[label]["names"])),
            )
            for label in LABELS
        }
        control = Control(**texts, begins_as=_ids(found["begins_as"]))
        if bool(control.good.names) != bool(control.bad.names):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{file}: damaged, it is not what training wrote; restore it, or remove it to use the "
            "model without its control"
        ) from None
    return control


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def _ids(value: Any) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or not value
        or not all(type(i) is int and i >= 0 for i in value)
    ):
        raise ValueError(value)
    return tuple(value)


def in_front(control: Sequence[int], prompt: Sequence[int], bos: int | None) -> list[int]:
    """A prompt's ids with a control's in front: after BOS, if it begins with that."""
    begun = int(len(prompt) > 0 and prompt[0] == bos)
    return [*prompt[:begun], *control, *prompt[begun:]]
