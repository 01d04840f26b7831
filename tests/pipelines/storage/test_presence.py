"""Who works in a folder, and how fast it goes."""

import os
import time
from pathlib import Path

import pytest
from object_store import ObjectStore

from pipelines.cluster.bars import Bar
from pipelines.storage.claims import Claims
from pipelines.storage.pace import Pace, progress_text, shown_seconds
from pipelines.storage.presence import present, tell_progress, who_works
from pipelines.storage.store import RunStore


def test_a_note_is_there_while_the_work_is(tmp_path: Path, object_store: ObjectStore) -> None:
    for store in (RunStore(str(tmp_path / "run")), RunStore("s3://bucket/present")):
        before = time.time()
        with present(store, stage="train"):
            (note,) = who_works(store)
            assert (note["stage"], note["pid"]) == ("train", os.getpid())
            assert before <= note["since"] <= time.time()
        assert who_works(store) == [] and store.names() == []
    assert not (tmp_path / "run").exists(), "a folder that was made for the note alone"
    (tmp_path / "run").mkdir()
    with present(RunStore(str(tmp_path / "run"))):
        pass
    assert (tmp_path / "run").exists()


def note_of_another(store: RunStore, name: str, **changes: object) -> Path:
    note = {**Claims(store).me, "since": 1.0, **changes}
    store.write_json(f"working/{name}.json", note)
    return store.local_path("working", f"{name}.json")


def test_who_has_died_does_not_work(tmp_path: Path) -> None:
    """Of this machine by its process, whatever the note's age; of others by the note's age."""
    store = RunStore(str(tmp_path))
    note_of_another(store, "dead", pid=2**22 + 1)
    old = note_of_another(store, "old here")
    os.utime(old, (1, 1))
    note_of_another(store, "elsewhere", processes="another", host="b")
    gone = note_of_another(store, "gone", processes="another", host="c")
    os.utime(gone, (time.time() - 1000,) * 2)
    note_of_another(store, "no note", since=None)
    store.write_json("working/a.json", {"processes": "another"})
    hosts = sorted(note["host"] for note in who_works(store) if note["since"])
    assert hosts == sorted([Claims(store).me["host"], "b"])


def test_a_bar_tells_of_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quiet one too. Notes are written every two seconds at most."""
    monkeypatch.setattr("pipelines.storage.presence._WRITE_SECONDS", 0.0)
    store = RunStore(str(tmp_path))
    with present(store, stage="x"), Bar(total=7, desc="x", unit="task", disable=True) as bar:
        bar.update(2)
        bar.update(1)
        limit = time.monotonic() + 30
        while not (note := who_works(store)[0]).get("done") and time.monotonic() < limit:
            time.sleep(0.05)
    assert (note["done"], note["total"], note["unit"]) == (3, 7, "task")
    tell_progress(1, 2, "task", Pace())  # of whom nothing is told


def test_the_rate_leaves_out_the_start() -> None:
    """Ten seconds to start, then two a second; another command did the first five."""
    pace = Pace(5)
    assert pace.rate() is None
    pace.update(5, 0.0)
    pace.update(6, 10.0)
    assert pace.rate() is None
    pace.update(8, 11.0)
    pace.update(8, 100.0)  # nothing new
    assert pace.rate() == 2.0
    pace.update(12, 13.0)
    assert pace.rate() == 2.0


def test_a_bar_shows_that_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with open(os.devnull, "w") as nowhere, Bar(total=10, unit="step", file=nowhere) as bar:
        bar.starts_at(4)
        assert bar.format_dict["rate"] == 0
        for now[0], done in ((1060.0, 5), (1062.0, 7)):
            bar.n = done
            bar.came_to(done)
        assert bar.format_dict["rate"] == 1.0
        assert "7/10" in str(bar) and "1.00step/s" in str(bar) and "00:03" in str(bar)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.26, "0.3 s"), (9.96, "10 s"), (45.2, "45 s"), (100, "2 min"),
        (3600, "60 min"), (7200, "2 h"), (12_000, "3 h 20 min"), (200_000, "2 days 8 h"),
    ],
)  # fmt: skip
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert shown_seconds(seconds) == text


def test_how_far_and_how_long() -> None:
    assert progress_text(20, 60, "step", 4.0) == "step 20 of 60, 4 steps/s, 10 s left"
    assert progress_text(1, 3, "task", 0.25) == "task 1 of 3, 4 s/task, 8 s left"
    assert progress_text(3, 3, "task", 0.25) == "task 3 of 3, 4 s/task"
    assert progress_text(0, 3, "task", None) == "task 0 of 3"
