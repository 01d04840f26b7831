"""One conversation: messages, tools and a template -> one text, one encoding, what is scored of it.

This module alone decides where BOS stands, what ends a response, and where a prompt ends.

Chat: the whole conversation is rendered once and encoded once, without special tokens: those that
it has are the template's. The prompt is what the encodings of both sides share of the text before
the turn in which they part. The response is the rest, up to the token that ends the last turn. Of
it, turns of the assistant are scored (data.scored_turns), from where the template's opening ends to
the token that ends the turn; a token that holds text of both sides of that border is scored.

Text: the prompt's ids are those that sampling starts from. The response's continue them: they are
of the encoding of both together. BOS stands in front if the tokenizer's own encoding adds it; one
end token ends the response. docs/data.md.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.models import (
    ChatSettings,
    ChatTemplate,
    Control,
    Message,
    TemplateRefused,
    end_ids,
    in_front,
    last_of,
)
from pipelines.recipe import DataSection
from pipelines.storage import parse_json
from sparsepo.batching.layouts import tokens_within

_ANCHORS = ("\n", ".", "a", "a ")
_REASONING = ("reasoning_content", "reasoning", "thinking")
Span = tuple[int, int]


class RowRejected(Exception):
    """A row cannot be used; the message is the reason that rejected_rows.jsonl records."""


@dataclass(frozen=True)
class RawPair:
    """One pair before tokenisation.

    Attributes:
        is_chat: strings are rendered by a chat template and already end themselves. chosen_turns,
            rejected_turns: the scored turns of a rendered side, (first, end) characters of it.
        conversation: of chat, the messages before the sides part and the tools, as JSON text.
        desirable: the label of a response that is a row of its own; it stands in `chosen`.
    """

    prompt: str
    chosen: str
    rejected: str | None
    chosen_score: float | None = None
    rejected_score: float | None = None
    is_chat: bool = False
    chosen_weights: list[float] | None = None
    rejected_weights: list[float] | None = None
    chosen_turns: tuple[Span, ...] = ()
    rejected_turns: tuple[Span, ...] = ()
    conversation: str | None = None
    desirable: bool | None = None

    def rows(self) -> "tuple[RawPair, RawPair]":
        """Both sides as rows of their own: the chosen one desirable, the rejected one not."""
        assert self.rejected is not None
        own = replace(
            self,
            rejected=None,
            rejected_score=None,
            rejected_weights=None,
            rejected_turns=(),
            desirable=True,
        )
        other = replace(
            own,
            chosen=self.rejected,
            chosen_score=self.rejected_score,
            chosen_weights=self.rejected_weights,
            chosen_turns=self.rejected_turns,
            desirable=False,
        )
        return own, other


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant's turn, and the tools that it may call."""

    messages: Sequence[Message]
    tools: Sequence[Any] | None = None

    def before(self, turn: int) -> str:
        """What stands before a turn, as JSON text: messages, and tools if there are some.

        Contents of text parts are strings there.
        """
        found: dict[str, Any] = {
            "messages": [
                {**message, "content": text_of(message)} if "content" in message else message
                for message in self.messages[:turn]
            ]
        }
        if self.tools:
            found["tools"] = list(self.tools)
        return json.dumps(found, ensure_ascii=False)


def messages_of(value: Any, name: str) -> list[Message]:
    """The messages of a column; one message stands for a list of it.

    A message has a role, and a content (a string or text parts), tool calls or reasoning. Its other
    fields go to the template as they are. Fields without a value are left out.

    Raises: RowRejected naming the column.
    """
    found = [value] if isinstance(value, dict) else value
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise RowRejected(f"{name} is not a list of messages with role and content")
    return [_message(message, name) for message in found]


def _message(given: dict[str, Any], name: str) -> Message:
    message = {key: value for key, value in given.items() if value is not None}
    require_text(message, name)
    if not isinstance(message.get("role"), str):
        raise RowRejected(f"{name} is not a list of messages with role and content")
    if "tool_calls" in message:
        calls = message["tool_calls"]
        if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
            raise RowRejected(f"{name}: tool_calls is not a list of calls with a function's name")
        message["tool_calls"] = [_with_object(_without_nulls(call)) for call in calls]
        if not calls:
            del message["tool_calls"]
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = [_part(part, name) for part in content]
    elif content is None and not ({"tool_calls", *_REASONING} & set(message)):
        raise RowRejected(f"{name} is not a list of messages with role and content")
    elif content is not None and not isinstance(content, str):
        raise RowRejected(
            f"{name}: a content is {type(content).__name__}, neither a string nor text parts"
        )
    return message


