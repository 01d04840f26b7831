"""One training rank: a deterministic loop.

It serves all objectives, masks, layouts, strategies and worker counts.
"""

import math
import os
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import Diverged, Failure, StageFailed, UserError
from pipelines.models import (
    Placement,
    compile_forecast,
    refuse_other_orders,
    sums_in_one_order,
    sustained_tflops,
)
from pipelines.pairs import read_pairs
from pipelines.recipe import LearnedMaskConfig
from pipelines.reference import feature_source, load_reference, usable_rows
from pipelines.storage import RunStore, spent
from pipelines.train.builders import build_objective
from pipelines.train.checkpoint import Checkpointer, Retention
from pipelines.train.checkpoint_contents import (
    check_files,
    claim,
    goes_on,
    newest_intact,
    read_state,
)
from pipelines.train.compilation import Compilation
from pipelines.train.facts import TrainingFacts
from pipelines.train.late_steps import LatePass, Pass, Sums
from pipelines.train.metrics import MetricsWriter
from pipelines.train.micro_batches import Cut, MicroBatch, MicroBatchLoader
from pipelines.train.policy import (
    build_policy,
    choose_layout,
    load_policy_model,
    there_and_back,
)
from pipelines.train.publish import Publication
from pipelines.train.restore import load_checkpoint
from pipelines.train.selection import Selection
from pipelines.train.steps import completed_steps
from pipelines.train.strategy import strategy_of
from pipelines.train.throughput import Throughput
from pipelines.train.trackers import build_trackers
from sparsepo import ReferenceModel
from sparsepo.backbone import attention_as_trained, has_decoder_layers, transformer_of
from sparsepo.batching.sampling import Sampler
from sparsepo.checks import checks_read_later
from sparsepo.falling import FallingChosenWatch
from sparsepo.masks import CollapseWatch, LearnedMasks, decay_groups
from sparsepo.objectives import CoupledBatch, CoupledObjective
from sparsepo.records import Metrics, TokenScores, add_metrics
from sparsepo.runaway import RunawayWatch

_STEPS_AHEAD = 8  # whose features are fetched from an object store
_VALIDATION_PAIRS = 512  # between two exchanges of the ranks


@dataclass(frozen=True)
class LaunchedStep:
    """A step that the device has been given, and whose numbers have not been read.

    Attributes:
        step: how many there are with it. learning_rate, record: what is known of it already.
        started: by the monotonic clock. ended: by it too, where the host is the device and is done;
            None where the device goes on by itself.
    """

    step: int
    rows: list[int]
    numbers: LatePass
    learning_rate: float
    record: dict[str, Any]
    started: float
    ended: float | None


@dataclass(frozen=True)
class Coupling:
    """The gathered first pass of a coupled objective.

    Attributes:
        values: [N, c], of the global batch.
        positions: each row's position in it.
    """

    objective: CoupledObjective
    values: Tensor
    positions: dict[int, int]

    def slice(self, rows: Sequence[int], device: torch.device) -> CoupledBatch:
        return CoupledBatch(
            self.values.to(device),
            torch.tensor([self.positions[row] for row in rows], device=device),
        )


