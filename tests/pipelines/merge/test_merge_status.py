"""What `plan` and `status` say of a merge: before, while, after a kill, and at its end."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_executor import LocalExecutor

from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.cli import main
from pipelines.commands.status import run_status, status_lines
from pipelines.commands.watched import run_state
from pipelines.merge.schema import Merge
from pipelines.merge.stage import run_merge

MakeMerge = Callable[..., Merge]
NAMES = ["model-1", "model-2", "mixture-0.5-0.5", "product-0.5-0.5"]


class Stopped(Exception):
    pass


class Looks(LocalExecutor):
    """An executor that calls somebody before each result, and ends after some."""

    def __init__(self, look: Callable[[], object], after: int) -> None:
        self._look, self._left = look, after

    def run_tasks(self, tasks: Sequence[Any], *given: Any) -> Iterator[Any]:
        for result in super().run_tasks(tasks, *given):
            self._look()
            if not self._left:
                raise Stopped
            self._left -= 1
            yield result


def states(merge: Merge) -> dict[str, str]:
    rows = run_status(merge.run_dir)
    return {row["stage"].removeprefix("point "): row["state"] for row in rows}


def plan_of(merge: Merge, folder: Path, capsys: Any, *words: str) -> str:
    file = folder / "planned.yaml"
    file.write_text(yaml.safe_dump(merge.model_dump(mode="json")))
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(file), *words])
    assert ended.value.code == 0
    said: str = capsys.readouterr().out
    return said


def test_a_merge_is_planned_seen_at_work_stopped_and_done(
    make_merge: MakeMerge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight tasks, two of each point; it is stopped after five."""
    merge = make_merge(run_dir=str(tmp_path / "merged"))
    said = plan_of(merge, tmp_path, capsys)
    assert "4 of 4 weights and forms, each 12 samples of 6 prompts" in said
    assert "what it would refuse, this refuses" in said and not Path(merge.run_dir).exists()
    assert "no such directory" in run_state(merge.run_dir)["headline"]

    seen: list[tuple[dict[str, str], str]] = []

    def look() -> None:
        seen.append((states(merge), status_lines(run_status(merge.run_dir))[0]))

    with pytest.raises(Stopped), executed_by(Looks(look, 5)):
        run_merge(merge, lambda line: None, quiet=True)
    found, headline = seen[-1]
    assert found == {
        "model-1": "done", "model-2": "done", "mixture-0.5-0.5": "running",
        "product-0.5-0.5": "running", "merge": "running",
    }  # fmt: skip
    assert "merge: running (on " in headline
    assert states(merge) == {
        "model-1": "done", "model-2": "done", "mixture-0.5-0.5": "stopped",
        "product-0.5-0.5": "stopped", "merge": "stopped",
    }  # fmt: skip
    rows = run_status(merge.run_dir)
    assert rows[-1]["detail"] == "2 of 4 points drawn; the same command goes on with it"
    assert [row["detail"] for row in rows[:3]] == [*["12 samples of 6 prompts"] * 2, "1 of 2 tasks"]
    assert "2 of 4 weights and forms" in plan_of(merge, tmp_path, capsys)

    page = run_merge(merge, lambda line: None, quiet=True)
    rows = run_status(merge.run_dir)
    assert set(states(merge).values()) == {"done"} and list(states(merge)) == [*NAMES, "merge"]
    assert Path(rows[-1]["path"], rows[-1]["detail"].split(", ")[0]) == Path(page)
    assert all(Path(merge.run_dir, name).exists() for name in rows[-1]["detail"].split(", "))
    assert status_lines(rows)[0] == "finished" == run_state(merge.run_dir)["headline"]
    told = json.loads(plan_of(merge, tmp_path, capsys, "--json"))
    assert told["points"]["left"] == 0 and told["points"]["done"] and told["total"]["seconds"] == 0


def test_more_weights_begun_are_not_done(make_merge: MakeMerge, tmp_path: Path) -> None:
    """A second command with another weight; the rows are what it asked for."""
    first = make_merge("weights=[[1,0]]", run_dir=str(tmp_path / "merged"))
    run_merge(first, lambda line: None, quiet=True)
    more = make_merge("weights=[[0,1]]", run_dir=first.run_dir)
    with pytest.raises(Stopped), executed_by(Looks(lambda: None, 1)):
        run_merge(more, lambda line: None, quiet=True)
    assert states(more) == {"model-2": "stopped", "merge": "stopped"}
    (Path(first.run_dir) / "merge.json").unlink()  # as an earlier version left it
    assert states(more) == {"model-1": "done", "model-2": "stopped", "merge": "stopped"}


def test_the_samples_that_a_plan_counts_are_those_that_come(
    make_merge: MakeMerge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a map, whose file has the size that was said."""
    merge = make_merge(
        "steps=0", "map={num_pairs: 8, steps: 2, batch_pairs: 4}", "forms=[mixture]",
        run_dir=str(tmp_path / "merged"),
    )  # fmt: skip
    told = json.loads(plan_of(merge, tmp_path, capsys, "--json"))
    assert told["maps"]["pairs"] == 8 and told["maps"]["left"] == 1
    run_merge(merge, lambda line: None, quiet=True)
    assert list(states(merge)) == ["map mixture", "mixture-map", "merge"]
    lines = Path(merge.run_dir, "points/mixture-map/samples.jsonl").read_text().splitlines()
    assert len(lines) == told["points"]["samples"]
    size = Path(merge.run_dir, "maps/mixture/map.safetensors").stat().st_size
    assert 0.3 < told["maps"]["disk_bytes"] / size < 1
    left = json.loads(plan_of(merge, tmp_path, capsys, "--json"))
    assert left["maps"]["done"] and left["total"]["seconds"] == 0
