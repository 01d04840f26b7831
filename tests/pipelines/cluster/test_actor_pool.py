"""Tasks through actors: results in order, and failures as what they were."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster.actor_pool import Pool, run_alone, run_tasks
from pipelines.errors import Diverged, StageFailed, UserError
from pipelines.recipe.schema import RaySection

POOL = Pool("numbers", RaySection(), {}, num_actors=2)


@pytest.mark.slow
@pytest.mark.actors
@pytest.mark.usefixtures("ray_cluster")
def test_results_come_in_order_and_failures_as_what_they_were(tmp_path: Path) -> None:
    """Facts, tasks and results are objects. What was raised in a call, in the making of an actor or
    on a machine that does not see the run arrives as its own type, in its own words.
    """

    other_is_done = tmp_path / "done"

    # Classes of this function travel by value.
    @dataclass(frozen=True)
    class Number:
        kind: str
        number: int

    class Doubler:
        def __init__(self, facts: frozenset[str]) -> None:
            if "broken" in facts:
                raise UserError("model.embedder = x: no such directory")
            self._facts = facts

        def __call__(self, task: Any) -> Any:
            if task.number:
                other_is_done.touch()
                return self._result(task)
            limit = time.monotonic() + 30
            while not other_is_done.exists() and time.monotonic() < limit:
                time.sleep(0.02)
            time.sleep(1)  # until the other actor's results have arrived
            return self._result(task)

        def _result(self, task: Any) -> Any:
            if task.number == 7:
                raise Diverged("step 7: the loss is nan")
            return {task.kind: {task.number: 2 * task.number}, "facts": self._facts}

    tasks = [Number("even" if number % 2 == 0 else "odd", number) for number in range(9)]
    facts = frozenset({"diverges"})
    arrived = run_tasks(tasks, Doubler, facts, POOL, quiet=True)
    assert [next(arrived) for _ in range(7)] == [
        {task.kind: {task.number: 2 * task.number}, "facts": facts} for task in tasks[:7]
    ]
    with pytest.raises(Diverged, match="^step 7: the loss is nan$"):
        next(arrived)
    with pytest.raises(UserError, match="^model.embedder = x: no such directory$"):
        list(run_tasks(tasks[:1], Doubler, frozenset({"broken"}), POOL, quiet=True))
    blind = Pool("numbers", RaySection(), {"run_dir": "/not/mounted"})
    with pytest.raises(UserError, match="^run_dir = /not/mounted: the machine .* does not see it"):
        list(run_tasks(tasks[:1], Doubler, facts, blind, quiet=True))
    assert run_alone(tasks[3], Doubler, facts, {}) == {"odd": {3: 6}, "facts": facts}
    for task, known, paths, error in (
        (tasks[7], facts, {}, Diverged),
        (tasks[0], frozenset({"broken"}), {}, UserError),
        (tasks[0], facts, blind.paths, UserError),
    ):
        with pytest.raises(error):
            run_alone(task, Doubler, known, paths)
    assert list(run_tasks([], Doubler, frozenset({"broken"}), POOL, quiet=True)) == []
    assert not issubclass(UserError, StageFailed), "they end with different exit codes"
