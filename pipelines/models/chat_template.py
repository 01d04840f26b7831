"""A chat template: messages -> one text, and what the template says of itself.

The template is a program that somebody wrote. Whatever it raises is one line, and it has a limited
time. What it does with an answer is seen by a probe: a character that no template writes.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models.time_limit import TimeUp, time_limit
from pipelines.recipe import DataSection, packaged_template

Message = dict[str, Any]
RENDER_SECONDS = 10.0
_PROBE = "\ue000"  # no template writes it


class TemplateRefused(ValueError):
    """The template does not render these messages; the message is its own."""


@dataclass(frozen=True)
class TemplateForm:
    """What a template does with a question and its answer.

    Attributes:
        takes_strings, takes_parts: contents that are a string, a list of text parts.
        asked: the text that asks for the answer. end: id of the token that ends it.
    """

    takes_strings: bool
    takes_parts: bool
    asked: str
    end: int


@dataclass(frozen=True)
class _Taken:
    """The kinds of contents that a template takes, and the simplest conversation as it writes it.

    Attributes:
        asked: what asks. whole: with the answer.
    """

    strings: bool
    parts: bool
    asked: str
    whole: str


@dataclass(frozen=True)
class ChatSettings:
    """The template that a recipe sets in place of the tokenizer's own, and its options.

    Attributes:
        template: its text, or a name among the tokenizer's templates. options: names that the
            template reads besides the messages.
    """

    template: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: DataSection) -> "ChatSettings":
        """UserError if the file that data.chat_template names cannot be read."""
        text = template_file_text(data)
        return cls(data.chat_template if text is None else text, data.chat_template_kwargs)

    def on(self, tokenizer: Any) -> Any:
        """The tokenizer with this template, a copy of it if that is another one.

        Raises: UserError if it is neither a text nor a name among the tokenizer's templates.
        """
        if self.template is None:
            return tokenizer
        own = tokenizer.chat_template
        names = sorted(own) if isinstance(own, dict) else []
        if self.template not in names and "{" not in self.template:
            raise UserError(
                f"data.chat_template = {self.template!r} is neither a file nor a template of the "
                "tokenizer"
                + (f": its templates are {', '.join(names)}" if names else ", which has no names")
            )
        found = copy.copy(tokenizer)
        found.chat_template = own[self.template] if self.template in names else self.template
        return found


def template_file_text(data: DataSection) -> str | None:
    """The text of the file or packaged template that `data.chat_template` names; None if it names
    none.

    Raises: UserError if the file cannot be read.
    """
    if data.chat_template is None:
        return None
    path = Path(data.chat_template)
    found = path if path.is_file() else packaged_template(data.chat_template)
    if found is None:
        return None
    try:
        return found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.chat_template = {data.chat_template!r}: {error}") from error


class ChatTemplate:
    """The template of a tokenizer, with what a recipe sets of it.

    Raises: UserError if there is none.
    """

    PROBE = _PROBE

    def __init__(self, tokenizer: Any, settings: ChatSettings | None = None) -> None:
        settings = settings or ChatSettings()
        self._tokenizer = settings.on(tokenizer)
        self._options = dict(settings.options)
        is_own = settings.template is None
        self.name = f"the chat template of {_name(tokenizer)}" if is_own else "data.chat_template"
        if not self._tokenizer.chat_template:
            raise UserError(
                f"conversational data needs a tokenizer with a chat template: {_name(tokenizer)} "
                "has none; set data.chat_template"
            )

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        opens_answer: bool = False,
    ) -> str:
        """The text of a conversation.

        Args:
            opens_answer: the assistant's turn follows, as for a model that is to answer.
        Raises: TemplateRefused; UserError for a template that is none or takes too long.
        """
        fitted = [self._fitted(message) for message in messages]
        refusal = None
        for form in self._forms(fitted):
            try:
                return self._rendered(form, tools, opens_answer)
            except TemplateRefused as reason:
                refusal = refusal or reason
        assert refusal is not None
        raise refusal

    def _forms(self, messages: list[Message]) -> Iterator[list[Message]]:
        """The messages, and as some templates want them where there are tool calls.

        They want a content, be it empty, or arguments as JSON text.
        """
        yield messages
        if not any(message.get("tool_calls") for message in messages):
            return
        filled = [{**self._fitted({"content": ""}), **message} for message in messages]
        yield filled
        yield [_with_text_arguments(message) for message in messages]
        yield [_with_text_arguments(message) for message in filled]

    @cached_property
    def form(self) -> TemplateForm:
        """Of the simplest conversation, with a token that ends the answer.

        Raises: UserError if the template does not render it, an answer cannot be told from its
            question there, or no token ends the answer.
        """
        taken = self._taken
        try:
            self.border(taken.asked, taken.whole, lambda: self._before_turn(not taken.strings))
        except TemplateRefused as reason:
            raise UserError(
                f"{self.name} {reason}: responses cannot be told apart from prompts; use text form "
                "or another template"
            ) from reason
        tail = taken.whole[taken.whole.rindex(_PROBE) + len(_PROBE) :]
        ids = self._tokenizer(tail, add_special_tokens=False).input_ids
        place = last_of(ids, self._ends)
        if place is None:
            raise UserError(f"{self.name} ends the assistant's turn with no special token")
        return TemplateForm(taken.strings, taken.parts, taken.asked, int(ids[place]))

    @cached_property
    def _taken(self) -> "_Taken":
        """UserError if the template does not render the simplest conversation."""
        reasons, found = [], {}
        for has_parts in (False, True):
            try:
                found[has_parts] = self._probed(has_parts)
            except TemplateRefused as reason:
                reasons.append(str(reason))
        texts = {key: probed for key, probed in found.items() if probed is not None}
        if True in texts and texts.get(False, texts[True]) != texts[True]:
            del texts[True]  # it writes the list as it stands
        if not texts:
            why = reasons[0] if reasons else "the answer is not in the text"
            raise UserError(f"{self.name} does not render a question and its answer: {why}")
        return _Taken(False in texts, True in texts, *(texts.get(False) or texts[True]))

    def require_answers(self) -> None:
        """UserError if the template does not render a question and its answer."""
        _ = self._taken

    def require_ends(self) -> None:
        """UserError if it does not, or an answer of it cannot be told apart and has no end."""
        _ = self.form

    def border(self, asked: str, whole: str, before_turn: Callable[[], str]) -> int:
        """The character of `whole` where the answer begins.

        It is the end of the text that asks for it. Where a template writes something else after an
        answer's opening than it asks with (an open thinking block), it is where both part.

        Args:
            asked: the messages before, with the answer's opening. before_turn: makes the same
                without it, and is called where it matters.
        Raises: TemplateRefused if the messages before are rendered in another way with the answer.
        """
        shared = _shared(asked, whole)
        if shared < len(asked) and shared < _shared(asked, before_turn()):
            raise TemplateRefused("does not render a prompt as a prefix of the whole conversation")
        return shared

    def probe_of(self, message: Message) -> Message:
        """The message with another content, which begins with what no template writes."""
        return {**message, "content": _PROBE}

    def end_of_turn(self, whole: str, probed: str) -> int:
        """The character of a conversation after the token that ends a turn.

        Args:
            probed: the conversation with the probe in place of what the turn says.
        Raises: TemplateRefused if it cannot be told.
        """
        tail = probed[probed.rindex(_PROBE) + len(_PROBE) :] if _PROBE in probed else None
        if tail and whole.endswith(tail):
            marks = (self._tokenizer.convert_ids_to_tokens(id_) for id_ in self._ends)
            rest = tail.lstrip()
            if found := max((mark for mark in marks if rest.startswith(mark)), key=len, default=""):
                return len(whole) - len(rest) + len(found)
        raise TemplateRefused("renders an earlier turn in a way of which its end cannot be told")

    @cached_property
    def _ends(self) -> frozenset[int]:
        return end_ids(self._tokenizer)

    def _probed(self, has_parts: bool) -> tuple[str, str] | None:
        """What asks for the probe, and the whole with it; None if it is not there."""
        messages = [_message(role, text, has_parts) for role, text in _SIMPLEST]
        asked = self._rendered(messages[:1], None, True)
        whole = self._rendered(messages, None, False)
        return (asked, whole) if _PROBE in whole and _QUESTION in whole else None

    def _before_turn(self, has_parts: bool) -> str:
        return self._rendered([_message("user", _QUESTION, has_parts)], None, False)

    def _fitted(self, message: Message) -> Message:
        """The message with a content of the kind that the template takes."""
        content = message.get("content")
        if isinstance(content, str) and not self._taken.strings:
            return {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content, list) and not self._taken.parts:
            return {**message, "content": "".join(part["text"] for part in content)}
        return message

    def _rendered(
        self, messages: list[Message], tools: Sequence[Any] | None, opens_answer: bool
    ) -> str:
        from jinja2 import TemplateSyntaxError

        try:
            with time_limit(RENDER_SECONDS):
                text = self._tokenizer.apply_chat_template(
                    messages,
                    tools=list(tools) if tools else None,
                    add_generation_prompt=opens_answer,
                    tokenize=False,
                    **self._options,
                )
                return str(text)
        except TimeUp:
            raise UserError(
                f"{self.name} takes more than {RENDER_SECONDS:g} seconds for one conversation: "
                "does it loop?"
            ) from None
        except TemplateSyntaxError as error:
            raise UserError(
                f"{self.name} is no template: line {error.lineno}: {_line(error)}"
            ) from error
        except Exception as error:  # a template is a program and may raise anything
            raise TemplateRefused(_line(error)) from error


_QUESTION = "a?"
_SIMPLEST = (("user", _QUESTION), ("assistant", _PROBE))


def _message(role: str, text: str, has_parts: bool) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}] if has_parts else text}


def _with_text_arguments(message: Message) -> Message:
    calls = []
    for call in message.get("tool_calls", ()):
        function = call.get("function", call)
        if not isinstance(function.get("arguments"), str):
            text = json.dumps(function.get("arguments", {}), ensure_ascii=False)
            function = {**function, "arguments": text}
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls} if calls else message


def _name(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path) or "the tokenizer"


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def end_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that can end a turn: all that stand beside the vocabulary's own.

    Not every such token is special by name, `<end_of_turn>` is not always. White space is text.
    """
    added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    return special_ids(tokenizer) | (added - {tokenizer.unk_token_id})


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of all special tokens, also of those that have no role by name.

    An unknown word's token is text.
    """
    added = {token for token, content in tokenizer.added_tokens_decoder.items() if content.special}
    roles = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    return frozenset(added | set(tokenizer.all_special_ids)) - ({tokenizer.unk_token_id} - roles)


def last_of(ids: Sequence[int], marks: frozenset[int]) -> int | None:
    """The place of the last of some tokens."""
    return next((place for place in range(len(ids) - 1, -1, -1) if ids[place] in marks), None)


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    if other.startswith(one):
        return len(one)
    most = min(len(one), len(other))
    return next((at for at in range(most) if one[at] != other[at]), most)
