"""The forms preference data comes in: a row -> pairs (conversation.py encodes them).

What answers is a text, or messages: those after the question, or the whole conversation with it.
In a form of conversations a text is one turn, the user's or the assistant's. A system column stands
before conversations without a system turn.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipelines.models import Message
from pipelines.pairs.cells import finite, system_in, text_in, tools_in, turns_of, weights_in
from pipelines.pairs.conversation import (
    ChatRenderer,
    Conversation,
    RawPair,
    RowRejected,
    says_nothing,
    text_of,
)
from pipelines.recipe import DataSection

HH_TURN = "\n\nAssistant:"
_TURNS = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
Side = str | Conversation


@dataclass(frozen=True)
class Form:
    """How the rows of a source are read: its layout, and the column of every part.

    Attributes:
        name: of the layout. is_chat: rows are conversations, else texts. asks: the column of the
            question; None where answers are whole. answers: chosen and rejected; responses and
            scores; response and label; or chosen alone. input: joined to the question. scores: of
            chosen and rejected. requires_scores: a row without them is none. weights: of the tokens
            of chosen and rejected. system, tools: columns that conversations read.
    """

    name: str
    is_chat: bool
    asks: str | None
    answers: tuple[str, ...]
    input: str | None = None
    scores: tuple[str | None, str | None] = (None, None)
    requires_scores: bool = False
    weights: tuple[str | None, str | None] = (None, None)
    system: str | None = None
    tools: str | None = None

    def __post_init__(self) -> None:
        for name in ("answers", "scores", "weights"):  # JSON makes lists of them
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def has_rejected(self) -> bool:
        return len(self.answers) == 2

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns without which no row is read."""
        return tuple(n for n in (self.asks, *self.answers, *self.scores, *self.weights) if n)

    @property
    def besides(self) -> tuple[str, ...]:
        """The columns that are read where a row has them."""
        return tuple(name for name in (self.input, self.system, self.tools) if name)


def pairs_of_row(
    row: dict[str, Any], form: Form, data: DataSection, chat: ChatRenderer
) -> Iterator[RawPair]:
    """The pairs a row gives (one, or several for scored candidates).

    Raises RowRejected with the reason.
    """
    try:
        weights: dict[str, Any] = {
            f"{side}_weights": weights_in(row, name)
            for side, name in zip(("chosen", "rejected"), form.weights, strict=True)
            if name
        }
        for pair in _pairs_of_row(row, form, data, chat):
            yield replace(pair, **weights) if weights else pair
    except RecursionError:
        raise RowRejected("a value is nested too deep") from None


def _pairs_of_row(
    row: dict[str, Any], form: Form, data: DataSection, chat: ChatRenderer
) -> Iterator[RawPair]:
    if form.name == "scored":
        yield from _scored_pairs(row, form, data, chat)
    elif form.name == "text_only":
        yield RawPair("", text_in(row, form.answers[0]), None)
    else:
        scores = _scores(row, form, data.min_gap)
        if form.name == "hh" and not form.is_chat:
            pair = _transcripts(*(text_in(row, name) for name in form.answers))
        else:
            sides = [side_of(row, form, name, row.get(name)) for name in form.answers]
            pair = pair_of(question_of(row, form), sides[0], (*sides, None)[1], chat)
        yield replace(pair, **scores)


def _scores(row: dict[str, Any], form: Form, min_gap: float) -> dict[str, Any]:
    """The scores of chosen and rejected, where a row has them.

    Raises: RowRejected for a gap below min_gap. Scores that the recipe does not name have none
        unless min_gap asks for one.
    """
    found: dict[str, float] = {}
    for side, name in zip(("chosen", "rejected"), form.scores, strict=True):
        if name is None:
            continue
        value = finite(row.get(name))
        if value is not None:
            found[f"{side}_score"] = value
        elif form.requires_scores or min_gap > 0:
            raise RowRejected(f"{name} is not a finite number")
    if form.requires_scores or min_gap > 0:
        if len(found) == 2 and found["chosen_score"] - found["rejected_score"] < min_gap:
            raise RowRejected("score gap below min_gap")
        return found
    return found if len(found) == 2 else {}


def _transcripts(chosen: str, rejected: str) -> RawPair:
    (prompt, first), (other, second) = (split_transcript(text) for text in (chosen, rejected))
    if prompt != other:
        raise RowRejected("chosen and rejected have different prompts")
    return pair_of(prompt, first, second, None)


def split_transcript(transcript: str) -> tuple[str, str]:
    at = transcript.rfind(HH_TURN)
    if at < 0:
        raise RowRejected("no assistant turn in the transcript")
    end = at + len(HH_TURN)
    return transcript[:end], transcript[end:]


def question_of(row: dict[str, Any], form: Form) -> str:
    """The text that asks, with the row's input below it; empty in conversations, which have it."""
    if form.is_chat or form.asks is None:
        return ""
    return _asked(row, form, form.asks)


def _asked(row: dict[str, Any], form: Form, name: str) -> str:
    text = text_in(row, name)
    more = text_in(row, form.input) if form.input and row.get(form.input) is not None else ""
    return f"{text}\n{more}" if more.strip() else text


