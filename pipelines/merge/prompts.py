"""What merged models are asked: held-out prompts of a run, or a source of prompts."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import UserError
from pipelines.merge.members import Member, data_of, first_run
from pipelines.merge.schema import Merge, Weights
from pipelines.models import load_tokenizer
from pipelines.pairs import SPLITS, Prompt, PromptEncoder, Prompts, Question, read_pairs
from pipelines.recipe import MANIFEST, Source
from pipelines.storage import digest
from sparsepo.merging import Form, checked_weights


@dataclass(frozen=True)
class Asked:
    """A prompt.

    Attributes:
        text: as people read it. ids: as the models do. weights: of its own, before they are
            divided by their sum; empty without a column of weights.
    """

    text: str
    ids: tuple[int, ...]
    weights: Weights = ()


def asked_prompts(merge: Merge, members: Sequence[Member]) -> list[Asked]:
    """The first distinct prompts of a merge.

    Raises: UserError if there is none, or a prompt's own weights are not what every form takes.
    """
    found = (
        _held_out(members) if merge.prompts is None else _of_source(merge, merge.prompts, members)
    )
    distinct: dict[Asked, None] = {}
    for prompt in found:
        distinct[prompt] = None
        if len(distinct) == merge.num_prompts:
            break
    return list(distinct)


def content_of(prompts: Iterable[Asked]) -> str:
    """Fingerprint of what is asked, without weights."""
    return digest([list(prompt.ids) for prompt in prompts])


def _held_out(members: Sequence[Member]) -> Iterable[Asked]:
    found = first_run(members)
    if found is None:
        raise UserError("models: none of them is a run with held-out prompts: set prompts")
    store = found[1].pairs
    if not store.exists(MANIFEST):
        raise UserError(f"{store.root}: the pairs of {found[1].root} are gone: set prompts")
    table = read_pairs(store)
    for split in reversed(SPLITS[1:]):
        if rows := range(table.num_rows(split)):
            table.check(split)
            stored = table.values(split, rows, ["prompt", "conversation"])
            ids = [tuple(map(int, pair.prompt)) for pair in table.pairs(split, rows)]
            return [
                Asked(text if chat is None else Question.stored(chat).read(), one)
                for (text, chat), one in zip(stored, ids, strict=True)
            ]
    raise UserError(f"{store.root} holds no held-out pairs: set prompts")


def _of_source(merge: Merge, source: Source, members: Sequence[Member]) -> Iterable[Asked]:
    data = data_of(members).model_copy(update={"sources": (source,), "validation": (), "test": ()})
    tokenizer = load_tokenizer(str(members[0].directory))
    prompts, encode = Prompts(data, tokenizer), PromptEncoder(tokenizer, data)
    is_empty = True
    for prompt, row in prompts.rows():
        is_empty = False
        weights: Weights = ()
        if merge.weights_column is not None:
            given = (row.values or {}).get(merge.weights_column)
            weights = _weights(merge, given, row.place)
        yield Asked(_read(prompt), tuple(encode(prompt)), weights)
    if is_empty:
        raise prompts.none()


def _read(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt.read()


def _weights(merge: Merge, given: Any, place: str) -> Weights:
    """Raises: UserError naming the row for no list of numbers that every form takes."""
    if isinstance(given, str):  # of a CSV file
        try:
            given = json.loads(given)
        except ValueError:
            given = None
    is_list = isinstance(given, list) and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) for weight in given
    )
    if not is_list:
        raise UserError(
            f"{place}: weights_column = {merge.weights_column!r} holds no list of "
            f"{len(merge.models)} numbers"
        )
    for form in merge.forms:
        try:
            checked_weights(given, len(merge.models), form)
        except ValueError as error:
            raise UserError(f"{place}: {error} (form {form})") from error
    return tuple(map(float, given))


def prompt_weights(prompt: Asked, form: Form) -> Weights:
    """A prompt's own weights, which sum to one."""
    return checked_weights(prompt.weights, len(prompt.weights), form)[0]
