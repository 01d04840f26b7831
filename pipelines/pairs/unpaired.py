"""Rows with a label -> pairs: of one prompt, responses labelled true with those labelled false.

Where an objective reads labelled rows they stay what they are, and pairs are taken apart.

The rows of a prompt may stand anywhere in a source. A task reads the whole source and keeps the
prompts that fall to its part, so that no row is handed between tasks.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.pairs.cells import label_of
from pipelines.pairs.conversation import ChatRenderer, Conversation, RawPair, RowRejected
from pipelines.pairs.forms import Form, Side, pair_of, pairs_of_row, question_of, side_of
from pipelines.pairs.row_readers import SourceRow
from pipelines.recipe import DataSection

# Every part reads the whole source: few parts, unless the rows of one would be many.
_PARTS = 16
_CHUNKS_PER_PART = 100
_ALONE = "no response with the other label is left for this prompt"


@dataclass(frozen=True)
class _Labelled:
    row: SourceRow
    prompt: str
    side: Side


def num_parts(num_chunks: int) -> int:
    """Into how many tasks a source is divided; its pairs are the same for any number."""
    return min(num_chunks, max(_PARTS, num_chunks // _CHUNKS_PER_PART))


def pairs_of_rows(
    rows: Iterable[SourceRow],
    form: Form,
    data: DataSection,
    chat: ChatRenderer,
    part: int = 0,
    parts: int = 1,
    is_labelled: bool = False,
) -> Iterator[tuple[SourceRow, RawPair | RowRejected]]:
    """Every row's pairs, or the reason why a row or pair is none.

    Args:
        rows: of a chunk; of the whole source if the form is unpaired. part, parts: of the prompts
            of an unpaired source; rows of the other parts give nothing. is_labelled: every response
            is a row of its own with its label; a pair gives two, and no prompt's rows are brought
            together.
    """
    if stand_alone(form, is_labelled):
        yield from _unpaired(rows, form, data, chat, part, parts)
        return
    for row in rows:
        try:
            if form.name == "unpaired":
                made: Iterable[RawPair] = [_response(row, form, chat)]
            else:
                if row.values is None:
                    raise RowRejected(row.fault)
                made = pairs_of_row(row.values, form, data, chat)
            for pair in made:
                for one in pair.rows() if is_labelled and pair.desirable is None else (pair,):
                    yield row, one
        except RowRejected as reason:
            yield row, reason


def stand_alone(form: Form, is_labelled: bool) -> bool:
    """Whether pairs are made of several rows, so that one that is none says nothing of others."""
    return form.name == "unpaired" and not is_labelled


def _response(row: SourceRow, form: Form, chat: ChatRenderer) -> RawPair:
    """The response of a row with a label. Raises: RowRejected if it is none."""
    _, label, found = _labelled(row, form)
    return replace(pair_of(found.prompt, found.side, None, chat), desirable=label)


def _unpaired(
    rows: Iterable[SourceRow],
    form: Form,
    data: DataSection,
    chat: ChatRenderer,
    part: int,
    parts: int,
) -> Iterator[tuple[SourceRow, RawPair | RowRejected]]:
    """A pair counts as the row of its response labelled true."""
    prompts: dict[str, tuple[list[_Labelled], list[_Labelled]]] = {}
    for row in rows:
        try:
            key, label, found = _labelled(row, form)
        except RowRejected as reason:
            if row.number % parts == part:
                yield row, reason
            continue
        if int(key[:8], 16) % parts == part:
            prompts.setdefault(key, ([], []))[0 if label else 1].append(found)
    for good, bad in prompts.values():
        if data.pairing == "best_worst":
            paired = list(zip(good, bad, strict=False))
            alone = [*good[len(paired) :], *bad[len(paired) :]]
        else:
            paired = [(one, other) for one in good for other in bad]
            alone = [] if paired else [*good, *bad]
        for one, other in paired:
            try:
                yield one.row, pair_of(one.prompt, one.side, other.side, chat)
            except RowRejected as reason:
                yield one.row, reason
        for one in alone:
            yield one.row, RowRejected(_ALONE)


def _labelled(row: SourceRow, form: Form) -> tuple[str, bool, _Labelled]:
    """What identifies the prompt, the label, and the response."""
    if row.values is None:
        raise RowRejected(row.fault)
    name, label_name = form.answers
    label = label_of(row.values.get(label_name))
    if label is None:
        raise RowRejected(f"{label_name} is neither true nor false (1 nor 0)")
    try:
        prompt = question_of(row.values, form)
        side = side_of(row.values, form, name, row.values.get(name))
        asked: Any = prompt
        if isinstance(side, Conversation):
            asked = [_plain(side.messages[:-1]), side.tools]
        key = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    except RecursionError:
        raise RowRejected("a value is nested too deep") from None
    return key, label, _Labelled(SourceRow(row.number, {}, row.place), prompt, side)


def _plain(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(message) for message in messages]
