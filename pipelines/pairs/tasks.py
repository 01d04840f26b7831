"""What prepare's driver and its tasks tell each other: a chunk to read, its rows, or a failure.

Ray Data carries items and blocks of columns. They are encoded and decoded here, nowhere else.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, TypeVar

import pyarrow as pa

from pipelines.errors import Failure, StageFailed, UserError
from pipelines.pairs.forms import Form
from pipelines.pairs.sources import Chunk
from pipelines.pairs.table import PAIR_SCHEMA
from pipelines.storage import Span

# A row of a source: a pair, or the reason why it is none and where that stands (file:line).
ROW_SCHEMA = pa.schema([*PAIR_SCHEMA, ("reason", pa.string()), ("place", pa.string())])
# Of its first row: where the time of the task went.
_BLOCK_SCHEMA = pa.schema([*ROW_SCHEMA, ("failure", pa.string()), ("spans", pa.string())])
Result = TypeVar("Result")
# Makes of a function one that starts it as a task and returns what `value_of` takes.
Start = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class ReadTask:
    """Read and tokenise some chunks of a source.

    Attributes:
        source: its number among data.sources, data.validation and data.test, in this order.
        chunks: one; all of the source if its form is unpaired. part, parts: of an unpaired source's
            prompts.
    """

    source: int
    form: Form
    chunks: tuple[Chunk, ...]
    part: int = 0
    parts: int = 1

    def item(self) -> dict[str, str]:
        """As an item of a Ray Data set."""
        return {"task": json.dumps(asdict(self))}

    @classmethod
    def of_batch(cls, batch: pa.Table) -> "ReadTask":
        """The task of a batch of one item."""
        (text,) = batch["task"].to_pylist()
        fields = json.loads(text)
        chunks = tuple(Chunk(**chunk) for chunk in fields["chunks"])
        return cls(**{**fields, "form": Form(**fields["form"]), "chunks": chunks})


def elsewhere(function: Callable[..., Any]) -> Callable[..., Any]:
    """As a task of Ray."""
    import ray

    started: Callable[..., Any] = ray.remote(function).remote
    return started


def here(function: Callable[..., Any]) -> Callable[..., Any]:
    """In this process, at once: a process for it would cost more than its work.

    It is given what references stand for, as a task of Ray is.
    """
    import ray

    def call(*given: Any) -> Made:
        references = Made, ray.ObjectRef
        return Made(function(*(value_of(g) if isinstance(g, references) else g for g in given)))

    return call


@dataclass(frozen=True, eq=False)
class Made:
    """The result of a task that ran in this process."""

    value: Any


def value_of(reference: Any) -> Any:
    """The result of a task, wherever it ran; waits for it."""
    if isinstance(reference, Made):
        return reference.value
    import ray

    return ray.get(reference)


def in_order(references: Iterable[Any], most: int) -> Iterator[Any]:
    """The results of tasks, in their order, whichever ends first.

    Args:
        references: taken one by one, which starts a task. most: how many are under way at once. One
            that takes long keeps no other from its start: a process that waits is soon ended.
    """
    under_way: dict[Any, int] = {}
    found: dict[int, Any] = {}
    waiting = enumerate(references)
    for number in itertools.count():
        while number not in found:
            for place, reference in itertools.islice(waiting, most - len(under_way)):
                under_way[reference] = place
            if not under_way:
                return
            ended = _one_ended(list(under_way))
            found[under_way.pop(ended)] = value_of(ended)
        yield found.pop(number)


def _one_ended(references: list[Any]) -> Any:
    made = next((each for each in references if isinstance(each, Made)), None)
    if made is not None:
        return made
    import ray

    return ray.wait(references)[0][0]


def block_of(outcome: Sequence[dict[str, Any]] | Failure, spans: Sequence[Span] = ()) -> pa.Table:
    """Rows with ROW_SCHEMA's names, or what ended the task, as a block of a Ray Data set.

    Args:
        spans: where the time of the task went; an outcome without a row cannot tell it.
    """
    if isinstance(outcome, Failure):
        outcome = [{"failure": json.dumps(asdict(outcome))}]
    told = json.dumps([astuple(span) for span in spans])
    rows = [{**row, "spans": told} if at == 0 else row for at, row in enumerate(outcome)]
    return pa.Table.from_pylist(rows, schema=_BLOCK_SCHEMA)


def spans_of(block: pa.Table) -> list[Span]:
    """Where the time of the tasks that share a block went."""
    return [
        Span(*span) for told in block["spans"].drop_null().to_pylist() for span in json.loads(told)
    ]


def rows_of(block: pa.Table) -> pa.Table | Failure:
    """A block's rows with ROW_SCHEMA, or the first failure of the tasks that share the block."""
    failures = block["failure"].drop_null()
    if len(failures):
        return Failure(**json.loads(failures[0].as_py()))
    return block.select(ROW_SCHEMA.names)


def outcome_of(work: Callable[[], Result]) -> Result | Failure:
    """What a task's work gives, or the error of it that a user sees as one line."""
    try:
        return work()
    except (UserError, StageFailed) as error:
        return Failure.of(error)


def result_of(outcome: Result | Failure) -> Result:
    """The driver's end of `outcome_of`: raises what the task failed with."""
    if isinstance(outcome, Failure):
        raise outcome.error()
    return outcome
