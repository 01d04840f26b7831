"""Parts of training that need no model: selection, learning rates, what was published."""

import hashlib
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.recipe.schema import SelectionSection, TrainSection
from pipelines.storage.store import RunStore
from pipelines.train import metrics
from pipelines.train.published import check_published
from pipelines.train.selection import Selection
from pipelines.train.trainer import Trainer

ACCURACY = "validation/rewards/accuracies"


def test_the_best_is_the_largest_where_more_is_better() -> None:
    """An equal one is no better; two that are not better end the training, restarted or not."""
    settings = SelectionSection(metric=ACCURACY, mode="max", patience=2)
    selection = Selection(settings)
    values = (0.5, 0.7, 0.6, 0.7)
    for step, (value, is_best) in enumerate(zip(values, (True, True, False, False), strict=True)):
        assert not selection.has_ended
        assert selection.observe(step, {ACCURACY: value, "validation/loss": value}) is is_best
        selection = Selection(settings, json.loads(json.dumps(selection.state())))
    assert selection.has_ended and selection.best_step == 1
    by_loss = Selection(SelectionSection(keep_best=1))
    assert [by_loss.observe(i, {"validation/loss": value}) for i, value in enumerate(values)] == [
        True, False, False, False,
    ]  # fmt: skip


def rates(num_steps: int, **settings: Any) -> list[float]:
    """The factor of every step; it depends on the section and the number of steps alone."""
    trainer: Any = object.__new__(Trainer)
    trainer.facts = SimpleNamespace(train=TrainSection.model_validate(settings))
    trainer.num_steps = num_steps
    return [trainer._learning_rate_factor(step) for step in range(num_steps)]


def test_learning_rates_by_hand() -> None:
    """Ten steps: a half and the whole in two of warm-up, then eight that fall from the whole."""
    fall = {
        "constant": [1.0] * 8,
        "linear": [1 - i / 8 for i in range(8)],
        "cosine": [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)],
    }
    for schedule, expected in fall.items():
        found = rates(10, schedule=schedule, warmup_fraction=0.2)
        assert found == pytest.approx([0.5, 1.0, *expected]), schedule
    assert rates(2, schedule="linear", warmup_fraction=0) == [1.0, 0.5]
    assert rates(1) == [1.0], "a single step learns"


def test_a_published_file_that_changed_is_named(tmp_path: Path) -> None:
    """Weights, configuration and masks; without a manifest there is nothing to compare with."""
    store = RunStore(str(tmp_path))
    names = ("model/model.safetensors", "model/config.json", "masks/masks.safetensors")
    for name in names:
        store.write_bytes(name, name.encode())
    outputs = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    rest = {"schema_version": 2, "settings": {}, "inputs": {}, "counts": {}}
    store.write_json("manifest.json", rest | {"outputs": outputs})
    check_published(store)
    for name in names:
        for change in (lambda name: store.write_bytes(name, b"other"), store.delete):
            change(name)
            with pytest.raises(UserError, match=f"{name} is missing or damaged: it is not what"):
                check_published(store)
        store.write_bytes(name, name.encode())
    store.delete("manifest.json")
    store.delete(names[0])
    check_published(store)


class SlowStore(RunStore):
    """An object store far away: a write takes 0.2 s; one is refused where it is told so."""

    refuses = False

    def write_bytes(self, path: str, data: bytes) -> None:
        time.sleep(0.2)
        if self.refuses:
            raise UserError(f"{path}: no room")
        super().write_bytes(path, data)


def test_records_wait_for_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve steps in less than one write, each due for publication; all are there in the end, in
    order, also around a record of another kind. A refusal reaches the training.
    """
    monkeypatch.setattr(metrics, "_FLUSH_SECONDS", 0.0)
    store = SlowStore(str(tmp_path))
    writer = metrics.MetricsWriter(store, 0, (), lambda: True)
    began = time.monotonic()
    for step in range(1, 13):
        writer.add({"step": step, "loss": 1.0})
    assert time.monotonic() - began < 0.15
    writer.add_apart({"step": 12, "kind": "validation"})
    writer.checkpoint()
    writer.add({"step": 13, "loss": 1.0})
    writer.flush()
    found = [(r["step"], r.get("kind")) for r in metrics.read_metrics(store)]
    assert found == [*((step, None) for step in range(1, 13)), (12, "validation"), (13, None)]
    store.refuses = True
    writer.add({"step": 14, "loss": 1.0})
    time.sleep(0.4)
    with pytest.raises(UserError, match="no room"):
        writer.add({"step": 15, "loss": 1.0})
