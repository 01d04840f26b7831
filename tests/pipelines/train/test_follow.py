"""A training's metrics as they come: what was followed is what is read afterwards, whatever
happened meanwhile.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.recipe.run_paths import ATTEMPT, METRICS
from pipelines.storage.records import write_record
from pipelines.storage.store import RunStore
from pipelines.train.follow import Curve, MetricsFollower
from pipelines.train.metrics import MetricsWriter, read_metrics


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "train"))


def writer(store: RunStore, resume_step: int = 0) -> MetricsWriter:
    """A worker group's, as a training begins one."""
    write_record(store, ATTEMPT, {"attempt": f"{random.random()}"})
    return MetricsWriter(store, resume_step, [], lambda: True)


def record(step: int, run: int = 0) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step + run, "kl/reference_policy": 2.0 * step}


def points(follower: MetricsFollower, kind: str = "train") -> list[dict[str, Any]]:
    """All that is told of a curve."""
    curve = follower.look().curves[kind]
    tail = curve.tail()
    return [*curve.points, *([tail] if tail else [])]


def written(store: RunStore, kind: str = "train") -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key != "kind"}
        for record in read_metrics(store)
        if record.get("kind", "train") == kind
    ]


def test_looks_in_between_find_what_is_read_at_the_end(store: RunStore) -> None:
    """Parts are replaced by longer ones and ended by checkpoints; validations and warnings are
    parts of their own. A look may come after any of that.
    """
    follower, rng = MetricsFollower(store), random.Random(3)
    metrics = writer(store)
    metrics.add_apart({"step": 0, "kind": "validation", "validation/loss": 0.7})
    for step in range(1, 120):
        metrics.add(record(step))
        if rng.random() < 0.3:
            metrics.flush()
        if step % 30 == 0:
            metrics.add_apart({"step": step, "kind": "validation", "validation/loss": 1 / step})
            metrics.checkpoint()
        if step == 45:
            metrics.add_apart({"step": step, "kind": "warning", "messages": ["far"]})
        if rng.random() < 0.3:
            assert points(follower) == written(store)
    metrics.close()
    assert points(follower) == written(store) and len(written(store)) == 119
    assert points(follower, "validation") == written(store, "validation")
    assert [p["step"] for p in points(follower, "validation")] == [0, 30, 60, 90]
    assert follower.found.warnings == {45: ["far"]}
    assert follower.found.problems == []


@pytest.mark.parametrize("looks_between", [True, False])
def test_a_training_that_goes_back_to_its_checkpoint(store: RunStore, looks_between: bool) -> None:
    """Twelve steps, killed; ten are kept. The second group writes others in place of the last two,
    and more than these, whether somebody looked when they were gone or not.
    """
    follower, first = MetricsFollower(store), writer(store)
    for step in range(1, 13):
        first.add(record(step))
        if step == 10:
            first.checkpoint()
    first.flush()
    assert len(points(follower)) == 12
    epoch = follower.found.epoch
    second = writer(store, resume_step=10)
    if looks_between:
        assert [p["step"] for p in points(follower)] == list(range(1, 11))
    for step in range(11, 16):
        second.add(record(step, run=5))
    second.close()
    assert points(follower) == written(store)
    assert [p["loss"] > 5 for p in points(follower)] == [False] * 10 + [True] * 5
    assert follower.found.epoch > epoch, "who has seen the first two asks for all again"


def test_a_new_group_replaces_steps_that_look_the_same(store: RunStore) -> None:
    """The new part begins at the same step as the one that was read, and is longer: by its name
    alone nothing was replaced.
    """
    follower, first = MetricsFollower(store), writer(store)
    first.add(record(1))
    first.close()
    assert points(follower)[0]["loss"] == 1.0
    second = writer(store)
    second.add(record(1, run=5))
    second.add(record(2, run=5))
    second.close()
    assert [p["loss"] for p in points(follower)] == [6.0, 5.5]


def test_a_damaged_part_is_a_line_and_all_others_are_there(store: RunStore) -> None:
    metrics = writer(store)
    for step in range(1, 10):
        metrics.add(record(step))
        if step % 3 == 0:
            metrics.checkpoint()
    metrics.close()
    whole = written(store)
    (name,) = [n for n in store.names(METRICS) if n.startswith("part-00000004")]
    path = store.local_path(METRICS, name)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    follower = MetricsFollower(store)
    assert [p["step"] for p in points(follower)] == [1, 2, 3, 7, 8, 9]
    (line,) = follower.found.problems
    assert name in line and "damaged" in line and "\n" not in line
    path.write_bytes(content)
    assert points(follower) == whole, "repaired, in the order of steps"
    assert follower.found.problems == []


def test_a_file_that_is_no_part_is_left_alone(store: RunStore) -> None:
    store.write_bytes(f"{METRICS}/notes.txt", b"mine")
    store.write_bytes(f"{METRICS}/part-x-y-train.jsonl", b"mine")
    assert points(MetricsFollower(store)) == []


def blocks(values: list[float], every: int) -> Iterator[float]:
    """Means of consecutive values, of the last ones too."""
    for at in range(0, len(values), every):
        yield float(np.mean(values[at : at + every]))


@pytest.mark.parametrize("steps", [7, 8, 9, 100, 1023])
def test_a_long_curve_is_thinned_by_means(steps: int) -> None:
    """At most eight points, and four at least once there were eight steps; compared with numpy's
    means of blocks.
    """
    curve, values = Curve(most=8), [math.sin(step) for step in range(1, steps + 1)]
    for step, value in enumerate(values, 1):
        curve.add({"step": step, "loss": value})
    tail = curve.tail()
    told = [*curve.points, *([tail] if tail else [])]
    assert len(curve.points) < 8 and (steps < 8 or len(curve.points) >= 4)
    expected = list(blocks(values, curve.every))
    assert np.allclose([p["loss"] for p in told], expected)
    assert told[0]["step"] == min(curve.every, steps) and told[-1]["step"] == steps


def test_what_is_no_finite_number_is_a_gap() -> None:
    curve = Curve(most=4)
    for step, value in enumerate([1.0, math.inf, math.nan, 3.0, math.nan, math.nan], 1):
        curve.add({"step": step, "kl": value, "is": True, "text": "x"})
    assert curve.every == 2
    assert curve.points == [
        {"step": 2, "kl": 1.0}, {"step": 4, "kl": 3.0}, {"step": 6, "kl": None}
    ]  # fmt: skip


def test_followers_of_long_trainings_tell_when_points_changed(store: RunStore) -> None:
    follower, metrics = MetricsFollower(store, most=8), writer(store)
    epochs = set()
    for step in range(1, 40):
        metrics.add(record(step))
        metrics.flush()
        epochs.add((follower.look().epoch, follower.found.curves["train"].every))
    metrics.close()
    assert [every for _, every in sorted(epochs)] == [1, 2, 4, 8]
