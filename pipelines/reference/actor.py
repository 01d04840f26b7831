"""The scoring actor: whole shards in, feature files and their markers out.

Rows are scored in windows of consecutive rows, and in batches of similar length within a window:
both depend on the shard, the layout and the token budget alone. Several shards are in work at once,
so that others are read and written while one is scored. A row that fails is scored alone, and
reported if it fails again; its shard goes on without it.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipelines.errors import StageFailed, UserError
from pipelines.models import batch_layout, compute_device, reference_dtype
from pipelines.pairs import TOKEN_COLUMNS, pairs_of, read_pairs, shard_name
from pipelines.recipe import MARKERS, ReferenceSection
from pipelines.reference.facts import FrozenReference, OtherModels
from pipelines.reference.formats import FeatureFormat
from pipelines.reference.model import batch_tokens, load_reference
from pipelines.reference.other_models import PromptEmbedder, load_scorers
from pipelines.reference.store import ColumnBuilder, feature_path, feature_schema, write_head
from pipelines.storage import (
    RunStore,
    write_record,
)
from sparsepo import ReferenceModel
from sparsepo.batching.batch_layout import BatchLayout
from sparsepo.batching.layouts import TokenizedPair
from sparsepo.compression import pack_states, topk_of
from sparsepo.features import FEATURES
from sparsepo.kernels.token_scoring import score_tokens
from sparsepo.saliency import check_saliency
from sparsepo.scorers import scorer_logps

_WINDOW_BATCHES = 4  # full batches per window
_TOPK_SAMPLE = 1024  # tokens on which the top-k error is measured


def marker_path(feature: str, split: str, number: int) -> str:
    return f"{MARKERS}/{feature}/{shard_name(split, number)}.json"


@dataclass(frozen=True)
class Scoring:
    """What an actor has to know.

    Attributes:
        pairs, store: roots of both stages' stores. fingerprint: of this stage, which every file
            names.
        settings: how to score; what `auto` means as a dtype is settled in `reference`.
        reference, others: the models. formats: of every feature that a task may ask for.
    """

    pairs: str
    store: str
    fingerprint: str
    settings: ReferenceSection
    reference: FrozenReference
    others: OtherModels
    formats: Mapping[str, FeatureFormat]


@dataclass(frozen=True)
class ShardTask:
    """One shard of the pairs, and the features that it lacks."""

    split: str
    number: int
    features: tuple[str, ...]


@dataclass(frozen=True)
class ScoredShard:
    """What became of a shard: its rows that could not be scored, and why."""

    failed: Mapping[int, str]


@dataclass
class _Window:
    """Consecutive rows of a shard: their pairs, and why some of them failed."""

    first: int
    pairs: list[TokenizedPair]
    prompts: list[str]  # empty unless they are embedded
    failures: dict[int, str] = field(default_factory=dict)

    def lengths(self, feature: str) -> list[list[int]]:
        """Values of every row in the feature's columns: scored tokens of both sides, or one."""
        if FEATURES[feature].per == "pair":
            return [[1] * len(self.pairs)]
        sides = [(*pair.num_scored(), 0)[:2] for pair in self.pairs]
        return [[side[at] for side in sides] for at in (0, 1)]

    def sides_of(self, rows: Sequence[int]) -> list[Tensor]:
        """Places of the chosen and the rejected responses' tokens in some rows' canonical order."""
        lengths = [scored for row in rows for scored in self.pairs[row].num_scored()]
        side = np.concatenate([np.arange(len(self.pairs[row].responses())) for row in rows])
        of_token = np.repeat(side, lengths)
        return [torch.from_numpy(np.flatnonzero(of_token == wanted)) for wanted in (0, 1)]


