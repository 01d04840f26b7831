"""One training rank: a deterministic loop for all objectives, masks and worker counts."""

import math
import os
import time
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.config import LearnedMaskSection, Recipe
from pipelines.errors import StageFailed
from pipelines.models import load_causal_lm, load_tokenizer, resolve_model
from pipelines.placement import Placement, as_floats
from pipelines.prepare import open_pairs
from pipelines.reference_source import reference_source
from pipelines.sampler import Sampler, rank_share, token_budget_batches
from pipelines.store import RunStore
from pipelines.train_checkpoint import (
    completed_steps,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from pipelines.train_metrics import MetricsWriter
from sparsepo.layouts import TokenizedPair, padded_layout
from sparsepo.masks import ActivationMask, LearnedMasks, TokenMasks, UniformMask
from sparsepo.model import PolicyModel
from sparsepo.records import Metrics, add_metrics


def build_masks(recipe: Recipe, causal_lm: Any) -> TokenMasks:
    """The recipe's masks for a model; learned ones freshly initialised from train.seed."""
    if isinstance(recipe.mask, LearnedMaskSection):
        config = causal_lm.config
        norm_eps = next(
            (float(v) for n in ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps") if (v := getattr(config, n, None))), 1e-5
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.train.seed)
            return LearnedMasks(
                recipe.mask.architecture,
                recipe.mask.sharing,
                config.hidden_size,
                config.num_hidden_layers,
                getattr(config, "initializer_range", 0.02),
                norm_eps,
                recipe.mask.terms,
            )
    return ActivationMask() if recipe.mask.kind == "activation" else UniformMask()


class Trainer:
    """One rank's training run: state, step, validation, checkpoint."""

    def __init__(self, recipe: Recipe, placement: Placement, threads: int) -> None:
        self.recipe, self.placement = recipe, placement
        self.store = RunStore(f"{recipe.run_dir}/train")
        steps = completed_steps(self.store)
        self.step = steps[-1] if steps else 0
        self.threads = read_state(self.store, self.step)["threads"] if steps else threads
        if placement.device.type == "cpu":
            torch.set_num_threads(min(self.threads, os.cpu_count() or 1))
        self.pairs = open_pairs(recipe)
        self.objective = recipe.objective.build()
        self.lengths = {split: self.pairs.lengths(split) for split in ("train", "validation")}
        self.sampler = Sampler(self.pairs.num_rows("train"), recipe.train.global_batch_size, recipe.train.seed)
        self.num_steps = self.sampler.num_steps(recipe.train.epochs, recipe.train.max_steps)
        self.reference = reference_source(recipe, self.pairs, placement.device)
        self.model = self._build_model()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self._build_optimizer()
        if steps:
            load_checkpoint(self.store, self.step, self.model, self.optimizer)
        self.metrics = MetricsWriter(self.store, self.step) if placement.rank == 0 else None

    def _build_model(self) -> PolicyModel:
        directory = resolve_model(self.recipe.model.name_or_path)
        causal_lm = load_causal_lm(str(directory), self.placement.weights, self.placement.device)
        model = PolicyModel(causal_lm, build_masks(self.recipe, causal_lm), self.reference.head()).to(self.placement.device)
        # eval mode is what switches dropout off in every architecture; nothing else in these models depends on it.
        return model.train(self.recipe.train.dropout == "keep")

    def _build_optimizer(self) -> torch.optim.AdamW:
        train, mask = self.recipe.train, self.recipe.mask
        groups = [{"params": list(self.model.causal_lm.parameters()), "base_lr": train.learning_rate, "weight_decay": train.weight_decay}]
        mask_parameters = list(self.model.masks.parameters())
        if mask_parameters:
            assert isinstance(mask, LearnedMaskSection)
            groups.append(
                {"params": mask_parameters, "base_lr": mask.learning_rate, "weight_decay": mask.weight_decay, "eps": mask.adam_eps}
            )
        return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.adam_betas, eps=train.adam_eps)

    def run(self, report: Any) -> None:
        """Train to the last step; `report(metrics)` is called at every checkpoint by every rank."""
        train = self.recipe.train
        if self.step == 0 and self.lengths["validation"]:
            self._validate()
        while self.step < self.num_steps:
            record = self._optimizer_step()
            if self.metrics is not None:
                self.metrics.add(record)
            last = self.step == self.num_steps
            latest: dict[str, Any] = dict(record)
            if self.lengths["validation"] and (last or (train.validate_every and self.step % train.validate_every == 0)):
                latest |= self._validate()
            if last or self.step % train.checkpoint_every == 0:
                self._checkpoint()
                report({**latest, "checkpoint_path": f"{self.store.root}/checkpoints"})
        if self.metrics is not None:
            self.metrics.close()
            self._publish_model()
        self.placement.barrier()

    def _optimizer_step(self) -> dict[str, Any]:
        started = time.monotonic()
        rows = self.sampler.pair_indices(self.step)
        scale = self._learning_rate_factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
        if self.recipe.train.dropout == "keep":
            torch.manual_seed(hash((self.recipe.train.seed, self.step, self.placement.rank)))
        totals: Metrics = {}
        self.optimizer.zero_grad(set_to_none=True)
        for batch in self._micro_batches("train", rows):
            losses, metrics = self._score("train", batch)
            (losses.sum() / len(rows)).backward()
            totals = add_metrics(totals, metrics)
        self.placement.reduce_gradients(self.parameters)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.train.max_grad_norm)
        record = self._means(totals)
        if not (math.isfinite(float(grad_norm)) and math.isfinite(record["loss"])):
            ids = self.pairs.column("train", "pair_id")
            kept = completed_steps(self.store)
            raise StageFailed(
                f"loss {record['loss']} or gradient norm {float(grad_norm)} is not finite at step {self.step + 1}; pairs "
                f"{', '.join(ids[i] for i in rows[:8])}{', ...' if len(rows) > 8 else ''}; last good checkpoint: "
                f"{f'step {kept[-1]}' if kept else 'none'}; try a smaller train.learning_rate or objective.beta"
            )
        self.optimizer.step()
        self.step += 1
        seconds = time.monotonic() - started
        tokens = sum(self.lengths["train"][i] for i in rows)
        return {
            "step": self.step,
            "epoch": self.step / self.sampler.steps_per_epoch,
            **record,
            "learning_rate": self.recipe.train.learning_rate * scale,
            "grad_norm": float(grad_norm),
            "step_seconds": seconds,
            "tokens_per_second": tokens / seconds,
        }

    def _micro_batches(self, split: str, rows: list[int]) -> list[list[int]]:
        mine = rank_share(rows, self.lengths[split], self.placement.rank, self.placement.world)
        found = dict(zip(mine, self._pairs(split, mine), strict=True))
        widths = {i: pair.width() for i, pair in found.items()}
        return token_budget_batches(mine, widths, 2 if self.objective.uses_rejected else 1, self.recipe.train.micro_batch_tokens)

    def _pairs(self, split: str, rows: list[int]) -> list[TokenizedPair]:
        pairs = self.pairs.pairs(split, rows)
        return pairs if self.objective.uses_rejected else [TokenizedPair(p.prompt, p.chosen, None) for p in pairs]

    def _score(self, split: str, rows: list[int]) -> tuple[Tensor, Metrics]:
        inputs = padded_layout(self._pairs(split, rows)).to(self.placement.device)
        features = self.reference.features(split, rows, inputs)
        with self.placement.compute():
            scores = self.model(inputs, features)
        output = self.objective(scores)
        return output.losses, output.metrics

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        totals: Metrics = {}
        rows = list(range(len(self.lengths["validation"])))
        for batch in self._micro_batches("validation", rows):
            totals = add_metrics(totals, self._score("validation", batch)[1])
        record = {f"validation/{key}": value for key, value in self._means(totals).items()}
        if self.metrics is not None:
            self.metrics.flush()
            self.metrics.add({"step": self.step, "kind": "validation", **record})
            self.metrics.flush()
        return record

    def _means(self, totals: Metrics) -> dict[str, float]:
        """Mean of every metric over all ranks' pairs (or tokens, or responses: whatever its count counts)."""
        summed: dict[str, tuple[float, float]] = {}
        for metrics in self.placement.gather(as_floats(totals)):
            for key, (total, count) in metrics.items():
                before = summed.get(key, (0.0, 0.0))
                summed[key] = (before[0] + total, before[1] + count)
        return {key: total / count for key, (total, count) in summed.items()}

    def _learning_rate_factor(self, step: int) -> float:
        train = self.recipe.train
        warmup = math.ceil(train.warmup_fraction * self.num_steps)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.num_steps - warmup)
        if train.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1 - progress if train.schedule == "linear" else 1.0

    def _checkpoint(self) -> None:
        if self.metrics is not None:
            self.metrics.flush()
            state = {"threads": self.threads, "num_steps": self.num_steps, "world": self.placement.world}
            save_checkpoint(self.store, self.step, self.model, self.optimizer, state, self.recipe.train.keep_checkpoints)
        self.placement.barrier()

    def _publish_model(self) -> None:
        folder = self.store.staging_directory()
        self.model.causal_lm.save_pretrained(folder, safe_serialization=True)
        load_tokenizer(
            str(resolve_model(self.recipe.model.tokenizer or self.recipe.model.name_or_path, tokenizer_only=True))
        ).save_pretrained(folder)
        self.store.publish_directory(folder, "model")
        if isinstance(self.model.masks, LearnedMasks):
            folder = self.store.staging_directory()
            self.model.masks.save_pretrained(folder)
            self.store.publish_directory(folder, "masks")
