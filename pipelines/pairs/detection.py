"""Which form a source's rows have, from many of them.

A row speaks for a form by its columns and by what stands in them. Rows that speak for different
forms are refused: reading one as the other would go unseen.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.errors import UserError
from pipelines.pairs.cells import finite, is_sharegpt, label_of
from pipelines.pairs.form_lines import (
    described,
    lacks,
    mixes,
    nothing_fits,
    place_of,
    present,
    two_fit,
)
from pipelines.pairs.forms import HH_TURN, Form
from pipelines.pairs.row_readers import SourceRow
from pipelines.pairs.sources import SCORE_COLUMNS
from pipelines.recipe import ColumnNames, Source

_IS_CHAT = ("conversational", "alpaca")
_WITHOUT_REJECTED = ("chosen_only", "text_only", "alpaca")
_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*['"](role|content|from|value)['"]\s*:""")
Row = dict[str, Any]


@dataclass(frozen=True)
class Detected:
    """The form of a source, and a line that says what was taken and why."""

    form: Form
    line: str


def detect(source: Source, rows: Sequence[SourceRow]) -> Detected:
    """The form of a source, by rows from its beginning and from its files.

    Args:
        rows: some hundred; those that cannot be read say nothing.
    Raises: UserError if none can be read, no form fits, two do, or rows have different ones.
    """
    names = source.columns
    readable = [row for row in rows if row.values is not None]
    if not readable:
        fault = f"; {place_of(rows[0])}: {rows[0].fault}" if rows else ""
        raise UserError(f"data source {source.path!r}: none of its first rows can be read{fault}")
    columns = {name for row in readable for name in row.values or ()}
    _require(source, columns)
    spoken = []
    for row in readable:
        forms = _spoken(row.values or {}, names, source.form)
        if len({form.answers for form in forms if form.has_rejected}) > 1:
            raise UserError(two_fit(source, row, forms))
        if forms:
            spoken.append((row, forms[0]))
    form = _agreed(source, spoken)
    if form is None:
        if source.form == "auto":
            raise UserError(nothing_fits(source, columns, readable))
        form = _by_columns(source.form, columns, names)
    if source.transcripts == "messages":
        if form.name != "hh":
            raise UserError(
                f"data source {source.path!r}: transcripts = messages, and its form is {form.name}:"
                " only HH transcripts are taken apart into messages; leave it out"
            )
        form = replace(form, is_chat=True)
    form = _completed(form, readable, names)
    for name in form.needed:
        if name not in columns:
            raise UserError(lacks(source, form.name, name, columns))
    if source.form == "auto" and not form.is_chat:
        _refuse_written(source, form, readable)
    return Detected(form, described(source, form, readable))


def detect_questions(source: Source, rows: Sequence[SourceRow]) -> Detected:
    """How the rows of a source ask. They may answer, as `detect` has it, or ask alone.

    Raises: UserError as `detect`, or for rows of texts beside rows of messages.
    """
    names, given = source.columns, [row for row in rows if row.values is not None]
    if any(_spoken(row.values or {}, names, "auto") for row in given):
        return detect(source, rows)
    found: dict[tuple[str, bool], tuple[SourceRow, Form]] = {}
    for row in given:
        asks = _question(present(row.values or {}), names)
        if asks is not None:
            is_alpaca = asks == names.instruction != names.prompt and source.form != "text"
            is_chat = is_alpaca or kind_of((row.values or {})[asks]) == "messages"
            form = Form("prompts", is_chat, asks, ())
            found.setdefault((asks, is_chat), (row, form))
    if not found:
        return detect(source, rows)  # which says what is missing
    if len(found) > 1:
        raise UserError(mixes(source, *list(found.values())[:2]))
    ((_, form),) = found.values()
    form = _completed(form, given, names)
    kind = "conversations" if form.is_chat else "texts"
    return Detected(form, f"data source {source.path!r}: prompts alone ({form.asks}: {kind})")


def form_of(name: str, row: Row, names: ColumnNames | None = None) -> Form:
    """The named form of a single row."""
    source = Source(path="row", form=name, columns=names or ColumnNames())  # type: ignore[arg-type]
    return detect(source, [SourceRow(0, row, "row:1")]).form


def kind_of(value: Any) -> str:
    """text, messages (a list of them or one) or other; what is missing or empty is other."""
    if isinstance(value, (str, bytes)):
        return "text"
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return "other"
    return "messages" if isinstance(first.get("role"), str) or is_sharegpt(first) else "other"


