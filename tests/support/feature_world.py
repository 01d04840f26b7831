"""Pairs with scores and weights, two scorers, and one store of every feature that trainings of
any objective and mask read; and how tests train on it.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import MakeRecipe, run_here, trainer_of
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipelines.commands.stages import PREPARE, REFERENCE
from pipelines.recipe.run_paths import RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.train.metrics import read_metrics
from pipelines.train.trainer import Trainer

LAST_LAYER = ["mask.kind=learned", "mask.architecture=ml_last"]
# Objectives whose pairs see the whole batch.
COUPLED = {
    "beta_dpo": ("objective.name=beta_dpo", "objective.beta=2"),
    "rpo": ("objective.name=rpo", "objective.beta=2"),
    "tokens": (
        "objective={name: sum, of: [{weight: 0.8, name: dpo}, {weight: 0.5, name: sft}]}",
        "objective.of[0].weight=0.7",
    ),
    "sum": (
        "objective={name: sum, of: [{weight: 1, name: sft}, {weight: 2, name: rpo, beta: 2}]}",
    ),
    "sum with a memory": (
        "objective={name: sum, of: [{weight: 1, name: rpo}, {weight: 2, name: beta_dpo, beta: 2}]}",
    ),
}
FEATURES = (
    "reference_logps, reference_hidden, reference_layers, activation_mask, scorer_log_ratios, "
    "prompt_embedding, reference_entropy, saliency, positive_logps, negative_logps"
)


@dataclass(frozen=True)
class World:
    """What the trainings of a session share.

    Attributes:
        source: the rows. scorers: options that name them. options: of every recipe on this store.
            paths: where it is.
    """

    source: Path
    scorers: tuple[str, ...]
    options: tuple[str, ...]
    paths: dict[str, str]


def make_world(
    folder: Path, rows: list[dict[str, str]], model_dir: Path, recipe_in: MakeRecipe
) -> World:
    """The store is made in this process."""
    model = write_small_model(folder / "model", model_dir)
    scorers = perturbed_copies(folder, model)
    source = write_scored(folder / "scored.jsonl", rows, model)
    names = {
        "chosen_score": "good",
        "rejected_score": "bad",
        "chosen_weights": "chosen_w",
        "rejected_weights": "rejected_w",
    }
    columns = tuple(f"data.sources[0].columns.{key}={value}" for key, value in names.items())
    options = (
        f"model.name_or_path={model}",
        f"data.sources[0].path={source}",
        *columns,
        "data.min_gap=0.01",
        "data.validation_fraction=0.1",
    )
    paths = {"pairs": str(folder / "pairs"), "reference": str(folder / "reference")}
    everything = ("objective.name=mapo", "mask.kind=activation", f"reference.features=[{FEATURES}]")
    prepared(recipe_in(folder / "run", *options, *everything, *scorers, paths=paths))
    return World(source, scorers, options, paths)


def write_small_model(folder: Path, model_dir: Path) -> Path:
    """A Llama of two narrow layers with the tiny model's tokenizer; a step takes a quarter of the
    tiny model's time.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_scored(path: Path, rows: list[dict[str, str]], model_dir: Path) -> Path:
    """The pairs with scores and with one weight per response token; every other row leaves the
    end token's weight out.
    """
    tokenizer, rng = AutoTokenizer.from_pretrained(model_dir), random.Random(1)
    with path.open("w") as file:
        for number, row in enumerate(rows):
            extra: dict[str, Any] = {"good": 1 + rng.random(), "bad": rng.random() * 0.5}
            for side in ("chosen", "rejected"):
                count = len(tokenizer(row[side], add_special_tokens=False).input_ids) + number % 2
                extra[f"{side}_w"] = [round(rng.random(), 3) for _ in range(count)]
            file.write(json.dumps({**row, **extra}) + "\n")
    return path


def perturbed_copies(folder: Path, model_dir: Path) -> tuple[str, ...]:
    """Options that name two scorers: the model, moved in two directions."""
    named = []
    for seed, key in enumerate(("positive_scorer", "negative_scorer")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder / key)
        AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder / key)
        named.append(f"model.{key}={folder / key}")
    return tuple(named)


def prepared(recipe: Recipe) -> Recipe:
    """The recipe, once its pairs and its reference are there: made, or found to be its own."""
    run_here(recipe, (PREPARE, REFERENCE))
    return recipe


def trained(recipe: Recipe) -> Trainer:
    """One rank's whole training, on what is there."""
    trainer = trainer_of(recipe)
    trainer.run(lambda metrics: None)
    return trainer


def stop_at_a_checkpoint(trainer: Trainer) -> None:
    """Train until the first checkpoint is written, then end as one that is interrupted."""

    def stop(metrics: dict[str, Any]) -> None:
        assert trainer.checkpoints.failure(wait=True) is None
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer.run(stop)


def log(recipe: Recipe, kind: str | None = None) -> list[dict[str, Any]]:
    """A training's records: its steps, or those of a kind."""
    return [r for r in read_metrics(RunPaths.of(recipe).train) if r.get("kind") == kind]
