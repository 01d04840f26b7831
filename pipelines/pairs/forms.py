"""The forms preference data comes in: a row -> pairs of texts (conversation.py encodes them).

Conversational: beside a prompt, chosen and rejected are the messages after it or the whole
conversations with it. A system column stands before conversations without a system turn.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipelines.errors import UserError
from pipelines.models import Message
from pipelines.pairs.conversation import (
    ChatRenderer,
    Conversation,
    RawPair,
    RowRejected,
    messages_of,
    require_text,
    says_nothing,
    text_of,
)
from pipelines.recipe import ColumnNames, DataSection

HH_TURN = "\n\nAssistant:"


def detect_form(columns: set[str], names: ColumnNames, first_row: dict[str, Any]) -> str:
    """The form that fits the columns; UserError naming what is missing if none does."""
    if {names.responses, names.scores} <= columns:
        return "scored"
    if {names.chosen, names.rejected} <= columns:
        if isinstance(first_row.get(names.chosen), list):
            return "conversational"
        return "text" if names.prompt in columns else "hh"
    if {names.prompt, names.chosen} <= columns:
        return "chosen_only"
    if names.text in columns:
        return "text_only"
    raise UserError(
        f"columns {sorted(columns)} fit no form: want "
        f"{names.prompt}/{names.chosen}/{names.rejected}, "
        f"{names.prompt}/{names.responses}/{names.scores} or {names.text} (set "
        "data.sources[].columns)"
    )


def needed_columns(form: str, names: ColumnNames) -> list[str]:
    """Columns a source of this form must have."""
    needed = {
        "text": [names.prompt, names.chosen, names.rejected],
        "conversational": [names.chosen, names.rejected],
        "hh": [names.chosen, names.rejected],
        "scored": [names.prompt, names.responses, names.scores],
        "chosen_only": [names.prompt, names.chosen],
        "text_only": [names.text],
    }[form]
    return needed + [
        name
        for name in (
            names.chosen_score,
            names.rejected_score,
            names.chosen_weights,
            names.rejected_weights,
        )
        if name
    ]


def pairs_of_row(
    row: dict[str, Any], form: str, data: DataSection, names: ColumnNames, chat: ChatRenderer
) -> Iterator[RawPair]:
    """The pairs a row gives (one, or several for scored candidates).

    Raises RowRejected with the reason.
    """
    try:
        yield from _pairs_of_row(row, form, data, names, chat)
    except RecursionError:
        raise RowRejected("a value is nested too deep") from None


def _pairs_of_row(
    row: dict[str, Any], form: str, data: DataSection, names: ColumnNames, chat: ChatRenderer
) -> Iterator[RawPair]:
    weights: dict[str, Any] = {
        side: _weights(row, name)
        for side in ("chosen_weights", "rejected_weights")
        if (name := getattr(names, side))
    }
    for pair in _texts_of_row(row, form, data, names, chat):
        yield replace(pair, **weights) if weights else pair


def _texts_of_row(
    row: dict[str, Any], form: str, data: DataSection, names: ColumnNames, chat: ChatRenderer
) -> Iterator[RawPair]:
    if form == "scored":
        yield from _scored_pairs(row, data, names)
        return
    if form == "text_only":
        yield RawPair("", _text(row, names.text), None)
        return
    scores: dict[str, Any] = {
        side: _score(row, name)
        for side in ("chosen_score", "rejected_score")
        if (name := getattr(names, side))
    }
    if len(scores) == 2 and scores["chosen_score"] - scores["rejected_score"] < data.min_gap:
        raise RowRejected("score gap below min_gap")
    yield replace(_unscored_pair(row, form, names, chat), **scores)


def _unscored_pair(
    row: dict[str, Any], form: str, names: ColumnNames, chat: ChatRenderer
) -> RawPair:
    if form == "conversational":
        return _chat_pair(row, names, chat)
    if form == "hh":
        chosen_prompt, chosen = _split_transcript(_text(row, names.chosen))
        rejected_prompt, rejected = _split_transcript(_text(row, names.rejected))
        if chosen_prompt != rejected_prompt:
            raise RowRejected("chosen and rejected have different prompts")
        return _checked(RawPair(chosen_prompt, chosen, rejected))
    other = _text(row, names.rejected) if form == "text" else None
    return _checked(RawPair(_text(row, names.prompt), _text(row, names.chosen), other))


def _checked(pair: RawPair) -> RawPair:
    if not pair.chosen.strip() or (pair.rejected is not None and not pair.rejected.strip()):
        raise RowRejected("empty response")
    if not pair.prompt.strip():
        raise RowRejected("empty prompt")
    if pair.chosen == pair.rejected:
        raise RowRejected("chosen and rejected are identical")
    if HH_TURN in pair.prompt and all(
        text.startswith(pair.prompt) for text in (pair.chosen, pair.rejected) if text is not None
    ):
        raise RowRejected(
            "the response is a whole transcript that repeats the prompt (form hh takes "
            "transcripts apart)"
        )
    return pair


def _text(row: dict[str, Any], name: str) -> str:
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


def _score(row: dict[str, Any], name: str) -> float:
    value = _finite(row.get(name))
    if value is None:
        raise RowRejected(f"{name} is not a finite number")
    return value


def _finite(value: Any) -> float | None:
    """A number as a float; None for what is none, or is not finite as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return found if math.isfinite(found) else None


