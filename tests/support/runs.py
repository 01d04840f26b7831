"""Stages of a run in the test's own process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from local_executor import LocalExecutor

from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.run import run_stages
from pipelines.commands.stages import TRAIN
from pipelines.models.device import Placement
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run, Stage
from pipelines.train.fit import finish_training
from pipelines.train.stage import training_facts
from pipelines.train.trainer import Trainer

MakeRecipe = Callable[..., Recipe]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def tiny_recipe(run_dir: Path | str, model: Path, pairs: Path) -> dict[str, Any]:
    """What a file of a recipe on the tiny model holds."""
    return {
        "run_dir": str(run_dir),
        "model": {"name_or_path": str(model)},
        "data": {
            "sources": [{"path": str(pairs)}],
            "test_fraction": 0.2,
            "max_prompt_tokens": 24,
            "max_response_tokens": 24,
            "shard_pairs": 32,
        },
        "train": {
            "global_batch_size": 16,
            "learning_rate": 1e-3,
            "micro_batch_tokens": 512,
            "checkpoint_every": 2,
        },
        "evaluate": {
            "num_prompts": 16,
            "bootstrap_samples": 200,
            "generation": {"max_new_tokens": 8},
        },
    }


def silent(line: str) -> None:
    pass


def trainer_of(recipe: Recipe, device: torch.device = CPU) -> Trainer:
    """One rank's training in this process, ready to run; one thread."""
    torch.set_num_threads(1)
    return Trainer(
        training_facts(Run(recipe)), Placement.choose(recipe.train.precision, device, 0, 1), 1
    )


def run_here(
    recipe: Recipe, stages: Sequence[Stage[Any]], say: Callable[[str], None] = silent
) -> None:
    """The stages in order, as `run_stages` does; only prepare's tasks run in other processes."""
    for stage in stages:
        if stage is TRAIN and not TRAIN.is_done(Run(recipe)):
            train_here(recipe)
        else:
            with executed_by(LocalExecutor()):
                run_stages(recipe, (stage,), say, quiet=True)


def train_here(recipe: Recipe) -> dict[str, Any]:
    """The stage's manifest of a training in this process."""
    run = Run(recipe)
    run.record(TRAIN).begin()
    trainer = trainer_of(recipe)
    trainer.run(lambda metrics: None)
    trainer.close()
    return finish_training(run, run.record(TRAIN), len(trainer.rows["train"]))
