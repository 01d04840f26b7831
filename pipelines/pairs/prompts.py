"""What the rows of sources ask, without what answers: the prompts that `sample` draws from."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipelines.errors import UserError
from pipelines.models import ChatSettings, ChatTemplate, TemplateRefused
from pipelines.pairs.cells import text_in
from pipelines.pairs.conversation import (
    Conversation,
    PairEncoder,
    RowRejected,
    require_written,
)
from pipelines.pairs.detection import Detected, detect_questions
from pipelines.pairs.forms import Form, asked_alone, question_of, side_of, split_transcript
from pipelines.pairs.question import Question
from pipelines.pairs.row_readers import SourceRow
from pipelines.pairs.sources import Chunk, chunks_of, read_rows, sampled_rows
from pipelines.recipe import DataSection, Source

Prompt = str | Question


class PromptEncoder:
    """Token ids of prompts as a model is asked them, cut as pairs' are."""

    def __init__(self, tokenizer: Any, data: DataSection) -> None:
        self._tokenizer, self._data = tokenizer, data
        self._encoder = PairEncoder(tokenizer, data)
        self._template: ChatTemplate | None = None

    def __call__(self, prompt: Prompt) -> list[int]:
        """BOS as the tokenizer's own encoding has it before a text, as the template in a chat.

        Raises: RowRejected with the template's words, for a call or tool that it leaves out, or for
            a prompt too long under `drop`. UserError if there is no usable template.
        """
        if isinstance(prompt, str):
            return self._encoder.asked(prompt)
        if self._template is None:
            template = ChatTemplate(self._tokenizer, ChatSettings.of(self._data))
            template.require_ends()
            self._template = template
        try:
            require_written(self._template, Conversation(prompt.messages, prompt.tools))
            text = self._template.render(prompt.messages, prompt.tools, opens_answer=True)
        except TemplateRefused as reason:
            raise RowRejected(f"chat template: {reason}") from reason
        return self._encoder.asked_in_chat(text)


class Prompts:
    """The prompts of the training sources.

    Attributes:
        lines: how every source is read. reasons: why rows were left out -> how many, once read.

    Raises: UserError if a source holds no row, none that asks, or some sources ask in texts and
        others in conversations.
    """

    def __init__(self, data: DataSection, tokenizer: Any) -> None:
        self._encoder = PromptEncoder(tokenizer, data)
        self._sources = [_detected(source, data) for source in data.sources]
        self.lines = list(dict.fromkeys(found.line for found, _ in self._sources))
        self.reasons: Counter[str] = Counter()
        kinds = {found.form.is_chat for found, _ in self._sources}
        if len(kinds) > 1:
            raise UserError(
                f"some sources ask in texts, others in conversations: {'; '.join(self.lines)}; "
                "sample them apart"
            )

    def __iter__(self) -> Iterator[Prompt]:
        """Every prompt that can be asked, in order, repeated ones too."""
        for prompt, _ in self.rows():
            yield prompt

    def rows(self) -> Iterator[tuple[Prompt, SourceRow]]:
        """The same, each with the row that it stands in."""
        self.reasons.clear()
        for found, chunks in self._sources:
            for row in itertools.chain.from_iterable(map(read_rows, chunks)):
                try:
                    if row.values is None:
                        raise RowRejected(row.fault)
                    prompt = prompt_of(row.values, found.form)
                    self._encoder(prompt)
                except RowRejected as reason:
                    self.reasons[str(reason)] += 1
                else:
                    yield prompt, row

    def none(self) -> UserError:
        """What to say where no row asks anything."""
        said = ", ".join(f"{reason}: {n}" for reason, n in self.reasons.most_common(5))
        return UserError(
            f"no prompt to sample from ({said or 'the sources are empty'}); {'; '.join(self.lines)}"
        )


def check_prompts(data: DataSection, tokenizer: Any) -> None:
    """UserError as of `Prompts`, and where no row can be asked."""
    prompts = Prompts(data, tokenizer)
    if next(iter(prompts), None) is None:
        raise prompts.none()


def _detected(source: Source, data: DataSection) -> tuple[Detected, list[Chunk]]:
    chunks = chunks_of(source, data.rows_per_task)
    if not chunks:
        raise UserError(f"data source {source.path!r} holds no row")
    found = detect_questions(source, sampled_rows(chunks))
    if found.form.name == "text_only":
        raise UserError(f"{found.line} has no prompts")
    return found, chunks


def prompt_of(row: dict[str, Any], form: Form) -> Prompt:
    """What a row asks: a text, or the messages before the answer in which its sides part.

    Raises: RowRejected if there is nothing.
    """
    try:
        if form.name == "hh" and not form.is_chat:
            return split_transcript(text_in(row, form.answers[0]))[0]
        if not form.is_chat:
            return _spoken(question_of(row, form))
        return _question(row, form)
    except RecursionError:
        raise RowRejected("a value is nested too deep") from None


def _spoken(text: str) -> str:
    if not text.strip():
        raise RowRejected("empty prompt")
    return text


def _question(row: dict[str, Any], form: Form) -> Question:
    if form.name in ("conversational", "alpaca", "hh") and form.has_rejected:
        sides = [side_of(row, form, name, row.get(name)) for name in form.answers]
        asked = _shared(*(side for side in sides if isinstance(side, Conversation)))
    else:
        asked = asked_alone(row, form)
    if not asked.messages or asked.messages[-1]["role"] == "assistant":
        raise RowRejected("the prompt does not end before a turn of the assistant")
    return Question(asked.messages, asked.tools)


def _shared(one: Conversation, other: Conversation) -> Conversation:
    """What stands before the turn in which two conversations part, or their last one."""
    most = min(len(one.messages), len(other.messages)) - 1
    at = next((n for n in range(most) if one.messages[n] != other.messages[n]), most)
    if any(side.messages[at]["role"] != "assistant" for side in (one, other)):
        raise RowRejected("chosen and rejected have different prompts")
    return Conversation(one.messages[:at], one.tools)
