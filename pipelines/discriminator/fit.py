"""The stage's run: training in stretches on one actor, so that `status` sees how far it is."""

from typing import Any

from pipelines.cluster import Pool, local_paths, run_tasks
from pipelines.discriminator.checkpoint import HeadCheckpoint
from pipelines.discriminator.facts import HeadFacts, TrainHead
from pipelines.discriminator.forecast import num_steps
from pipelines.discriminator.training import HeadTrainer
from pipelines.errors import StageFailed
from pipelines.pairs import open_pairs
from pipelines.recipe import (
    FIGURES,
    HEAD_FACTS,
    HEAD_WEIGHTS,
    Recipe,
    Run,
    StageRecord,
)
from pipelines.storage import write_record


def run_discriminator(
    run: Run, record: StageRecord, facts: HeadFacts, quiet: bool = False
) -> dict[str, Any]:
    """Train on stored states; returns the manifest, whose counts are the figures.

    Needs a running Ray. A killed one goes on from its last checkpoint to the same bytes.

    Raises: StageFailed if no held-out token has a label.
    """
    record.begin()
    record.store.sweep_temporary()
    count = open_pairs(run).num_rows("train") - len(facts.failed.get("train", ()))
    tasks = stretches(run.recipe, count)
    pool = Pool("discriminator", run.recipe.ray, local_paths(run.recipe), 1, 0)
    figures: dict[str, Any] = {}
    for found in run_tasks(tasks, HeadTrainer, facts, pool, quiet):
        figures |= found
    if not figures:
        raise StageFailed("discriminator: no pair of the train split has states")
    write_record(record.store, FIGURES, figures)
    names = (HEAD_WEIGHTS, HEAD_FACTS, FIGURES)
    manifest = record.finish(figures, {name: record.store.checksum(name) for name in names})
    HeadCheckpoint(record.store, facts.fingerprint).clear()
    return manifest


def stretches(recipe: Recipe, pairs: int) -> list[TrainHead]:
    """A task for every checkpoint; the last one comes to the end."""
    steps, every = num_steps(recipe, pairs), recipe.discriminator.checkpoint_every
    return [TrainHead(min(at + every, steps), steps) for at in range(0, steps, every)]
