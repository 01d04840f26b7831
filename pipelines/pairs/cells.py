"""The values of a row: text, messages, scores, labels, weights, tools. Each reader says why not."""

import math
from typing import Any

from pipelines.models import Message
from pipelines.pairs.conversation import RowRejected, messages_of, require_text
from pipelines.storage import parse_json

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_CALLS = ("function_call", "tool_call")
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def text_in(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RowRejected(f"{name} is not valid UTF-8") from error
    if not isinstance(value, str):
        raise RowRejected(f"{name} is {type(value).__name__}, not a string")
    require_text(value, name)
    return value


def finite(value: Any) -> float | None:
    """A number as a float; None for what is none, or is not finite as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return found if math.isfinite(found) else None


def label_of(value: Any) -> bool | None:
    """A label: true, false, 1 or 0, or the text of one as a CSV has it; None for what is none."""
    return _LABELS.get(str(value).strip().lower()) if isinstance(value, (str, int, float)) else None


def weights_in(row: dict[str, Any], name: str) -> list[float]:
    value = row.get(name)
    if not isinstance(value, list) or not all(
        isinstance(w, (int, float)) and not isinstance(w, bool) for w in value
    ):
        raise RowRejected(f"{name} is not a list of numbers")
    found = [number for number in map(finite, value) if number is not None and number >= 0]
    if len(found) < len(value):
        raise RowRejected(f"{name} holds a weight that is negative or not finite")
    return found


def tools_in(row: dict[str, Any], name: str) -> list[Any] | None:
    """The tools of a row, a list of schemas or its JSON text."""
    value = row.get(name)
    require_text(value, name)
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(value)
        except ValueError as error:
            raise RowRejected(f"{name} is text that is no JSON") from error
    if not value or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowRejected(f"{name} is not a list of tools")
    return [_without_nulls(tool) for tool in value]


def _without_nulls(value: Any) -> Any:
    """Without the fields that only other rows of the file have."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def system_in(row: dict[str, Any], name: str) -> Message | None:
    if row.get(name) is None:
        return None
    text = text_in(row, name)
    return {"role": "system", "content": text} if text.strip() else None


def is_sharegpt(message: Any) -> bool:
    """Whether a message says `from` and `value` where others say role and content."""
    return (
        isinstance(message, dict)
        and message.get("role") is None
        and isinstance(message.get("from"), str)
    )


def turns_of(value: Any, name: str) -> list[Message]:
    """Messages with role and content, or with ShareGPT's from and value; one stands for a list.

    Raises: RowRejected naming the column.
    """
    given = value if isinstance(value, list) else [value]
    return messages_of([_turn(item, name) if is_sharegpt(item) else item for item in given], name)


def _turn(given: dict[str, Any], name: str) -> Message:
    sender, value = given["from"], given.get("value")
    rest = {key: item for key, item in given.items() if key not in ("from", "value")}
    if sender in _CALLS:
        return {**rest, "role": "assistant", "tool_calls": _calls(value, name)}
    if sender not in _ROLES:
        raise RowRejected(f"{name}: from = {sender!r} is none of {', '.join([*_ROLES, *_CALLS])}")
    return {**rest, "role": _ROLES[sender], "content": value}


def _calls(value: Any, name: str) -> list[dict[str, Any]]:
    """The calls of ShareGPT's function_call, the JSON text of one or of a list."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise RowRejected(f"{name}: a function_call is text that is no JSON") from error
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) for call in calls) or not calls:
        raise RowRejected(f"{name}: a function_call is no call")
    return [{"type": "function", "function": call.get("function", call)} for call in calls]