def _spoken(row: Row, names: ColumnNames, asked: str) -> list[Form]:
    """The forms that a row speaks for, the likeliest first."""
    given = present(row)
    found = _with_rejected(given, names)
    if asked in ("auto", *_WITHOUT_REJECTED):
        found += _without_rejected(given, names, asked)
    return [form for form in found if asked in ("auto", form.name)]


def _question(given: Row, names: ColumnNames) -> str | None:
    """The column that asks."""
    likely = (names.prompt, names.conversations, names.instruction)
    return next((n for n in likely if kind_of(given.get(n)) in ("text", "messages")), None)


def _with_rejected(given: Row, names: ColumnNames) -> list[Form]:
    asks = _question(given, names)
    asks_chat = asks is not None and kind_of(given[asks]) == "messages"
    found = _of_two_sides(given, names, asks, asks_chat)
    candidates = given.get(names.responses)
    if asks and isinstance(candidates, list) and isinstance(given.get(names.scores), list):
        is_chat = asks_chat or any(kind_of(value) == "messages" for value in candidates)
        found.append(Form("scored", is_chat, asks, (names.responses, names.scores)))
    if label_of(given.get(names.label)) is None:
        return found
    for name in (names.response, names.completion):
        kind = kind_of(given.get(name))
        if asks and kind in ("text", "messages"):
            is_chat = asks_chat or kind == "messages"
            found.append(Form("unpaired", is_chat, asks, (name, names.label)))
    whole = (name for name in (names.messages, names.conversations) if not found)
    return found + [
        Form("unpaired", True, None, (name, names.label))
        for name in whole
        if kind_of(given.get(name)) == "messages"
    ]


def _of_two_sides(given: Row, names: ColumnNames, asks: str | None, asks_chat: bool) -> list[Form]:
    """Forms with chosen and rejected in columns of their own."""
    sides = (names.chosen, names.rejected)
    kinds = {kind_of(given.get(name)) for name in sides}
    if "other" in kinds:
        return []
    if "messages" in kinds or asks_chat:
        return [Form("conversational", True, asks, sides)]
    if all(_is_transcript(given, name, asks) for name in sides):
        return [Form("hh", False, None, sides)]
    if asks is None:
        return []
    text = Form("text", False, asks, sides)
    if asks == names.instruction != names.prompt:
        return [replace(text, name="alpaca", is_chat=True), text]
    return [text]


def _without_rejected(given: Row, names: ColumnNames, asked: str) -> list[Form]:
    asks = _question(given, names)
    asks_chat = asks is not None and kind_of(given[asks]) == "messages"
    found = []
    for name in (names.chosen, names.completion, names.response, names.output):
        if names.label in given and name in (names.completion, names.response) and asked == "auto":
            continue  # what the label says of it is not known
        kind = kind_of(given.get(name))
        if kind == "messages" or (kind == "text" and asks):
            form = Form("chosen_only", asks_chat or kind == "messages", asks, (name,))
            if not form.is_chat and asks == names.instruction != names.prompt:
                found.append(replace(form, name="alpaca", is_chat=True))
            found.append(form)
    for name in (names.messages, names.conversations):
        if kind_of(given.get(name)) == "messages":
            found.append(Form("chosen_only", True, None, (name,)))
    if kind_of(given.get(names.text)) == "text":
        found.append(Form("text_only", False, None, (names.text,)))
    return found


def _is_transcript(given: Row, name: str, asks: str | None) -> bool:
    """Whether a side is an HH transcript; beside a question, one that repeats it."""
    text, question = given[name], given[asks] if asks else HH_TURN
    if isinstance(text, bytes) or isinstance(question, bytes) or HH_TURN not in question:
        return False
    return HH_TURN in text and (asks is None or text.startswith(question))


def _agreed(source: Source, spoken: Sequence[tuple[SourceRow, Form]]) -> Form | None:
    """The one form that rows speak for, leaving out those that lack a part of it.

    Raises: UserError for rows of different forms.
    """
    spoken = [found for found in spoken if not _is_blank(*found)] or spoken
    pairs = {form.answers for _, form in spoken if form.has_rejected}
    found: dict[tuple[Any, ...], tuple[SourceRow, Form]] = {}
    questions: dict[str, SourceRow] = {}
    for row, form in spoken:
        if not form.has_rejected and _is_incomplete(row, form, pairs):
            continue
        found.setdefault((form.name, form.is_chat, form.answers), (row, form))
        if form.asks:
            questions.setdefault(form.asks, row)
    if len(found) > 1:
        one, other = list(found.values())[:2]
        raise UserError(mixes(source, one, other))
    if len(questions) > 1:
        (first, one_row), (second, other_row) = list(questions.items())[:2]
        raise UserError(
            f"data source {source.path!r}: {first} asks at {place_of(one_row)}, {second} at "
            f"{place_of(other_row)}; give each kind a source of its own"
        )
    for _, form in found.values():
        return replace(form, asks=next(iter(questions), None))
    return None