def turns_of_transcript(transcript: str) -> list[Message]:
    """The messages of an HH transcript.

    Raises: RowRejected for text before the first turn.
    """
    before, *parts = _TURNS.split(f"\n\n{transcript.lstrip()}")
    if before.strip():
        raise RowRejected("the transcript does not begin with a turn")
    return [
        {"role": _ROLES[name], "content": said.strip()}
        for name, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def side_of(row: dict[str, Any], form: Form, name: str, value: Any) -> Side:
    """What one answer of a row makes: its text, or the whole conversation with it.

    Args:
        name: the column that the value stands in.
    """
    if not form.is_chat:
        return text_in({name: value}, name)
    messages = _answer(row, form, name, value)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise RowRejected("the last message is not the assistant's")
    if says_nothing(messages[-1]):
        raise RowRejected("empty response")
    return _completed(row, form, messages)


def asked_alone(row: dict[str, Any], form: Form) -> Conversation:
    """The messages of a row's question; of a whole conversation those before its last answer."""
    if form.asks is not None and (row.get(form.asks) is not None or not form.answers):
        return _completed(row, form, _asking(row, form, form.asks))
    messages = turns_of(row.get(form.answers[0]), form.answers[0])
    is_answered = messages and messages[-1]["role"] == "assistant"
    return _completed(row, form, messages[:-1] if is_answered else messages)


def _completed(row: dict[str, Any], form: Form, messages: list[Message]) -> Conversation:
    """Messages with what the row says of their system turn and tools."""
    if form.system:
        messages = _after_system(system_in(row, form.system), messages, form.system)
    return Conversation(messages, tools_in(row, form.tools) if form.tools else None)


def _answer(row: dict[str, Any], form: Form, name: str, value: Any) -> list[Message]:
    if form.name == "hh":
        return turns_of_transcript(text_in({name: value}, name))
    is_turn = isinstance(value, (str, bytes))
    given: list[Message] = (
        [{"role": "assistant", "content": text_in({name: value}, name)}]
        if is_turn
        else turns_of(value, name)
    )
    if form.asks is None or row.get(form.asks) is None:
        if is_turn:
            raise RowRejected(f"{name} is text, and nothing asks: want messages")
        return given
    return _whole_conversation(_asking(row, form, form.asks), given, form.asks, name)


def _asking(row: dict[str, Any], form: Form, name: str) -> list[Message]:
    """The messages of the column that asks; a text is the user's turn."""
    asks = row.get(name)
    if isinstance(asks, (str, bytes)):
        text = _asked(row, form, name)
        if not text.strip():
            raise RowRejected("empty prompt")
        return [{"role": "user", "content": text}]
    if isinstance(asks, (list, dict)):
        return turns_of(asks, name)
    raise RowRejected(f"{name} is neither a string nor a list of messages")


def pair_of(prompt: str, chosen: Side, rejected: Side | None, chat: ChatRenderer | None) -> RawPair:
    """A pair of two texts after a prompt, or of two conversations; of the chosen alone.

    Raises: RowRejected if they make no pair.
    """
    if isinstance(chosen, Conversation):
        assert chat is not None and not isinstance(rejected, str)
        return chat.pair(chosen, rejected)
    assert not isinstance(rejected, Conversation)
    if not chosen.strip() or (rejected is not None and not rejected.strip()):
        raise RowRejected("empty response")
    if not prompt.strip():
        raise RowRejected("empty prompt")
    if chosen == rejected:
        raise RowRejected("chosen and rejected are identical")
    if HH_TURN in prompt and all(
        text.startswith(prompt) for text in (chosen, rejected) if text is not None
    ):
        raise RowRejected(
            "the response is a whole transcript that repeats the prompt (form hh takes "
            "transcripts apart)"
        )
    return RawPair(prompt, chosen, rejected)


def _scored_pairs(
    row: dict[str, Any], form: Form, data: DataSection, chat: ChatRenderer
) -> Iterator[RawPair]:
    prompt, (responses, scores) = question_of(row, form), _candidates(row, form)
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
        sides = [side_of(row, form, form.answers[0], responses[i]) for i in (better, worse)]
        pair = pair_of(prompt, sides[0], sides[1], chat)
        yield replace(pair, chosen_score=scores[better], rejected_score=scores[worse])
    if not kept:
        raise RowRejected("score gap below min_gap")


def _candidates(row: dict[str, Any], form: Form) -> tuple[list[Any], list[float]]:
    names = form.answers
    responses, given = (row.get(name) for name in names)
    if (
        not isinstance(responses, list)
        or not isinstance(given, list)
        or len(responses) != len(given)
    ):
        raise RowRejected(f"{names[0]} and {names[1]} must be lists of one length")
    if not form.is_chat and not all(isinstance(r, str) for r in responses):
        raise RowRejected(f"{names[0]} holds something that is not a string")
    scores = [number for number in map(finite, given) if number is not None]
    if len(scores) < len(given):
        raise RowRejected(f"{names[1]} holds something that is not a finite number")
    for response in responses:  # Also of those that make no pair, as a row is one thing.
        side_of(row, form, names[0], response)
    return responses, scores


def _after_system(system: Message | None, messages: list[Message], name: str) -> list[Message]:
    """The conversation with the row's system turn; RowRejected if it has another."""
    if system is None or not messages:
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
