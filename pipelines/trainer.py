"""One training rank: a deterministic loop for all objectives, masks and worker counts."""

import math
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.config import Recipe
from pipelines.errors import StageFailed
from pipelines.feature_source import feature_source
from pipelines.mask_config import LearnedMaskConfig
from pipelines.models import hf_config, load_causal_lm, load_tokenizer, resolve_model
from pipelines.placement import Placement, as_floats
from pipelines.prepare import open_pairs
from pipelines.reference import usable_rows
from pipelines.reference_features import reference_model_dir
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
from sparsepo.masks import CollapseWatch, LearnedMasks, TokenMasks
from sparsepo.model import PolicyModel
from sparsepo.objectives import CoupledBatch, CoupledObjective
from sparsepo.records import Metrics, TokenScores, add_metrics


def build_masks(recipe: Recipe) -> TokenMasks:
    """The recipe's masks; learned ones freshly initialised from train.seed for the reference model."""
    return recipe.mask.build(hf_config(reference_model_dir(recipe)), recipe.train.seed)


Sums = dict[str, tuple[float, float]]  # metric -> (sum, count)


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a split and their token ids."""

    rows: list[int]
    pairs: list[TokenizedPair]


@dataclass(frozen=True)
class Coupling:
    """The gathered first pass of a coupled objective: values [N, c] of the global batch and each row's place in it."""

    objective: CoupledObjective
    values: Tensor
    places: dict[int, int]

    def slice(self, rows: list[int], device: torch.device) -> CoupledBatch:
        return CoupledBatch(self.values.to(device), torch.tensor([self.places[row] for row in rows], device=device))


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
        self.source = feature_source(recipe, self.pairs, placement.device)
        self.rows = {split: usable_rows(recipe, self.pairs, split) for split in ("train", "validation")}
        if not self.rows["train"]:
            raise StageFailed("the reference stage could score no training pair: see failed_rows.jsonl in its directory")
        self.sampler = Sampler(len(self.rows["train"]), recipe.train.global_batch_size, recipe.train.seed)
        self.num_steps = self.sampler.num_steps(recipe.train.epochs, recipe.train.max_steps)
        self.model = self._build_model()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self._build_optimizer()
        if steps:
            load_checkpoint(self.store, self.step, self.model, self.optimizer)
        streaks = read_state(self.store, self.step)["collapse_streaks"] if steps else None
        self.watch = CollapseWatch(recipe.mask.masked_terms(), streaks)
        self.metrics = MetricsWriter(self.store, self.step) if placement.rank == 0 else None

    def _build_model(self) -> PolicyModel:
        directory = resolve_model(self.recipe.model.name_or_path)
        causal_lm = load_causal_lm(str(directory), self.placement.weights, self.placement.device)
        return PolicyModel(causal_lm, build_masks(self.recipe), self.source.head()).to(self.placement.device)

    def _build_optimizer(self) -> torch.optim.AdamW:
        train, mask = self.recipe.train, self.recipe.mask
        groups = [{"params": list(self.model.causal_lm.parameters()), "base_lr": train.learning_rate, "weight_decay": train.weight_decay}]
        mask_parameters = [p for p in self.model.masks.parameters() if p.requires_grad]
        if mask_parameters:
            assert isinstance(mask, LearnedMaskConfig)
            groups.append(
                {"params": mask_parameters, "base_lr": mask.learning_rate, "weight_decay": mask.weight_decay, "eps": mask.adam_eps}
            )
        return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.adam_betas, eps=train.adam_eps)

    def run(self, report: Any) -> None:
        """Train to the last step; `report(metrics)` is called at every checkpoint by every rank."""
        train = self.recipe.train
        if self.step == 0 and self.rows["validation"]:
            self._validate()
        while self.step < self.num_steps:
            record = self._optimizer_step()
            warnings = self.watch.observe(record)
            if self.metrics is not None:
                self.metrics.add(record)
                if warnings:
                    self.metrics.add_apart({"step": self.step, "kind": "warning", "messages": warnings})
            last = self.step == self.num_steps
            latest: dict[str, Any] = dict(record)
            if self.rows["validation"] and (last or (train.validate_every and self.step % train.validate_every == 0)):
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
        rows = [self.rows["train"][place] for place in self.sampler.pair_indices(self.step)]
        scale = self._learning_rate_factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
        self.optimizer.zero_grad(set_to_none=True)
        record = _means(self._score_batch("train", rows, backward=True))
        self.placement.reduce_gradients(self.parameters)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.train.max_grad_norm)
        if not (math.isfinite(float(grad_norm)) and math.isfinite(record["loss"])):
            raise StageFailed(
                f"loss {record['loss']} or gradient norm {float(grad_norm)} is not finite at step {self.step + 1}; pairs "
                f"{self._pair_ids('train', rows)}; {self._last_checkpoint()}; try a smaller train.learning_rate or objective.beta"
            )
        self.optimizer.step()
        if isinstance(self.model.masks, LearnedMasks):
            self.model.masks.control(record)
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

    def _score_batch(self, split: str, rows: list[int], backward: bool) -> Sums:
        """Sums of every metric over a global batch, of all ranks; this rank's micro-batches back-propagate if asked to.

        Every rank must call it. Raises: StageFailed on every rank if one meets scores or weights that the objective refuses:
        a rank that failed alone would leave the others waiting in the next collective.
        """
        batches = self._micro_batches(split, rows)
        self._enter_mode(training=backward)
        coupling = self._coupling(split, rows, batches)
        self._enter_mode(training=backward)  # again: both passes draw the same dropout
        totals: Metrics = {}
        failure = ""
        for batch in batches:
            try:
                losses, metrics = self._score(split, batch, coupling)
            except ValueError as error:
                failure = f"step {self.step + 1}: {error}; pairs {self._pair_ids(split, batch.rows)}; {self._last_checkpoint()}"
                break
            if backward:
                (losses.sum() / len(rows)).backward()
            totals = add_metrics(totals, metrics)
        summed: Sums = {}
        for message, part in self.placement.gather((failure, as_floats(totals))):
            if message:
                raise StageFailed(message)
            summed = add_metrics(summed, part)
        return summed

    def _enter_mode(self, training: bool) -> None:
        """Training mode where dropout is asked for; eval mode is what switches it off in every architecture."""
        keep, mask = self.recipe.train.dropout == "keep", self.recipe.mask
        self.model.train(training and keep)
        self.model.masks.train(training)
        if training and (keep or (isinstance(mask, LearnedMaskConfig) and mask.dropout > 0)):
            torch.manual_seed(hash((self.recipe.train.seed, self.step, self.placement.rank)))

    def _micro_batches(self, split: str, rows: list[int]) -> list[MicroBatch]:
        mine = rank_share(rows, self.lengths[split], self.placement.rank, self.placement.world)
        pairs = dict(zip(mine, self.pairs.pairs(split, mine), strict=True))
        if not self.objective.uses_rejected:
            pairs = {row: TokenizedPair(pair.prompt, pair.chosen, None) for row, pair in pairs.items()}
        widths = {row: pair.width() for row, pair in pairs.items()}
        sequences = 2 if self.objective.uses_rejected else 1
        return [
            MicroBatch(cut, [pairs[row] for row in cut])
            for cut in token_budget_batches(mine, widths, sequences, self.recipe.train.micro_batch_tokens)
        ]

    def _forward(self, split: str, batch: MicroBatch) -> TokenScores:
        inputs = padded_layout(batch.pairs).to(self.placement.device)
        features = self.source.features(split, batch.rows, inputs)
        with self.placement.compute():
            scores: TokenScores = self.model(inputs, features)
        return scores

    def _score(self, split: str, batch: MicroBatch, coupling: Coupling | None) -> tuple[Tensor, Metrics]:
        """Losses and metrics of a micro-batch; ValueError if its scores or weights are none that the objective accepts."""
        scores = self._forward(split, batch)
        if coupling is None:
            output = self.objective(scores)
        else:
            output = coupling.objective(scores, coupling.slice(batch.rows, self.placement.device))
        return output.losses, output.metrics

    @torch.no_grad()
    def _coupling(self, split: str, rows: list[int], batches: list[MicroBatch]) -> Coupling | None:
        """First pass of an objective that couples pairs: what all pairs of the batch need to know of each other."""
        if not isinstance(self.objective, CoupledObjective):
            return None
        mine: dict[int, Tensor] = {}
        for batch in batches:
            values = self.objective.shared_values(self._forward(split, batch)).cpu()
            mine |= dict(zip(batch.rows, values, strict=True))
        everyone = {row: value for part in self.placement.gather(mine) for row, value in part.items()}
        return Coupling(self.objective, torch.stack([everyone[row] for row in rows]), {row: at for at, row in enumerate(rows)})

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        rows = self.rows["validation"]
        # A coupled loss depends on the size of its batch: the training's, so that both can be compared.
        size = self.recipe.train.global_batch_size if self.objective.couples_pairs else len(rows)
        summed: Sums = {}
        for at in range(0, len(rows), size):
            summed = add_metrics(summed, self._score_batch("validation", rows[at : at + size], backward=False))
        record = {f"validation/{key}": value for key, value in _means(summed).items()}
        if self.metrics is not None:
            self.metrics.add_apart({"step": self.step, "kind": "validation", **record})
        return record

    def _pair_ids(self, split: str, rows: list[int]) -> str:
        ids = [i for (i,) in self.pairs.values(split, rows[:8], ("pair_id",))]
        return ", ".join(ids) + (", ..." if len(rows) > 8 else "")

    def _last_checkpoint(self) -> str:
        kept = completed_steps(self.store)
        return f"last good checkpoint: {f'step {kept[-1]}' if kept else 'none'}"

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
            state: dict[str, Any] = {"threads": self.threads, "num_steps": self.num_steps, "world": self.placement.world}
            state["collapse_streaks"] = self.watch.streaks
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


def _means(summed: Sums) -> dict[str, float]:
    """Mean of every metric over pairs (or tokens, or responses: whatever its count counts)."""
    return {key: total / count for key, (total, count) in summed.items() if count}