class Trainer:
    """One rank's training run: state, step, validation, checkpoint.

    Args:
        threads: of a CPU rank; a resumed run keeps those it began with.
        micro_batch_tokens: the largest budget to use, after memory ran out with the recipe's.
    """

    @spent("load")
    def __init__(
        self,
        facts: TrainingFacts,
        placement: Placement,
        threads: int,
        micro_batch_tokens: int | None = None,
    ) -> None:
        self.facts, self.placement = facts, placement
        self._began = time.monotonic()
        self._settings = ExitStack()  # torch's, of this process
        self._settings.enter_context(sums_in_one_order(placement.device))
        self.is_one_pair_each = False  # in this step: no smaller budget would help
        self._launched: list[LaunchedStep] = []
        self._read_at = self._began  # when the last step's numbers were there
        self.store = RunStore(facts.root)
        attempt = uuid.uuid4().hex[:8]
        claimed = (attempt, claim(self.store, attempt)) if placement.rank == 0 else None
        attempt, steps = placement.gather(claimed)[0]
        self.step, damaged = newest_intact(self.store, steps, placement)
        state = read_state(self.store, self.step) if self.step else {}
        self.threads = state.get("threads", threads)
        if placement.device.type == "cpu":
            torch.set_num_threads(min(self.threads, os.cpu_count() or 1))
        self.pairs = read_pairs(RunStore(facts.pairs_root))
        for split in ("train", "validation"):
            self.pairs.check(split, slice(placement.rank, None, placement.world))
        self.objective = build_objective(facts.objective)
        if "objective" in state:
            self.objective.restore(state["objective"])
        self.rows = {
            split: usable_rows(facts.reference, self.pairs, split)
            for split in ("train", "validation")
        }
        if not self.rows["train"]:
            raise StageFailed(
                "the reference stage could score no training pair: see failed_rows.jsonl in its "
                "directory"
            )
        self.sampler = Sampler(
            len(self.rows["train"]), facts.train.global_batch_size, facts.train.seed
        )
        self._counts_epochs = "epoch" in facts.reference.wanted
        self.num_steps = self.sampler.num_steps(facts.train.epochs, facts.train.max_steps)
        self.strategy = strategy_of(placement)
        self._build(micro_batch_tokens)
        self.optimizer = self._build_optimizer()
        if self.step:
            load_checkpoint(
                self.store, self.step, self.model, self.optimizer, self.strategy, facts.base
            )
        has_kl = "reference_hidden" in self.objective.requires
        weighed = tuple(t for t in facts.mask.masked_terms() if t == "reward" or has_kl)
        self.watch = CollapseWatch(weighed, state.get("collapse_streaks"))
        self.runaway = RunawayWatch(state.get("runaway"))
        self.falling = FallingChosenWatch(state.get("falling"))
        self.selection = Selection(facts.train.selection, state.get("selection"))
        if self.step < self.num_steps and not (self.selection.has_ended or goes_on(state)):
            raise UserError(
                f"{self.store.root}: the checkpoint of step {self.step} was the last of its run "
                f"and holds no optimizer state, but {self.num_steps} steps are asked for: choose "
                "another run_dir"
            )
        keep_best = max(
            facts.train.selection.keep_best, int(facts.train.selection.publish == "best")
        )
        self.checkpoints = Checkpointer(
            self.store,
            attempt,
            self.model,
            self.optimizer,
            self.strategy,
            Retention(facts.train.keep_checkpoints, keep_best),
            facts.base,
        )
        if self.step < self.num_steps:
            every = facts.train.checkpoint_every
            self.checkpoints.make_room(self.step + every - self.step % every >= self.num_steps)
        self.metrics: MetricsWriter | None = None
        if placement.rank == 0:
            trackers = build_trackers(facts, self.store, self.step)
            self.metrics = MetricsWriter(
                self.store, self.step, trackers, self.checkpoints.is_current
            )
            self.metrics.warn(self.step, [*damaged, *self._orders])

    def _build(self, micro_batch_tokens: int | None) -> None:
        facts, placement = self.facts, self.placement
        causal_lm, online = self.load_models()
        models = [causal_lm, *([online.causal_lm] if online else [])]
        passes = [partial(there_and_back, model, placement.compute) for model in models]
        self._orders = refuse_other_orders(placement.device, passes)
        self.layout = choose_layout(facts, models, placement, micro_batch_tokens)
        self.source = feature_source(facts.reference, self.pairs, placement.device, online)
        counted = [sum(p.numel() for p in model.parameters()) for model in models]
        self.throughput = Throughput(
            transformer_of(causal_lm).config,
            counted[0],
            facts.base is not None,
            sum(counted[1:]),
            placement.device,
            placement.world,
        )
        if online is not None:
            self.strategy.spread_frozen(online.causal_lm)
        self.lengths = self.pairs.lengths("train")
        self.shared_lengths = self.pairs.lengths("train", shared=True)
        self.compilation = self._compilation(causal_lm)
        # A mask may read the reference's states where the loss has no KL.
        head = self.source.head() if "reference_hidden" in self.objective.requires else None
        self.model = build_policy(facts, causal_lm, head, self.strategy, self.compilation)
        self.loader = MicroBatchLoader(
            self.pairs,
            self.source,
            self.layout,
            placement,
            self.strategy.aligns_micro_batches,
            self.objective.uses_rejected,
        )

    def load_models(self) -> tuple[Any, ReferenceModel | None]:
        """The starting model to train, and the frozen reference where it runs beside training.

        Called once, while the trainer is made: who trains many runs in one process has them there.
        """
        facts, placement = self.facts, self.placement
        causal_lm = load_policy_model(facts, placement)
        if not facts.reference.online:
            return causal_lm, None
        return causal_lm, load_reference(facts.reference.model, placement.device)

    def _compilation(self, causal_lm: Any) -> Compilation | None:
        """What compiles the layers, if that is asked for or pays."""
        facts, placement = self.facts, self.placement
        transformer = transformer_of(causal_lm)
        wanted = facts.train.compile
        if wanted is None and placement.device.type == "cuda" and has_decoder_layers(transformer):
            pairs = self.num_steps * facts.train.global_batch_size
            tokens = float(self.shared_lengths[self.rows["train"]].mean()) * pairs
            wanted = compile_forecast(
                tokens * self.throughput.flops_per_token,
                tokens / self.layout.budget,
                transformer.config.get_text_config().num_hidden_layers,
                sustained_tflops("cuda", torch.cuda.get_device_name(placement.device)),
                placement.world,
            ).pays
        if not wanted:
            return None
        return Compilation(RunStore(facts.compiled), facts.key, placement.device)

    def _build_optimizer(self) -> torch.optim.AdamW:
        train, mask = self.facts.train, self.facts.mask
        policy = [p for p in self.model.causal_lm.parameters() if p.requires_grad]
        groups = [
            {"params": policy, "base_lr": train.learning_rate, "weight_decay": train.weight_decay}
        ]
        if isinstance(mask, LearnedMaskConfig):
            own = {"base_lr": mask.learning_rate, "eps": mask.adam_eps}
            groups += [
                {**group, **own} for group in decay_groups(self.model.masks, mask.weight_decay)
            ]
        fused = self.placement.device.type == "cuda"
        return torch.optim.AdamW(
            groups,
            lr=train.learning_rate,
            betas=train.adam_betas,
            eps=train.adam_eps,
            fused=fused or None,
        )

    @spent("compute")
    @attention_as_trained()
    def run(
        self,
        report: Callable[[dict[str, Any]], None],
        is_preempted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the last step.

        Args:
            report: called with metrics at every validation and checkpoint by every rank.
            is_preempted: whether this rank's machine is about to be taken away; then a checkpoint
                is written at once.
        """
        train = self.facts.train
        if self.step == 0 and self.rows["validation"]:
            self.validate()
        while self.step < self.num_steps and not self.selection.has_ended:
            self._launch_step(is_preempted())
            last, improved, validated = self.step == self.num_steps, False, {}
            every = train.validate_every
            is_due = last or (every is not None and self.step % every == 0)
            validates = bool(self.rows["validation"]) and is_due
            saves = last or self.step % train.checkpoint_every == 0
            latest, preempted = self._read_steps(0 if validates or saves else self._steps_unread)
            if validates:
                validated = self.validate()
                improved = self.selection.observe(self.step, validated)
                latest |= validated
            if saves or preempted or improved or self.selection.has_ended:
                self._checkpoint(latest, is_last=last or self.selection.has_ended)
                if preempted:
                    self._raise_together(self.checkpoints.failure(wait=True))
                latest["checkpoint_path"] = f"{self.store.root}/checkpoints"
            if validated or "checkpoint_path" in latest:
                report(latest)
        with spent("write"):
            self._publish()
            if self.metrics is not None:
                self.metrics.close()
            self.placement.barrier()

    def optimizer_step(
        self, is_preempted: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, Any], bool]:
        """One step: its record, and whether any rank's machine is about to be taken away.

        Every rank must call it.
        """
        self._launch_step(is_preempted())
        return self._read_step()

    @property
    def _steps_unread(self) -> int:
        """Steps whose numbers may be on their way; none where the next one depends on them."""
        masks = self.model.masks
        return int(not (isinstance(masks, LearnedMasks) and masks.target_sparsity is not None))

    def _read_steps(self, unread: int) -> tuple[dict[str, Any], bool]:
        """Log the launched steps but the last few; with a preemption, these too.

        Returns: the record of the last one that was read, and whether any rank's machine is about
            to be taken away.
        """
        record: dict[str, Any] = {}
        preempted = False
        while len(self._launched) > (0 if preempted else unread):
            record, flagged = self._read_step()
            preempted = preempted or flagged
            warnings = [
                line
                for watch in (self.watch, self.runaway, self.falling)
                for line in watch.observe(record)
            ]
            if self.metrics is not None:
                self.metrics.add(record)
                if warnings:
                    self.metrics.add_apart(
                        {"step": record["step"], "kind": "warning", "messages": warnings}
                    )
        return dict(record), preempted

    def _launch_step(self, flag: bool) -> None:
        """Give the device one step. Every rank must call it."""
        started = time.monotonic()
        rows = self.rows_of_step(self.step)
        scale = self._learning_rate_factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
        self.optimizer.zero_grad(set_to_none=True)
        cuts = self.loader.cuts("train", rows)
        self.is_one_pair_each = all(len(cut.rows) == 1 for cut in cuts)
        then = (
            self.loader.cuts("train", self.rows_of_step(self.step + 1))
            if self.step + 1 < self.num_steps
            else []
        )
        if self.step + _STEPS_AHEAD < self.num_steps:
            self.loader.prefetch("train", self.rows_of_step(self.step + _STEPS_AHEAD))
        found = self._score_batch(rows, cuts, then, backward=True, flag=flag)
        numbers = found.end(self.strategy.clip(self.facts.train.max_grad_norm))
        self.optimizer.step()
        self.step += 1
        rate = self.facts.train.learning_rate * scale
        record = {
            "padding_fraction": 1 - found.tokens / max(1, found.places),
            **(self.compilation.counts() if self.compilation else {}),
        }
        ended = time.monotonic() if self.placement.device.type == "cpu" else None
        self._launched.append(LaunchedStep(self.step, rows, numbers, rate, record, started, ended))

    def _read_step(self) -> tuple[dict[str, Any], bool]:
        """The record of the first launched step, and whether any rank's flag was set then.

        Raises: Diverged if its loss or gradient is not finite. Steps after it were taken for
            nothing; none of them is kept.
        """
        done = self._launched.pop(0)
        found, (grad_norm,) = done.numbers.read(self.placement)
        record = _means(found.sums)
        if not (math.isfinite(grad_norm) and math.isfinite(record["loss"])):
            raise Diverged(
                f"loss {record['loss']} or gradient norm {grad_norm} is not finite at step "
                f"{done.step}; pairs {self._pair_ids('train', done.rows)}; "
                f"{self._last_checkpoint()}; try a smaller train.learning_rate or objective.beta"
            )
        if isinstance(self.model.masks, LearnedMasks):
            self.model.masks.control(record)
        now = time.monotonic() if done.ended is None else done.ended
        seconds, self._read_at = now - max(done.started, self._read_at), now
        rates = self.throughput.record(
            self.lengths[done.rows].tolist(), self.shared_lengths[done.rows].tolist(), seconds
        )
        return {
            "step": done.step,
            "epoch": done.step / self.sampler.steps_per_epoch,
            **record,
            "learning_rate": done.learning_rate,
            "grad_norm": grad_norm,
            **rates,
            **done.record,
            "elapsed_seconds": now - self._began,
        }, found.flag

    def rows_of_step(self, step: int) -> list[int]:
        """Rows of the training split in the global batch of step 0, 1, ..."""
        return [self.rows["train"][index] for index in self.sampler.pair_indices(step)]

    def _score_batch(
        self, rows: list[int], cuts: list[Cut], then: list[Cut], backward: bool, flag: bool = False
    ) -> Pass:
        """This rank's part of a global batch; its micro-batches back-propagate if asked to.

        Every rank must call it. A rank that meets scores or weights that the objective refuses, or
        could not write its checkpoint, says so when all read what they found: had it failed alone,
        the others would wait in the next collective.

        Args:
            then: cuts of the next call.
        """
        self._enter_mode(training=backward)
        self.objective.advance(self.step / max(1, self.num_steps - 1) if backward else 1.0)
        coupling = self._coupling(rows, cuts, is_training=backward)
        if coupling is not None:
            cuts = _of_second_pass(coupling.objective, cuts)
        self._enter_mode(training=backward)  # again: both passes draw the same dropout
        number_of_step = self.step + 1

        def explain(cut: Cut, message: str) -> Failure:
            pairs = self._pair_ids(cut.split, cut.rows)
            text = f"step {number_of_step}: {message}; pairs {pairs}; {self._last_checkpoint()}"
            return Failure("stage", text)

        found = Pass(self.checkpoints.failure(), flag, explain)
        for number, batch in enumerate(self.loader.stream(cuts, then)):
            if backward and number == len(cuts) - 1:
                self.strategy.expect_last_backward()
            found.tokens += int(batch.inputs.attention_mask.sum())
            found.places += batch.inputs.attention_mask.numel()
            scores = self._forward(batch)
            loss: Tensor | None = None
            if not (batch.cut.is_filler or found.failure):
                try:
                    with checks_read_later() as checks:
                        losses, metrics = self._losses(scores, batch, coupling)
                    loss = losses.sum() / len(rows)
                    found.totals = add_metrics(found.totals, metrics)
                    found.checks += [(batch.cut, check) for check in checks]
                except ValueError as error:
                    found.failure = explain(batch.cut, str(error))
            if backward:
                # Without a loss: the collectives of a backward, and no gradient.
                (scores.policy_logps.sum() * 0.0 if loss is None else loss).backward()
        if backward:
            self.strategy.finish_gradients()
        return found

    def _raise_together(self, failure: Failure | None) -> None:
        for failed in self.placement.gather(failure):
            if failed is not None:
                raise failed.error()

    def _enter_mode(self, training: bool) -> None:
        """Training mode where dropout is asked for.

        Eval mode is what switches it off in every architecture.
        """
        train, mask = self.facts.train, self.facts.mask
        keep = train.dropout == "keep"
        self.model.train(training and keep)
        self.model.masks.train(training)
        adapts = train.lora is not None and train.lora.dropout > 0
        if adapts:
            for name, module in self.model.causal_lm.named_modules():
                if "lora_dropout" in name:
                    module.train(training)
        if training and (
            keep or adapts or (isinstance(mask, LearnedMaskConfig) and mask.dropout > 0)
        ):
            torch.manual_seed(hash((train.seed, self.step, self.placement.rank)))

    def _forward(self, batch: MicroBatch) -> TokenScores:
        inputs = batch.inputs.to(self.placement.device)
        features = self.source.complete(batch.features, inputs)
        if self._counts_epochs:
            epoch = self.step // self.sampler.steps_per_epoch
            seen = torch.full((inputs.num_pairs,), epoch, device=inputs.labels.device)
            features = replace(features, epoch=seen)
        with self.placement.computing():
            scores: TokenScores = self.model(inputs, features)
        return scores

    def _losses(
        self, scores: TokenScores, batch: MicroBatch, coupling: Coupling | None
    ) -> tuple[Tensor, Metrics]:
        """Losses and metrics of a micro-batch.

        Raises: ValueError if its scores or weights are none that the objective accepts.
        """
        if coupling is None:
            output = self.objective(scores)
        else:
            output = coupling.objective(
                scores, coupling.slice(batch.cut.rows, self.placement.device)
            )
        return output.losses, output.metrics

    @torch.no_grad()
    def _coupling(self, rows: list[int], cuts: list[Cut], is_training: bool) -> Coupling | None:
        """First pass of an objective that couples pairs.

        It yields what all pairs of the batch need to know of each other. A training batch is
        observed.
        """
        if not (isinstance(self.objective, CoupledObjective) and self.objective.couples_pairs):
            return None
        mine: dict[int, Tensor] = {}
        for batch in self.loader.stream(cuts, _of_second_pass(self.objective, cuts)):
            values = self.objective.values_of_inputs(batch.inputs)
            if values is None:
                values = self.objective.shared_values(self._forward(batch)).cpu()
            if not batch.cut.is_filler:
                mine |= dict(zip(batch.cut.rows, values, strict=True))
        everyone = {
            row: value for part in self.placement.gather(mine) for row, value in part.items()
        }
        shared = torch.stack([everyone[row] for row in rows])
        values = self.objective.batch_values(shared, is_training)
        if is_training:
            self.objective.observe(shared)
        return Coupling(
            self.objective,
            values,
            {row: at for at, row in enumerate(rows)},
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means over the validation split, logged as those of this step.

        Every rank must call it.
        """
        rows = self.rows["validation"]
        # A coupled loss depends on the size of its batch: the training's, so that both can be
        # compared.
        size = (
            self.facts.train.global_batch_size
            if self.objective.couples_pairs
            else _VALIDATION_PAIRS
        )
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        cuts = [self.loader.cuts("validation", part) for part in parts] + [[]]
        summed: Sums = {}
        for part, now, then in zip(parts, cuts[:-1], cuts[1:], strict=True):
            found = self._score_batch(part, now, then, backward=False).end()
            summed = add_metrics(summed, found.read(self.placement)[0].sums)
        self.strategy.reshard()
        record = {f"validation/{key}": value for key, value in _means(summed).items()}
        if self.metrics is not None:
            self.metrics.add_apart({"step": self.step, "kind": "validation", **record})
        return record

    def _pair_ids(self, split: str, rows: Sequence[int]) -> str:
        ids = [i for (i,) in self.pairs.values(split, rows[:8], ("pair_id",))]
        return ", ".join(ids) + (", ..." if len(rows) > 8 else "")

    def _last_checkpoint(self) -> str:
        self.checkpoints.failure(wait=True)  # one that is being written counts
        kept = completed_steps(self.store)
        return f"last good checkpoint: {f'step {kept[-1]}' if kept else 'none'}"

    def _learning_rate_factor(self, step: int) -> float:
        train = self.facts.train
        warmup = math.ceil(train.warmup_fraction * self.num_steps)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.num_steps - warmup)
        if train.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1 - progress if train.schedule == "linear" else 1.0

    @spent("write")
    def _checkpoint(self, latest: dict[str, Any], is_last: bool = False) -> None:
        if self.metrics is not None:
            self.metrics.checkpoint()
        state = {
            "threads": self.threads,
            "num_steps": self.num_steps,
            "objective": self.objective.state(),
            "collapse_streaks": self.watch.streaks,
            "runaway": self.runaway.state(),
            "falling": self.falling.state(),
            "selection": self.selection.state(),
            "selection_value": self.selection.value_of(latest),
        }
        self.checkpoints.save(self.step, state, is_last)
        if self.compilation is not None:
            self.compilation.keep()

    def _publish(self) -> None:
        """Publish the model and its masks: of the last step, or of the best validation.

        They are written while the last checkpoint is, and get their names after it.
        """
        best, copies = self.selection.best_step, self.checkpoints.copies(self.step)
        published = self.facts.train.selection.publish
        if published == "best" and best is not None and best != self.step:
            check_files(self.store, best, self.placement)
            load_checkpoint(self.store, best, self.model, None, self.strategy, self.facts.base)
            copies = {}
        publication, failure = Publication(self.store), None
        try:
            try:
                publication.stage(self.facts, self.model, self.strategy, copies)
            except (UserError, StageFailed) as error:
                failure = Failure.of(error)
            unsaved = self.checkpoints.failure(wait=True)
            self._raise_together(unsaved or failure)
        except BaseException:
            publication.discard()
            raise
        publication.publish()

    def close(self) -> None:
        """Stop the threads of a run that has ended or failed; torch's settings are as before it."""
        self.checkpoints.close()
        if self.compilation is not None:
            self.compilation.close()
        self._settings.close()


def _of_second_pass(objective: CoupledObjective, cuts: Sequence[Cut]) -> list[Cut]:
    """What is left to score of a batch whose shared values are gathered."""
    if not objective.rejected_are_shared:
        return list(cuts)
    return [replace(cut, has_rejected=False) for cut in cuts]


def _means(summed: Sums) -> dict[str, float]:
    """Mean of every metric over pairs (or tokens, or responses: whatever its count counts)."""
    return {key: total / count for key, (total, count) in summed.items() if count}
