"""A run works each fact out once, and ranks train without what only the driver reads."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import MakeRecipe

from pipelines import models, pairs
from pipelines.commands.run import check_pairs, check_stages
from pipelines.commands.stages import RUN
from pipelines.errors import UserError
from pipelines.models.device import Placement
from pipelines.pairs.stage import PREPARE
from pipelines.pairs.table import open_pairs
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.stage import REFERENCE
from pipelines.train.stage import TRAIN, training_facts
from pipelines.train.trainer import Trainer

FACTS = (
    (models, "weights_fingerprint"),
    (models, "tokenizer_fingerprint"),
    (models, "response_ends"),
    (pairs, "source_fingerprint"),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each fact was worked out; the functions themselves do what they do."""
    import pipelines.pairs.sources

    found: Counter[str] = Counter()

    def counted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **options: Any) -> Any:
            found[name] += 1
            return work(*arguments, **options)

        return count

    for room, name in FACTS:
        monkeypatch.setattr(room, name, counted(name, getattr(room, name)))
    monkeypatch.setattr(pipelines.pairs.sources, "source_fingerprint", pairs.source_fingerprint)
    return found


def test_a_command_works_out_each_fact_once(scored: Recipe, asked: Counter[str]) -> None:
    """All that run does before it starts, twice over: records, checks, whether stages are done."""
    run = Run(scored)
    for _ in range(2):
        for stage in RUN:
            stage.is_done(run)
            if stage.has_record:
                run.record(stage).check()
        check_pairs(run, RUN)
        training_facts(run)
    # The policy is the reference here: its weights are asked for by the two stages that read them.
    assert asked == {
        "source_fingerprint": len(scored.data.sources),
        "tokenizer_fingerprint": 1,
        "weights_fingerprint": 2,
        "response_ends": 1,
    }
    moved = run.with_places(scored.model_copy(update={"run_dir": f"{scored.run_dir}-elsewhere"}))
    assert moved.record(TRAIN).fingerprint() == run.record(TRAIN).fingerprint()
    assert moved.record(TRAIN).store.root != run.record(TRAIN).store.root
    assert asked["source_fingerprint"] == len(scored.data.sources)


def test_records_chain(scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path) -> None:
    """A changed setting reaches the records of later stages, and of no earlier one."""
    changes = {
        "data.split_seed=7": {"prepare", "reference", "train"},
        "reference.dtype=bfloat16": {"reference", "train"},
        "train.learning_rate=1e-4": {"train"},
        "train.num_workers=2": set(),
    }
    whole = Run(recipe_in(tmp_path / "run", "objective.name=tdpo1"))
    for change, reached in changes.items():
        other = Run(recipe_in(tmp_path / "run", "objective.name=tdpo1", change))
        found = {
            stage.name
            for stage in (PREPARE, REFERENCE, TRAIN)
            if whole.record(stage).fingerprint() != other.record(stage).fingerprint()
        }
        assert found == reached, change


def test_a_rank_needs_neither_sources_nor_records(
    copied: Recipe, pairs_file: Path, tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    """With the data gone after the driver looked, a rank trains the same; a new look refuses."""
    source = tmp_path / "own.jsonl"
    shutil.copy(pairs_file, source)
    sources = tuple(s.model_copy(update={"path": str(source)}) for s in copied.data.sources)
    recipe = copied.model_copy(update={"data": copied.data.model_copy(update={"sources": sources})})
    check_stages(Run(recipe), [PREPARE, REFERENCE])
    facts = training_facts(Run(recipe))

    def losses() -> list[float]:
        torch.set_num_threads(1)
        trainer = Trainer(facts, Placement.choose("auto", torch.device("cpu"), 0, 1), 1)
        found = [trainer.optimizer_step()[0]["loss"] for _ in range(2)]
        trainer.close()
        return found

    before = losses()
    source.unlink()
    assert losses() == before
    with pytest.raises(UserError, match=r"own\.jsonl"):
        training_facts(Run(recipe))
    assert open_pairs(Run(recipe)).num_rows("train") > 0