class ShardScorer:
    """Actor: scores whole shards and publishes their feature files.

    Models are loaded when a feature first needs them.
    """

    def __init__(self, facts: Scoring) -> None:
        self._facts, self._settings = facts, facts.settings
        self._device = compute_device()
        self._store = RunStore(facts.store)
        self._pairs = read_pairs(RunStore(facts.pairs))
        self._budget = batch_tokens(facts.settings, self._device)
        self._models = threading.Lock()
        self._has_backward = False

    @cached_property
    def _reference(self) -> ReferenceModel:
        return load_reference(
            self._facts.reference,
            self._device,
            self._settings.gpus_per_model if self._device.type == "cuda" else 1,
        )

    @cached_property
    def _scorers(self) -> tuple[Any, Any]:
        dtype = reference_dtype(self._facts.reference.dtype, self._device)
        return load_scorers(
            self._facts.others, lambda: self._reference.causal_lm, dtype, self._device
        )

    @cached_property
    def _embedder(self) -> PromptEmbedder:
        name = self._facts.others.embedder
        return PromptEmbedder(
            name, None if name is not None else self._reference.causal_lm, self._device
        )

    @cached_property
    def _vocabulary(self) -> int:
        return int(self._reference.causal_lm.get_input_embeddings().weight.shape[0])

    @cached_property
    def _reference_layout(self) -> BatchLayout:
        return self._layout_for([self._reference.causal_lm])

    @cached_property
    def _scorer_layout(self) -> BatchLayout:
        return self._layout_for(list(self._scorers))

    def _layout_for(self, models: list[Any]) -> BatchLayout:
        return batch_layout(
            "reference.layout",
            self._settings.layout,
            models,
            self._budget,
            longest=self._facts.reference.longest,
        )

    def __call__(self, task: ShardTask) -> ScoredShard:
        try:
            return self._score_shard(task)
        except torch.OutOfMemoryError as error:
            raise StageFailed(
                f"out of memory on {self._device_name()} with {self._budget} tokens per batch: "
                "lower reference.batch_tokens"
            ) from error

    def _score_shard(self, task: ShardTask) -> ScoredShard:
        split, number, features = task.split, task.number, task.features
        if "saliency" in features:
            self._check_saliency()
        texts = ("prompt",) if "prompt_embedding" in features else ()
        self._pairs.check(split, slice(number, number + 1))
        table = self._pairs.shard(split, number, (*TOKEN_COLUMNS, *texts))
        formats = {name: self._facts.formats[name] for name in features}
        schemas = {
            name: feature_schema(name, form, split, number, self._facts.fingerprint)
            for name, form in formats.items()
        }
        failures: dict[int, str] = {}
        tokens = 0
        topk_error: dict[str, float] | None = None
        with contextlib.ExitStack() as files:
            writers = {
                name: files.enter_context(
                    self._store.table_writer(
                        feature_path(name, split, number), schema, compression=None
                    )
                )
                for name, schema in schemas.items()
            }
            for window in self._windows(table):
                with self._models:
                    columns = self._score_window(window, formats)
                    if (
                        "reference_topk" in features
                        and split == "train"
                        and number == 0
                        and window.first == 0
                    ):
                        topk_error = self._topk_error(window)
                self._note_infinite(columns, window)
                for name, sides in columns.items():
                    arrays = [side.array(window.failures) for side in sides]
                    writers[name].write(pa.table(arrays, schema=schemas[name]))
                failures |= {window.first + row: reason for row, reason in window.failures.items()}
                tokens += sum(sum(pair.num_scored()) for pair in window.pairs)
        head = {}
        if "reference_hidden" in features and number == 0:
            head = {"head": write_head(self._store, self._reference.head)}
        failed = {str(row): reason for row, reason in sorted(failures.items())}
        marker: dict[str, Any] = {"tokens": tokens, "failed": failed, "device": self._device_name()}
        for name, writer in writers.items():
            extra = (
                {"topk_error": topk_error}
                if name == "reference_topk" and topk_error is not None
                else {}
            ) | (head if name == "reference_hidden" else {})
            write_record(
                self._store,
                marker_path(name, split, number),
                {**marker, **extra, "sha256": writer.sha256, "bytes": writer.num_bytes},
            )
        return ScoredShard(failures)

    def _check_saliency(self) -> None:
        """UserError for a reference whose backward cannot be taken, before any row is tried."""
        with self._models:
            if self._has_backward:
                return
            try:
                check_saliency(self._reference.causal_lm)
            except ValueError as error:
                name = self._facts.reference.name
                raise UserError(f"the reference {name}: {error}") from error
            self._has_backward = True

    def _windows(self, table: pa.Table) -> Iterator[_Window]:
        """Consecutive rows of at most a few full batches' tokens."""
        limit, used = _WINDOW_BATCHES * self._budget, 0
        pairs = pairs_of(table)
        prompts = table["prompt"] if "prompt" in table.column_names else pa.array([], pa.string())
        first = 0
        for row, pair in enumerate(pairs):
            width = pair.shared_width()
            if row > first and used + width > limit:
                yield _Window(first, pairs[first:row], prompts[first:row].to_pylist())
                first, used = row, 0
            used += width
        if pairs:
            yield _Window(first, pairs[first:], prompts[first:].to_pylist())

    def _score_window(
        self, window: _Window, formats: dict[str, FeatureFormat]
    ) -> dict[str, list[ColumnBuilder]]:
        """Feature -> its columns of the window's rows, on their way to the CPU.

        The GPU is not waited for, so that another thread's window follows without a gap.
        """
        columns = {
            name: [ColumnBuilder(n, form, self._device_of(name)) for n in window.lengths(name)]
            for name, form in formats.items()
        }
        for origin in sorted({FEATURES[name].origin for name in formats}):
            names = [name for name in formats if FEATURES[name].origin == origin]
            layout = self._layout(origin)
            usable = [
                row for row in range(len(window.pairs)) if not self._obstacle(window, row, origin)
            ]
            for indices in layout.batches([window.pairs[row] for row in usable]):
                for rows, found in self._score_rows(
                    [usable[index] for index in indices], window, origin, names, layout
                ):
                    self._put(columns, rows, found, window)
        for sides in columns.values():
            for side in sides:
                side.fetch()
        return columns

    def _note_infinite(self, columns: dict[str, list[ColumnBuilder]], window: _Window) -> None:
        for name, sides in columns.items():
            for row in (row for side in sides for row in side.infinite_rows()):
                window.failures.setdefault(row, f"{name} is not finite")

    def _device_of(self, feature: str) -> torch.device:
        """Where a feature's values come to be."""
        if FEATURES[feature].origin == "reference":
            return self._reference.head.weight.device
        return torch.device("cpu") if feature == "prompt_embedding" else self._device

    def _put(
        self,
        columns: dict[str, list[ColumnBuilder]],
        rows: list[int],
        found: dict[str, Tensor],
        window: _Window,
    ) -> None:
        sides = window.sides_of(rows)
        for name, values in found.items():
            if FEATURES[name].per == "pair":
                columns[name][0].put(rows, values)
                continue
            for column, indices in zip(columns[name], sides, strict=True):
                column.put(
                    rows, values.index_select(0, indices.to(values.device, non_blocking=True))
                )

    def _layout(self, origin: str) -> BatchLayout:
        if origin == "embedder":
            return BatchLayout("padded", self._budget)
        return self._reference_layout if origin == "reference" else self._scorer_layout

    def _obstacle(self, window: _Window, row: int, origin: str) -> bool:
        """Whether a row cannot be scored at all.

        A GPU would be lost to a token beyond its embeddings.
        """
        if self._reads_reference(origin):
            largest = max(
                int(np.max(ids))
                for ids in (window.pairs[row].prompt, *window.pairs[row].responses())
            )
            if largest >= self._vocabulary:
                window.failures[row] = (
                    f"token {largest} is beyond the reference's vocabulary of {self._vocabulary}"
                )
        return row in window.failures

    def _reads_reference(self, origin: str) -> bool:
        """Whether the reference reads the rows: also in the place of a scorer that is missing."""
        others = self._facts.others
        return origin == "reference" or (origin == "scorers" and None in others.scorers().values())

    def _score_rows(
        self, rows: list[int], window: _Window, origin: str, names: list[str], layout: BatchLayout
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Score a batch; if that fails, its rows one by one."""
        try:
            found = self._score_batch(rows, window, origin, names, layout)
        except torch.OutOfMemoryError as error:
            if len(rows) > 1:
                raise
            window.failures[rows[0]] = str(error).splitlines()[0]
        except (ValueError, RuntimeError, IndexError) as error:
            if len(rows) == 1:
                window.failures[rows[0]] = str(error).splitlines()[0] or type(error).__name__
            else:
                for row in rows:
                    yield from self._score_rows([row], window, origin, names, layout)
        else:
            yield rows, found

    def _score_batch(
        self, rows: list[int], window: _Window, origin: str, names: list[str], layout: BatchLayout
    ) -> dict[str, Tensor]:
        """Feature -> [S, ...] in canonical order, or [rows, e]."""
        pairs = [window.pairs[row] for row in rows]
        if origin == "embedder":
            return {
                "prompt_embedding": self._embedder.embed(
                    [window.prompts[row] for row in rows], pairs
                )
            }
        inputs = layout.inputs(pairs).to(self._device)
        if origin == "scorers":
            positive, negative = scorer_logps(*self._scorers, inputs)
            scored = {
                "scorer_log_ratios": positive - negative,
                "positive_logps": positive,
                "negative_logps": negative,
            }
            return {name: scored[name] for name in names}
        features = self._reference.features(inputs, names)
        found: dict[str, Tensor] = {name: getattr(features, name) for name in names}
        if "reference_layers" in found and self._settings.layers_dtype == "int8":
            if not bool(found["reference_layers"].isfinite().all()):
                raise ValueError("reference_layers is not finite")  # int8 could not say so
            found["reference_layers"] = pack_states(found["reference_layers"])
        return found

    @torch.no_grad()
    def _topk_error(self, window: _Window) -> dict[str, float] | None:
        """What top-k loses of the KL, on the first tokens.

        Hidden states moved by noise take the policy's place. At this point the policy still is the
        reference, whose KL is zero either way.
        """
        pairs = [pair for row, pair in enumerate(window.pairs) if row not in window.failures]
        if not pairs:
            return None
        layout = self._reference_layout
        inputs = layout.inputs([pairs[index] for index in layout.batches(pairs)[0]]).to(
            self._device
        )
        hidden = self._reference.features(inputs, ["reference_hidden"]).reference_hidden
        assert hidden is not None
        hidden, labels, head = (
            hidden[:_TOPK_SAMPLE],
            inputs.labels[:_TOPK_SAMPLE].to(hidden.device),
            self._reference.head,
        )
        topk = topk_of(hidden, head, self._facts.reference.topk)
        noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden)
        moved = hidden + 0.1 * hidden.float().std().to(hidden.dtype) * noise
        exact = score_tokens(moved, head, labels, hidden, head)[1]
        kept = score_tokens(moved, head, labels, reference_topk=topk)[1]
        assert exact is not None and kept is not None
        return {
            "tokens": float(len(labels)),
            "tail_mass_mean": float(topk.tail_logps.exp().mean()),
            "kl_exact": float(exact.mean()),
            "kl_topk": float(kept.mean()),
            "relative_error": float((exact - kept).mean() / exact.mean().clamp_min(1e-12)),
        }

    def _device_name(self) -> str:
        return torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"
