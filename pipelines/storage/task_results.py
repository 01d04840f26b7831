"""Results of small tasks kept as they come, so that a killed stage goes on where it was."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from pipelines.errors import DamagedFile
from pipelines.storage.records import read_record, sealed
from pipelines.storage.store import RunStore

_FOLDER, _RESULT = "parts", "result"
_FIELDS = {_RESULT: (dict, list)}


class NamedTask(Protocol):
    """A task that a stage may be killed between.

    What it means must depend on the stage's settings alone.
    """

    @property
    def kind(self) -> str: ...
    @property
    def number(self) -> int: ...


Task = TypeVar("Task", bound=NamedTask)


class TaskResults:
    """One file per finished task: `parts/<kind>-<number>.json` below a stage's store.

    Results are JSON. They are removed when the stage is complete.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks without a result, in order; a damaged result counts as none, and is said."""
        known = set(self._store.names(_FOLDER))
        return [task for task in tasks if _name(task) not in known or not self._is_whole(task)]

    def _is_whole(self, task: NamedTask) -> bool:
        path = f"{_FOLDER}/{_name(task)}"
        try:
            read_record(self._store, path, _FIELDS)
        except DamagedFile as error:
            print(f"{error}: done again", file=sys.stderr, flush=True)
            self._store.delete(path)
            return False
        return True

    def add(self, tasks: Sequence[NamedTask], results: Iterable[Any]) -> None:
        """Keep results as they arrive, in the order of the tasks."""
        for task, result in zip(tasks, results, strict=True):
            content = json.dumps(sealed({_RESULT: result})).encode()
            self._store.write_bytes(f"{_FOLDER}/{_name(task)}", content)

    def results(self, tasks: Sequence[NamedTask]) -> Iterator[Any]:
        """Every task's result, in order."""
        for task in tasks:
            yield read_record(self._store, f"{_FOLDER}/{_name(task)}", _FIELDS)[_RESULT]

    def kept(self) -> int:
        """How many tasks have a result, as a look at the names tells."""
        return len(self._store.names(_FOLDER))

    def clear(self) -> None:
        self._store.delete(_FOLDER)


def _name(task: NamedTask) -> str:
    return f"{task.kind}-{task.number:07d}.json"
