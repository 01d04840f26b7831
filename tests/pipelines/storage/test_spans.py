"""Where time went: what counts when several things happen at once."""

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.commands.timeline import CommandTimes, read_times, timeline_lines
from pipelines.errors import UserError
from pipelines.storage.spans import REST, Beside, Span, recorded, spent, split_of
from pipelines.storage.store import RunStore


def test_a_moment_counts_once_and_all_add_up() -> None:
    """Of 10 s: an actor computes from 4 to 8 and compiles from 5 to 6, another loads from 3 to 9,
    the driver waits for Ray from 1 to 20. What lies outside is left out.
    """
    spans = [
        Span("ray", 1, 20),
        Span("load", 3, 9),
        Span("compute", 4, 8),
        Span("compile", 5, 6),
        Span("rows", -5, -1),
    ]
    found = {kind: seconds for kind, seconds in split_of(0, 10, spans).items() if seconds}
    assert found == {REST: 1, "ray": 2 + 1, "load": 1 + 1, "compute": 3, "compile": 1}
    assert sum(found.values()) == 10


def test_a_block_within_another_is_not_counted_twice() -> None:
    with recorded() as found:
        with spent("load"), spent("imports"):
            pass
        with spent("load"):
            pass
    assert [span.kind for span in found] == ["load", "imports", "load", "load"]
    for before, after in itertools.pairwise(found):
        assert before.start <= before.stop <= after.start


def test_a_commands_times_are_all_of_its_time(tmp_path: Path) -> None:
    """Two commands: a stage that worked twice, one that failed; the sums are the walls'."""
    store = RunStore(str(tmp_path))
    for _ in range(2):
        with CommandTimes(store, began=0.0) as times:
            with times.stage("prepare"), spent("rows"):
                pass
            with pytest.raises(KeyError), times.stage("train"):
                raise KeyError
    parts = [store.read_json(f"timeline/{name}") for name in store.names("timeline")]
    assert len(parts) == 6
    found = {record["name"]: record for record in read_times(str(tmp_path))}
    assert list(found) == ["prepare", "train", "command"] and found["prepare"]["times"] == 2
    for record in found.values():
        assert sum(record["split"].values()) == pytest.approx(record["seconds"])
    # Both began at 0 and ended now: the wall time of each is in the parts, whole.
    ended = max(part["started_at"] + part["seconds"] for part in parts if part["started_at"] > 0)
    total = sum(record["seconds"] for record in found.values())
    assert total == pytest.approx(2 * ended, abs=2)
    assert timeline_lines(list(found.values()))[-1].startswith("all")


def test_a_run_of_another_version_has_other_kinds(tmp_path: Path) -> None:
    """A kind that it did not know is 0; one that is not known any more is in no column."""
    store = RunStore(str(tmp_path))
    part = {"name": "train", "started_at": 1.0, "seconds": 3.0, "split": {"ray": 2.0, "old": 1.0}}
    store.write_json("timeline/train-a.json", part)
    (found,) = read_times(str(tmp_path))
    assert found["split"]["checks"] == 0 and found["split"]["ray"] == 2
    assert timeline_lines([found])[1].split()[:3] == ["train", "1", "3.0"]


def test_a_block_beside_is_entered_and_left_by_one_thread_that_lives_until_then() -> None:
    """Its spans are of who waits: half a tenth while it is entered, as much while it is left."""
    seen: list[threading.Thread] = []

    @contextlib.contextmanager
    def block() -> Iterator[str]:
        seen.append(threading.current_thread())
        with spent("ray"):
            time.sleep(0.05)
        yield "there"
        seen.append(threading.current_thread())
        with spent("load"):
            time.sleep(0.05)

    with recorded() as spans:
        beside = Beside(block())
        assert beside.entered() == "there"
        assert seen[0].is_alive() and seen[0] is not threading.current_thread()
        beside.leave()
    assert seen[0] is seen[1]
    assert [span.kind for span in spans] == ["ray", "load"]
    assert all(0.04 < span.stop - span.start < 2 for span in spans)


def test_what_entering_beside_raises_is_raised_where_it_is_waited_for() -> None:
    @contextlib.contextmanager
    def block() -> Iterator[None]:
        raise UserError("no room")
        yield

    beside = Beside(block())
    with pytest.raises(UserError, match="no room"):
        beside.entered()
    beside.leave()  # there is nothing to leave