def _is_call(call: Any) -> bool:
    return isinstance(call, dict) and isinstance(_function_of(call).get("name"), str)


def _function_of(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    return function if isinstance(function, dict) else call


def _without_nulls(call: dict[str, Any]) -> dict[str, Any]:
    """A call without the fields that only other rows of the file have; arguments as they are."""
    kept = {key: value for key, value in call.items() if value is not None}
    if isinstance(kept.get("function"), dict):
        kept["function"] = {k: v for k, v in kept["function"].items() if v is not None}
    return kept


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    """A call whose arguments are JSON text, as OpenAI gives them, with the object they stand for.

    Templates write an object as JSON, and such a text a second time as a string.
    """
    function = _function_of(call)
    if not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = parse_json(function["arguments"])
    except ValueError:
        return call
    if not isinstance(arguments, dict):
        return call
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if isinstance(call.get("function"), dict) else function


def _part(part: Any, name: str) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RowRejected(f"{name} holds a part of type {kind!r}: only text is read")
    return {"type": "text", "text": part["text"]}


def text_of(message: Message) -> str:
    """A message's content as one string."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def says_nothing(message: Message) -> bool:
    """Whether there is neither a content nor a tool call nor reasoning."""
    said = (message.get(name) for name in _REASONING)
    return not (
        text_of(message).strip()
        or message.get("tool_calls")
        or any(isinstance(value, str) and value.strip() for value in said)
    )


def require_text(value: Any, name: str) -> None:
    """RowRejected for a string anywhere in a value that no file can hold."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowRejected(f"{name} is not valid UTF-8") from error
    elif isinstance(value, dict):
        for key, item in value.items():
            require_text(key, name)
            require_text(item, name)
    elif isinstance(value, list):
        for item in value:
            require_text(item, name)


class ChatRenderer:
    """Renders pairs of conversations with the chat template of a tokenizer.

    Raises: UserError if there is no usable template, when a pair is rendered.
    """

    def __init__(self, tokenizer: Any, data: DataSection) -> None:
        self._tokenizer, self._data = tokenizer, data
        self._template: ChatTemplate | None = None

    def pair(self, chosen: Conversation, rejected: Conversation | None = None) -> RawPair:
        """Both sides as texts: what they share before the turn in which they part, and the rest.

        Args:
            rejected: None for a conversation alone, which parts from nothing: its last turn is
                scored, or every turn of the assistant.
        Raises: RowRejected with the template's own words, or if the sides do not fit.
        """
        if self._template is None:
            template = ChatTemplate(self._tokenizer, ChatSettings.of(self._data))
            template.require_ends()
            self._template = template
        sides = [chosen] if rejected is None else [chosen, rejected]
        try:
            return self._pair(self._template, sides)
        except TemplateRefused as reason:
            raise RowRejected(f"chat template: {reason}") from reason

    def _pair(self, template: ChatTemplate, sides: list[Conversation]) -> RawPair:
        first = self._first_scored(template, sides)
        wholes = [template.render(side.messages, side.tools) for side in sides]
        for side in sides:
            require_written(template, side)
        if len(set(wholes)) < len(sides):
            raise RowRejected("chosen and rejected are identical")
        asked = [
            template.render(side.messages[:first], side.tools, opens_answer=True) for side in sides
        ]
        if len(set(asked)) > 1:
            raise RowRejected("chosen and rejected have different prompts")
        border = min(
            _start_of_turn(template, side, first, whole, text)
            for side, whole, text in zip(sides, wholes, asked, strict=True)
        )
        turns: list[tuple[Span, ...]] = []
        for side, whole in zip(sides, wholes, strict=True):
            last = len(side.messages) - 1
            if first == last:  # what the other side's border leaves of the opening is the answer's
                turns.append(((0, len(whole) - border),))
                continue
            scored = [last]
            if self._data.scored_turns == "all":
                scored = [n for n in range(first, last + 1) if _is_answer(side.messages[n])]
            spans = (_turn(template, side, n, whole) for n in scored)
            turns.append(tuple((max(0, start - border), end - border) for start, end in spans))
        texts = [whole[border:] for whole in wholes]
        pair = RawPair(
            *(asked[0][:border], texts[0], None),
            is_chat=True,
            chosen_turns=turns[0],
            conversation=sides[0].before(first),
        )
        if len(sides) == 1:
            return pair
        return replace(pair, rejected=texts[1], rejected_turns=turns[1])

    def _first_scored(self, template: ChatTemplate, sides: list[Conversation]) -> int:
        """The assistant's turn in which the sides part, or that is scored first of one alone."""
        messages = [side.messages for side in sides]
        if len(sides) == 1:
            if self._data.scored_turns == "last":
                return len(messages[0]) - 1
            return next(n for n, message in enumerate(messages[0]) if _is_answer(message))
        turns = enumerate(zip(*messages, strict=False))
        first = next(
            (n for n, (a, b) in turns if a != b and _reads_apart(template, sides, n)), None
        )
        if first is None:  # one goes on where the other ends
            if len(messages[0]) != len(messages[1]):
                raise RowRejected("chosen and rejected have different prompts")
            raise RowRejected("chosen and rejected are identical")
        if not all(_is_answer(side[first]) for side in messages):
            raise RowRejected("chosen and rejected have different prompts")
        return first


def _reads_apart(template: ChatTemplate, sides: list[Conversation], number: int) -> bool:
    """Whether a turn that differs reads differently: a field may be nothing to the template."""
    if all(number == len(side.messages) - 1 for side in sides):
        return True
    try:
        read = {template.render(side.messages[: number + 1], side.tools) for side in sides}
    except TemplateRefused:  # no conversation ends there
        return True
    return len(read) > 1


def _is_answer(message: Message) -> bool:
    return bool(message["role"] == "assistant")


def _start_of_turn(
    template: ChatTemplate, side: Conversation, number: int, whole: str, asked: str
) -> int:
    """The character of the whole where a turn's answer begins."""
    before, turn = side.messages[:number], side.messages[number]

    def without_turn() -> str:
        return template.render(before, side.tools)

    at = template.border(asked, whole, without_turn)
    if at < len(asked):  # An answer may begin as the opening goes on: then it would begin later.
        probed = template.render([*before, template.probe_of(turn)], side.tools)
        at = min(at, template.border(asked, probed, without_turn))
    return at


def _turn(template: ChatTemplate, side: Conversation, number: int, whole: str) -> Span:
    """Where a turn's answer begins in the whole, and where the turn is over."""
    before = side.messages[:number]
    asked = template.render(before, side.tools, opens_answer=True)
    start = _start_of_turn(template, side, number, whole, asked)
    if number == len(side.messages) - 1:
        return start, len(whole)
    until = template.render(side.messages[: number + 1], side.tools)
    if whole.startswith(until):
        return start, len(until)
    # The turn is rendered in another way where it is the last one: a probe says where it ends.
    probe = template.probe_of({"role": "assistant"})
    probed = template.render([*before, probe, *side.messages[number + 1 :]], side.tools)
    return start, template.end_of_turn(whole, probed)


def require_written(template: ChatTemplate, side: Conversation) -> None:
    """RowRejected for a tool or a call that the template leaves out."""
    for number, message in enumerate(side.messages):
        for at, call in enumerate(message.get("tool_calls", ())):
            calls = list(message["tool_calls"])
            calls[at] = _renamed(call, template.PROBE)
            messages = list(side.messages)
            messages[number] = {**message, "tool_calls": calls}
            if template.PROBE not in template.render(messages, side.tools):
                name = _function_of(call)["name"]
                raise RowRejected(f"the chat template leaves out tool_calls (of {name!r})")
    for at, tool in enumerate(side.tools or ()):
        name = _function_of(tool).get("name") if isinstance(tool, dict) else None
        if isinstance(name, str):
            tools = list(side.tools or ())
            tools[at] = _renamed(tool, template.PROBE)
            if template.PROBE not in template.render(side.messages, tools):
                raise RowRejected(f"the chat template leaves out tools ({name!r})")


def _renamed(call: dict[str, Any], name: str) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict):
        return {**call, "function": {**function, "name": name}}
    return {**call, "name": name}


