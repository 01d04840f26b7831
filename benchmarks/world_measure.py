"""What a method reaches on a world: reward of samples, distance from the reference, its weights."""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from world_engine import CPU, Folder, key_labels, settled_run, trainer_of
from world_settings import DPO, Setting

from evaluation.metrics import auc, distinct_n, vader_scores
from pipelines.errors import Diverged, StageFailed
from pipelines.evaluate.distance import sequence_kl
from pipelines.evaluate.prompts import prompt_ids
from pipelines.evaluate.stage import ends_of
from pipelines.evaluate.tasks import SamplePrompts, evaluation_tasks
from pipelines.models import TokenTexts, generate, load_tokenizer
from pipelines.pairs import open_pairs
from pipelines.reference import load_reference
from pipelines.train import training_facts
from pipelines.train.trainer import Trainer
from sparsepo import PolicyModel
from sparsepo.batching.cutting import token_budget_batches
from sparsepo.batching.layouts import padded_layout

_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Sampled:
    """Samples for the held-out prompts, in the order of the evaluation's tasks.

    Attributes:
        ids: of each sample's tokens. texts, rewards: of the samples.
    """

    ids: list[list[int]]
    texts: list[str]
    rewards: list[float]


class HeldOut:
    """The held-out prompts and pairs of a world, and the model that every method starts from."""

    def __init__(self, folder: Folder) -> None:
        run = settled_run(folder.recipe(DPO))
        self._kept = folder.root / "before.json"
        self.settings = run.recipe.evaluate
        self.ends = ends_of(run)
        self.tokenizer = load_tokenizer(folder.start)
        self.texts_of = TokenTexts(self.tokenizer)
        self.pairs = open_pairs(run)
        self.reference = load_reference(training_facts(run).reference.model, CPU)
        rows = range(self.pairs.num_rows("test"))
        self.tasks = [
            task
            for task in evaluation_tasks(self.settings, self.pairs, rows)
            if isinstance(task, SamplePrompts)
        ]
        self.prompts = [prompt_ids(self.pairs, "test", task.rows) for task in self.tasks]

    def sample(self, model: Any) -> Sampled:
        """One continuation of every prompt, drawn as `evaluate` draws it."""
        found: list[list[int]] = []
        for task, prompts in zip(self.tasks, self.prompts, strict=True):
            seed = self.settings.seed * 1_000_003 + task.temperature_number * 1009 + task.number
            found += generate(model, self.ends, prompts, self.settings.generation, seed, 1)
        texts = [self.ends.text(self.tokenizer, ids) for ids in found]
        return Sampled(found, texts, vader_scores(texts))

    @cached_property
    def before(self) -> Sampled:
        """The starting model's samples, which are drawn once for all methods."""
        if self._kept.is_file():
            return Sampled(**json.loads(self._kept.read_text()))
        found = self.sample(self.reference.causal_lm)
        text = json.dumps(asdict(found))
        part = self._kept.with_suffix(f".{os.getpid()}")
        part.write_text(text)
        part.replace(self._kept)
        return found

    def point(self, model: Any) -> dict[str, float]:
        """Gain and distance of a policy."""
        after = self.sample(model)
        prompts = [prompt for batch in self.prompts for prompt in batch]
        kl = sequence_kl(model, self.reference.causal_lm, prompts, after.ids, _BATCH_TOKENS)
        return {
            "reward": _mean(after.rewards),
            "gain": _mean(after.rewards) - _mean(self.before.rewards),
            "kl": _mean(kl),
            "tokens": _mean([float(len(ids)) for ids in after.ids]),
            "distinct_2": distinct_n(after.texts, 2) / distinct_n(self.before.texts, 2),
        }

    @torch.no_grad()
    def weights(self, trainer: Trainer) -> dict[str, float]:
        """AUC of the reward mask for the words that carry the reward, over held-out responses."""
        policy: PolicyModel = trainer.model
        rows = list(range(self.pairs.num_rows("test")))
        pairs = self.pairs.pairs("test", rows)
        weights: list[Tensor] = []
        labels: list[bool] = []
        for batch in token_budget_batches(rows, [p.width() for p in pairs], 2, _BATCH_TOKENS):
            inputs = padded_layout([pairs[i] for i in batch])
            features = trainer.source.features("test", batch, inputs)
            weights.append(policy(inputs, features).reward_mask)
            for i in batch:
                for ids, places in zip(pairs[i].responses(), pairs[i].scored_places(), strict=True):
                    found = key_labels(self.texts_of(ids))
                    labels += [found[place] for place in places]
        values = torch.cat(weights).numpy()
        return {
            "auc": auc(values, labels),
            "zeros": float((values == 0).mean()),
            "key_fraction": float(np.mean(labels)),
        }


def measure(
    folder: Folder, held_out: HeldOut, setting: Setting, shares: Sequence[float] = (1.0,)
) -> dict[str, Any]:
    """Train a method, and measure it after these shares of its steps: one record."""
    started, recipe = time.process_time(), folder.recipe(setting)
    trainer = trainer_of(recipe)
    at = {max(1, math.ceil(share * trainer.num_steps)) for share in shares}
    watches = (trainer.watch, trainer.runaway, trainer.falling)
    found: dict[str, Any] = {"points": [], "losses": [], "warnings": [], "failed": None}
    try:
        while trainer.step < trainer.num_steps:
            record, _ = trainer.optimizer_step()
            found["losses"].append(round(record["loss"], 7))
            found["warnings"] += [m for watch in watches for m in watch.observe(record)]
            if trainer.step in at:
                trainer.model.eval()
                point = held_out.point(trainer.model.causal_lm)
                found["points"].append({"step": trainer.step, **point})
        if recipe.mask.kind != "none":
            found |= held_out.weights(trainer)
    except (Diverged, StageFailed) as error:
        found["failed"] = str(error)
    finally:
        trainer.close()
    return {**found, "steps": trainer.num_steps, "cpu_seconds": time.process_time() - started}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
