"""Tasks of prepare, in the driver's own process and in others."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import silent

from pipelines.commands.run import run_stages
from pipelines.pairs import PREPARE, prepare
from pipelines.pairs.tasks import elsewhere, here, in_order, value_of
from pipelines.recipe.schema import Recipe


def test_a_small_task_runs_at_once_and_takes_what_others_made() -> None:
    two = here(lambda: 2)()
    five = here(lambda made, three: made + three)(two, 3)
    assert value_of(five) == 5


def test_results_come_in_order_and_no_more_tasks_are_under_way_than_asked_for() -> None:
    started: list[int] = []

    def tasks() -> Iterator[Any]:
        for number in range(3):
            started.append(number)
            yield here(lambda number=number: number)()

    results = in_order(tasks(), 2)
    assert next(results) == 0 and started == [0, 1]
    assert list(results) == [1, 2]
    assert list(in_order([], 2)) == []


def test_a_task_that_takes_long_keeps_no_other_from_its_start(
    ray_cluster: None, tmp_path: Path
) -> None:
    """The first one ends when the fifth has been there, or a minute later."""
    import ray

    come = tmp_path / "come"

    @ray.remote
    def task(number: int) -> tuple[int, bool]:
        if number == 4:
            come.touch()
        until = time.monotonic() + 60 * (number == 0)
        while not come.exists() and time.monotonic() < until:
            time.sleep(0.05)
        return number, come.exists()

    found = list(in_order((task.remote(number) for number in range(6)), 2))
    assert [number for number, _ in found] == list(range(6))
    assert found[0] == (0, True)


@pytest.mark.slow
def test_where_rows_are_read_planned_and_written_changes_no_byte(
    ray_cluster: None,
    make_recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """All in this process; read by tasks; and written by tasks too."""
    started: list[str] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        started.append(function.__name__)
        return elsewhere(function)

    monkeypatch.setattr(prepare, "elsewhere", noted)
    found, by_tasks = [], []
    for number, (read, written) in enumerate(((2**23, 2**28), (0, 2**28), (0, 0))):
        monkeypatch.setattr(prepare, "_SMALL_BYTES", read)
        monkeypatch.setattr(prepare, "_SMALL_BLOCKS_BYTES", written)
        run_dir = tmp_path / str(number)
        recipe = make_recipe("data.rows_per_task=16", "data.shard_pairs=16", run_dir=run_dir)
        run_stages(recipe, [PREPARE], silent, quiet=True)
        files = sorted((run_dir / "pairs").rglob("*.parquet"))
        found.append({str(file.relative_to(run_dir)): file.read_bytes() for file in files})
        by_tasks.append(started.copy())
    assert len(found[0]) > 6
    assert found[0] == found[1] == found[2]
    assert by_tasks == [[], [], ["_digest", "_write"]]