@dataclass(frozen=True)
class Encoded:
    """Token ids of one pair and, if given, a weight per response token.

    Attributes:
        truncated: names of the parts that were cut. straddling: tokens of the responses that hold
            text of the prompt too, or places where a token would. chosen_context,
            rejected_context: of TokenizedPair.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int] | None
    truncated: tuple[str, ...]
    chosen_weights: list[float] | None = None
    rejected_weights: list[float] | None = None
    straddling: int = 0
    chosen_context: tuple[int, ...] = ()
    rejected_context: tuple[int, ...] = ()


class PairEncoder:
    """Tokenises and truncates pairs for one tokenizer and data section.

    Args:
        control: stands in front of the prompts of labelled responses; it is never cut.
    """

    def __init__(self, tokenizer: Any, data: DataSection, control: Control | None = None) -> None:
        self._tokenizer, self._data, self._control = tokenizer, data, control
        self._adds_bos = adds_bos(tokenizer)
        self._ends = end_ids(tokenizer)

    def prompt(self, text: str) -> list[int]:
        """Ids of a text that a model continues, uncut; BOS first if the tokenizer adds it."""
        return text_prompt_ids(self._tokenizer, text, self._adds_bos)

    def asked(self, text: str) -> list[int]:
        """Ids of a text that a model continues, cut as a pair's prompt is.

        Raises: RowRejected if it is too long under `drop`.
        """
        return self._fitting(self.prompt(text))

    def asked_in_chat(self, rendered: str) -> list[int]:
        """Likewise of a rendered conversation, whose special tokens are the template's."""
        return self._fitting(_ids(self._tokenizer, rendered))

    def encode(self, pair: RawPair) -> Encoded:
        """Tokenise and truncate one pair.

        Weights are one per scored token of the whole response; the last end token's may be left
        out and is 1 then.

        Raises: RowRejected if the prompt is too long under `drop`, nothing of a response is left,
            or weights do not fit it.
        """
        parts = self._chat if pair.is_chat else self._text
        prompt, responses, contexts, straddling = parts(pair)
        front: tuple[int, ...] = ()
        if self._control is not None and pair.desirable is not None:
            front = self._control.ids(pair.desirable)
        if not (prompt or front):
            # Text without any prompt and without BOS: the first token has nothing to be predicted
            # from.
            if pair.rejected is not None or pair.is_chat or pair.desirable is not None:
                raise RowRejected("empty prompt")
            prompt, responses[0] = responses[0][:1], responses[0][1:]
        weights = [
            self._fitted(given, len(ids) - tokens_within(context))
            for given, ids, context in zip(
                (pair.chosen_weights, pair.rejected_weights), responses, contexts, strict=False
            )
        ]
        truncated = []
        if len(fitting := self._fitting(prompt, len(front))) < len(prompt):
            truncated.append("prompt")
        prompt = in_front(front, fitting, self._tokenizer.bos_token_id)
        limit = self._data.max_response_tokens
        if self._data.max_tokens is not None:
            limit = min(limit, self._data.max_tokens - len(prompt))
        limit = max(0, limit)
        for i, name in enumerate(("chosen", "rejected")[: len(responses)]):
            if len(responses[i]) > limit:
                if self._data.response_overflow == "drop":
                    raise RowRejected("response longer than max_response_tokens")
                responses[i] = responses[i][:limit]
                contexts[i] = cut_spans(contexts[i], limit)
                truncated.append(name)
                if (given := weights[i]) is not None:
                    weights[i] = given[: limit - tokens_within(contexts[i])]
            if len(responses[i]) == tokens_within(contexts[i]):
                raise RowRejected("response truncated to nothing")
        if len(responses) == 2 and responses[0] == responses[1]:
            raise RowRejected("chosen and rejected are identical after truncation")
        has_rejected = len(responses) == 2
        return Encoded(
            prompt,
            responses[0],
            responses[1] if has_rejected else None,
            tuple(truncated),
            weights[0],
            weights[1] if has_rejected else None,
            straddling,
            contexts[0],
            contexts[1] if has_rejected else (),
        )

    def _fitting(self, prompt: list[int], taken: int = 0) -> list[int]:
        """The prompt's end or start that is kept beside so many tokens; its BOS stays in place."""
        keep = self._data.max_prompt_tokens - taken
        if len(prompt) <= keep:
            return prompt
        if self._data.prompt_overflow == "drop":
            raise RowRejected("prompt longer than max_prompt_tokens")
        if self._data.prompt_overflow != "keep_end":
            return prompt[:keep]
        has_bos = keep > 1 and prompt[0] == self._tokenizer.bos_token_id
        return [prompt[0], *prompt[1 - keep :]] if has_bos else prompt[-keep:]

    def _fitted(self, weights: list[float] | None, scored: int) -> list[float] | None:
        if weights is None or len(weights) == scored:
            return weights
        if len(weights) == scored - 1:
            return [*weights, 1.0]
        raise RowRejected(
            f"{len(weights)} token weights for a response of {scored} tokens (end token included)"
        )

    def _chat(self, pair: RawPair) -> "_Parts":
        """Of rendered texts, each encoded as a whole."""
        border = len(pair.prompt)
        sides = [self._side(pair.prompt, pair.chosen, pair.chosen_turns)]
        if pair.rejected is not None:
            sides.append(self._side(pair.prompt, pair.rejected, pair.rejected_turns))
        shared = 0
        for tokens in zip(*(ids for ids, _, _ in sides), strict=False):
            if len(set(tokens)) > 1 or any(spans[shared][1] > border for _, spans, _ in sides):
                break
            shared += 1
        straddling = 0
        contexts = []
        for ids, spans, scored in sides:
            straddling += sum(spans[start][0] < at for start, _, at in scored)
            contexts.append(_around([(start, stop) for start, stop, _ in scored], shared, len(ids)))
        ids = sides[0][0][:shared]
        return ids, [ids[shared:] for ids, _, _ in sides], contexts, straddling

    def _side(
        self, prompt: str, text: str, turns: Sequence[Span]
    ) -> tuple[list[int], list[Span], list[tuple[int, int, int]]]:
        """A side's ids, their characters, and its scored turns.

        The ids end with the token that ends the last turn. A turn is (first token, end, character
        at which it begins).
        """
        whole, border = prompt + text, len(prompt)
        found = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = found.input_ids, found.offset_mapping
        scored, at = [], 0
        for first, end in turns:
            first, end = first + border, end + border
            start = next((n for n in range(at, len(ids)) if spans[n][1] > first), len(ids))
            at = next((n for n in range(start, len(ids)) if spans[n][0] >= end), len(ids))
            place = last_of(ids[start:at], self._ends)
            if place is None or whole[max(first, spans[start + place][1]) : end].strip():
                raise RowRejected("the chat template ends this turn with no special token")
            scored.append((start, start + place + 1, first))
        stop = scored[-1][1]
        return ids[:stop], spans[:stop], scored

    def _text(self, pair: RawPair) -> "_Parts":
        """Of plain texts, which have straddling places."""
        prompt, texts = pair.prompt, [pair.chosen]
        if pair.rejected is not None:
            texts.append(pair.rejected)
        contexts: list[tuple[int, ...]] = [() for _ in texts]
        if not prompt:
            ids, alone = (
                _begun(self._tokenizer, [], self._adds_bos),
                _ids_of(self._tokenizer, texts),
            )
            return ids, [self._ended(found) for found in alone], contexts, 0
        given, *joined = _ids_of(self._tokenizer, [prompt, *(prompt + text for text in texts)])
        ids = _begun(self._tokenizer, given, self._adds_bos)
        found = [
            _continued(self._tokenizer, given, whole, text)
            for whole, text in zip(joined, texts, strict=True)
        ]
        # Where no ids continue the prompt's, its last ones are part of the responses.
        kept = min(kept for kept, _, _ in found)
        if kept == 0:
            raise RowRejected("no token of the prompt stays as it is before the response")
        responses = [self._ended([*given[kept:at], *more]) for at, more, _ in found]
        prompt_ids = ids[: len(ids) - len(given) + kept]
        return prompt_ids, responses, contexts, sum(n for _, _, n in found)

    def _ended(self, ids: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        return ids if ids[-1:] == [end] else [*ids, end]


# Prompt, responses and their contexts, and the straddling tokens.
_Parts = tuple[list[int], list[list[int]], list[tuple[int, ...]], int]


def _continued(
    tokenizer: Any, given: list[int], joined: list[int], text: str
) -> tuple[int, list[int], int]:
    """How many of the prompt's ids stay, what follows, and whether a token would straddle.

    Args:
        given, joined: ids of the prompt, and of the prompt with the text.
    """
    if joined[: len(given)] == given:
        return len(given), joined[len(given) :], 0
    whole = _decoded(tokenizer, joined)
    for anchor in ("", *_ANCHORS):
        before, ids = _ids(tokenizer, anchor) if anchor else [], _ids(tokenizer, anchor + text)
        more = ids[len(before) :]
        if ids[: len(before)] == before and _decoded(tokenizer, [*given, *more]) == whole:
            return len(given), more, 1
    shared = next(i for i, id_ in enumerate(given) if joined[i : i + 1] != [id_])
    return shared, joined[shared:], 1


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Of several texts in one call: what a call costs beside its tokens counts in short rows."""
    options = {"return_attention_mask": False, "return_token_type_ids": False}
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, **options).input_ids
    return ids


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text


def answer_ids(tokenizer: Any, prompt: str, answer: str, is_chat: bool) -> list[int]:
    """Ids of a response after its prompt, encoded with it as those of a pair are, and uncut.

    Args:
        is_chat: both are rendered texts.
    """
    if is_chat:
        found = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
        spans = zip(found.input_ids, found.offset_mapping, strict=True)
        return [id_ for id_, (_, end) in spans if end > len(prompt)]
    given, joined = _ids_of(tokenizer, [prompt, prompt + answer])
    return _continued(tokenizer, given, joined, answer)[1]


def _around(scored: Sequence[Span], first: int, end: int) -> tuple[int, ...]:
    """What lies between some spans from `first` to `end`, as places after `first`."""
    places = [first, *(place for span in scored for place in span), end]
    gaps = [(start, stop) for start, stop in zip(places[::2], places[1::2], strict=True)]
    return tuple(place - first for gap in gaps if gap[0] < gap[1] for place in gap)


def cut_spans(spans: Sequence[int], end: int) -> tuple[int, ...]:
    """What of some spans lies before a place."""
    found = zip(spans[::2], spans[1::2], strict=True)
    return tuple(place for start, stop in found if start < end for place in (start, min(stop, end)))


def text_prompt_ids(tokenizer: Any, text: str, has_bos: bool | None = None) -> list[int]:
    """Ids of a text that a model continues, uncut.

    Args:
        has_bos: whether BOS stands in front; as the tokenizer's own encoding by default.
    """
    return _begun(tokenizer, _ids(tokenizer, text) if text else [], has_bos)


def _begun(tokenizer: Any, ids: list[int], has_bos: bool | None) -> list[int]:
    """The ids of a text that a model continues, with BOS in front where it belongs there."""
    bos = tokenizer.bos_token_id
    needs_bos = adds_bos(tokenizer) if has_bos is None else has_bos
    return [bos, *ids] if needs_bos and ids[:1] != [bos] else ids


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer's own encoding begins with BOS."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a").input_ids[:1] == [bos]


def decisions(tokenizer: Any, data: DataSection, has_chat: bool) -> dict[str, Any]:
    """Where BOS comes from and what ends a response, in text and (if there is some) in chat.

    Raises: UserError if there is chat and no usable template.
    """
    bos = "tokenizer" if adds_bos(tokenizer) else "none"
    found = {"text": {"bos": bos, "end": tokenizer.eos_token}}
    if has_chat:
        template = ChatTemplate(tokenizer, ChatSettings.of(data))
        ids = tokenizer(template.form.asked, add_special_tokens=False).input_ids
        has_bos = ids[:1] == [tokenizer.bos_token_id]
        end = tokenizer.convert_ids_to_tokens(template.form.end)
        found["chat"] = {"bos": "template" if has_bos else "none", "end": end}
    return found