def _is_blank(row: SourceRow, form: Form) -> bool:
    """Whether a row answers with an empty text, which may stand for anything."""
    given = (row.values or {}).get
    return any(isinstance(text := given(name), str) and not text.strip() for name in form.answers)


def _is_incomplete(row: SourceRow, form: Form, pairs: set[tuple[str, ...]]) -> bool:
    """Whether a row that speaks for a chosen response alone is a pair without its other part."""
    has = set(row.values or ())
    return any(set(form.answers) < set(pair) or set(pair) <= has for pair in pairs)


def _refuse_written(source: Source, form: Form, rows: Sequence[SourceRow]) -> None:
    """UserError for messages that stand in a column as the text of JSON."""
    for row in rows:
        for name in (form.asks or form.answers[0], *form.answers):
            text = (row.values or {}).get(name)
            if isinstance(text, str) and _MESSAGES.match(text):
                raise UserError(
                    f"data source {source.path!r}, {place_of(row)}: {name} is the text of messages "
                    "(JSON), not a list of them: write lists (jsonl or parquet), or set "
                    "data.sources[].form to read it as it stands"
                )


def _require(source: Source, columns: set[str]) -> None:
    """UserError for a column that the named form needs and no row has."""
    names = source.columns
    single = [names.chosen, names.completion, names.response, names.output]
    whole = [names.messages, names.conversations]
    asks = [names.prompt, names.conversations, names.instruction]
    wanted = {
        "auto": [],
        "text": [[names.prompt, names.instruction], [names.chosen], [names.rejected]],
        "conversational": [[names.chosen], [names.rejected]],
        "hh": [[names.chosen], [names.rejected]],
        "scored": [asks, [names.responses], [names.scores]],
        "unpaired": [[names.response, names.completion, *whole], [names.label]],
        "alpaca": [[names.instruction], [names.chosen, names.output]],
        "chosen_only": [[*single, *whole]],
        "text_only": [[names.text]],
    }
    for either in wanted[source.form]:
        if not set(either) & columns:
            raise UserError(lacks(source, source.form, either[0], columns))


def _by_columns(name: str, columns: set[str], names: ColumnNames) -> Form:
    """The form that the recipe names where no row speaks for it: each will say why it does not."""
    likely = (names.prompt, names.conversations, names.instruction)
    asks = next((column for column in likely if column in columns), None)
    response = names.response if names.response in columns else names.completion
    answers = {
        "scored": (names.responses, names.scores),
        "unpaired": (response, names.label),
        "text_only": (names.text,),
        "chosen_only": (names.chosen,),
    }.get(name, (names.chosen, names.rejected))
    return Form(name, name in _IS_CHAT, None if name in ("hh", "text_only") else asks, answers)


def _completed(form: Form, rows: Sequence[SourceRow], names: ColumnNames) -> Form:
    """The form with the columns that it reads besides, be it in few rows."""
    more: dict[str, Any] = {}
    if form.asks and (form.asks == names.instruction or "input" in names.model_fields_set):
        more["input"] = names.input
    if form.is_chat:
        more |= {"system": names.system, "tools": names.tools}
    if form.has_rejected and form.name not in ("scored", "unpaired"):
        if names.chosen_score or names.rejected_score:
            more["scores"] = (names.chosen_score, names.rejected_score)
            more["requires_scores"] = True
        else:
            given = (pair for pair in SCORE_COLUMNS if all(_is_numbers(rows, n) for n in pair))
            more["scores"] = next(given, (None, None))
    if names.chosen_weights or names.rejected_weights:
        more["weights"] = (
            names.chosen_weights,
            names.rejected_weights if form.has_rejected else None,
        )
    return replace(form, **more)


def _is_numbers(rows: Sequence[SourceRow], name: str) -> bool:
    """Whether a column has numbers, and nothing else."""
    values = [row.values[name] for row in rows if row.values and row.values.get(name) is not None]
    return bool(values) and all(finite(value) is not None for value in values)