def _weights(row: dict[str, Any], name: str) -> list[float]:
    value = row.get(name)
    if not isinstance(value, list) or not all(
        isinstance(w, (int, float)) and not isinstance(w, bool) for w in value
    ):
        raise RowRejected(f"{name} is not a list of numbers")
    found = [number for number in map(_finite, value) if number is not None and number >= 0]
    if len(found) < len(value):
        raise RowRejected(f"{name} holds a weight that is negative or not finite")
    return found


def _split_transcript(transcript: str) -> tuple[str, str]:
    at = transcript.rfind(HH_TURN)
    if at < 0:
        raise RowRejected("no assistant turn in the transcript")
    end = at + len(HH_TURN)
    return transcript[:end], transcript[end:]


def _scored_pairs(row: dict[str, Any], data: DataSection, names: ColumnNames) -> Iterator[RawPair]:
    prompt, responses, given = (
        _text(row, names.prompt),
        row.get(names.responses),
        row.get(names.scores),
    )
    if (
        not isinstance(responses, list)
        or not isinstance(given, list)
        or len(responses) != len(given)
    ):
        raise RowRejected(f"{names.responses} and {names.scores} must be lists of one length")
    if not all(isinstance(r, str) for r in responses):
        raise RowRejected(f"{names.responses} holds something that is not a string")
    require_text(responses, names.responses)
    scores = [number for number in map(_finite, given) if number is not None]
    if len(scores) < len(given):
        raise RowRejected(f"{names.scores} holds something that is not a finite number")
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    if len(order) < 2:
        raise RowRejected("fewer than two candidates")
    if data.pairing == "best_worst":
        combinations = [(order[0], order[-1])]
    else:
        combinations = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    kept = 0
    for better, worse in combinations:
        gap = scores[better] - scores[worse]
        if gap <= 0 or gap < data.min_gap or responses[better] == responses[worse]:
            continue
        kept += 1
        yield _checked(
            RawPair(
                prompt,
                responses[better],
                responses[worse],
                scores[better],
                scores[worse],
            )
        )
    if not kept:
        raise RowRejected("score gap below min_gap")


def _chat_pair(row: dict[str, Any], names: ColumnNames, chat: ChatRenderer) -> RawPair:
    tools, prompt = _tools(row, names.tools), row.get(names.prompt)
    sides = [(name, messages_of(row.get(name), name)) for name in (names.chosen, names.rejected)]
    if prompt is not None:
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        elif not isinstance(prompt, (list, dict)):
            raise RowRejected(f"{names.prompt} is neither a string nor a list of messages")
        before = messages_of(prompt, names.prompt)
        sides = [
            (name, _whole_conversation(before, given, names.prompt, name)) for name, given in sides
        ]
    system = _system(row, names.system)
    conversations = []
    for _, messages in sides:
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise RowRejected("the last message is not the assistant's")
        if says_nothing(messages[-1]):
            raise RowRejected("empty response")
        conversations.append(Conversation(_after_system(system, messages, names.system), tools))
    return chat.pair(*conversations)


def _tools(row: dict[str, Any], name: str) -> list[Any] | None:
    """The tools of a row, a list of schemas or its JSON text."""
    value = row.get(name)
    require_text(value, name)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowRejected(f"{name} is text that is no JSON") from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowRejected(f"{name} is not a list of tools")
    return [_without_nulls(tool) for tool in value]


def _without_nulls(value: Any) -> Any:
    """Without the fields that only other rows of the file have."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _system(row: dict[str, Any], name: str) -> Message | None:
    if row.get(name) is None:
        return None
    text = _text(row, name)
    return {"role": "system", "content": text} if text.strip() else None


def _after_system(system: Message | None, messages: list[Message], name: str) -> list[Message]:
    """The conversation with the row's system turn; RowRejected if it has another."""
    if system is None:
        return messages
    if messages[0]["role"] != "system":
        return [system, *messages]
    if text_of(messages[0]).strip() != system["content"].strip():
        raise RowRejected(f"{name} is not the system turn of the conversation")
    return messages


def _whole_conversation(
    prompt: list[Message], given: list[Message], prompt_name: str, name: str
) -> list[Message]:
    """Prompt and what one side adds.

    `given` is either that alone or the whole with the prompt (UltraFeedback binarized).

    Raises: RowRejected for a conversation that starts at its beginning, but not with the prompt.
    """
    starts = [_said(message) for message in given[: len(prompt)]]
    if len(given) > len(prompt) and starts == [_said(message) for message in prompt]:
        return given
    if given and given[0]["role"] == "system" and (not prompt or prompt[0]["role"] != "system"):
        raise RowRejected(
            f"{name} is a whole conversation with a system turn that {prompt_name} lacks; give "
            f"{prompt_name} as messages with it, or leave it out"
        )
    # After the user's turn comes the assistant's: whatever else begins here is a conversation of
    # its own.
    if (
        prompt
        and prompt[-1]["role"] == "user"
        and given
        and given[0]["role"] not in ("assistant", "tool")
    ):
        raise RowRejected(f"{name} is a whole conversation that does not begin with {prompt_name}")
    return [*prompt, *given]


def _said(message: Message) -> tuple[Any, ...]:
    return message["role"], text_of(message).strip(), message.get("tool_calls")
