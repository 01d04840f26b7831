"""Fitting a map of the hidden state on preference pairs, by the merged policy's own likelihood.

Ours: the loss is DPO's, with the merge at equal weights as reference and the merge by the map as
policy. The models stay as they are; each is run once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.intervals import mean_interval, rate_interval
from pipelines.errors import StageFailed, UserError
from pipelines.merge.map_weights import numbers_of
from pipelines.merge.schema import MapSection
from pipelines.models import (
    compute_device,
    load_causal_lm,
    reference_dtype,
    resolve_model,
    sums_in_one_order,
)
from pipelines.pairs import PairTable, read_pairs
from pipelines.storage import RunStore
from sparsepo import LMHead, head_of, score_tokens
from sparsepo.batching.cutting import token_budget_batches
from sparsepo.batching.layouts import padded_layout
from sparsepo.merging import Form, WeightMap, mixed_label_logps, product_label_logps
from sparsepo.model import scored_states

_CHUNK_LOGITS = 2**25  # logits of a model at a time


@dataclass(frozen=True)
class FitFacts:
    """What a `MapFitter` needs. Attributes: models: name or path of each. pairs: root of them."""

    settings: MapSection
    models: tuple[str, ...]
    pairs: str
    batch_tokens: int


@dataclass(frozen=True)
class FitMap:
    """Fit the map of one form."""

    number: int
    form: Form

    @property
    def kind(self) -> str:
        return f"map-{self.form}"


@dataclass(frozen=True)
class _Response:
    """What the models say of a response's scored tokens.

    Attributes:
        labels: [n]. logps: [K, n], of the labels. states: of each model [n, d].
    """

    labels: Tensor
    logps: Tensor
    states: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Pair:
    prompt: str
    chosen: _Response
    rejected: _Response


def map_splits(pairs: PairTable, num_pairs: int) -> dict[str, range]:
    """The rows that a map learns from, and those that judge it: split -> rows; maybe none."""
    held_out = next((s for s in ("test", "validation") if pairs.num_rows(s)), "test")
    return {
        "train": range(min(num_pairs, pairs.num_rows("train"))),
        held_out: range(min(max(1, num_pairs // 4), pairs.num_rows(held_out))),
    }


class MapFitter:
    """Actor: runs each model once over the pairs, then fits on what it has kept."""

    def __init__(self, facts: FitFacts) -> None:
        self._facts, self._settings = facts, facts.settings
        self._device = compute_device()
        self._heads: list[LMHead] = []
        self._known: dict[str, list[_Pair]] = {}

    def __call__(self, task: FitMap) -> dict[str, Any]:
        """The map's numbers, its loss by step, and what held-out pairs say of it."""
        with sums_in_one_order(self._device):
            return self._fitted(task)

    def _fitted(self, task: FitMap) -> dict[str, Any]:
        if not self._known:
            self._run_models()
        train, *others = self._known.values()
        settings = self._settings
        state_size = train[0].chosen.states[0].shape[1]
        weight_map = WeightMap(state_size, len(self._heads)).to(self._device)
        optimizer = torch.optim.Adam(weight_map.parameters(), lr=settings.learning_rate)
        order = torch.Generator().manual_seed(settings.seed)
        losses: list[float] = []
        waiting: list[int] = []
        for _ in range(settings.steps):
            if len(waiting) < min(settings.batch_pairs, len(train)):
                waiting = torch.randperm(len(train), generator=order).tolist()
            some = [train[i] for i in waiting[: settings.batch_pairs]]
            waiting = waiting[settings.batch_pairs :]
            loss = F.softplus(-settings.beta * self._margins(weight_map, some, task.form)).mean()
            if not bool(loss.isfinite()):
                raise StageFailed(
                    f"map: its loss is {float(loss)} after {len(losses)} steps: lower "
                    "map.learning_rate"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        held_out = self._judged(weight_map, others[0], task.form) if others and others[0] else None
        return {
            "numbers": numbers_of(weight_map.cpu()),
            "losses": losses,
            "train_pairs": len(train),
            "held_out": held_out,
        }

    @torch.no_grad()
    def _judged(self, weight_map: WeightMap, pairs: Sequence[_Pair], form: Form) -> dict[str, Any]:
        """Loss, accuracy and mean weights on pairs that the map has not seen, with intervals."""
        margins = torch.cat(
            [
                self._margins(weight_map, pairs[at : at + self._settings.batch_pairs], form)
                for at in range(0, len(pairs), self._settings.batch_pairs)
            ]
        )
        prompts = [pair.prompt for pair in pairs]
        states = torch.cat([s.states[0] for p in pairs for s in (p.chosen, p.rejected)])
        return {
            "pairs": len(pairs),
            "loss": mean_interval(
                F.softplus(-self._settings.beta * margins).tolist(), prompts
            ).as_dict(),
            "accuracy": rate_interval((margins > 0).double().tolist(), prompts).as_dict(),
            "mean_weights": weight_map(states).double().mean(0).tolist(),
        }

    def _margins(self, weight_map: WeightMap, pairs: Sequence[_Pair], form: Form) -> Tensor:
        """[pairs]: by how much the log ratio of chosen to rejected grows over equal weights."""
        responses = [r for pair in pairs for r in (pair.chosen, pair.rejected)]
        weights = weight_map(torch.cat([r.states[0] for r in responses]))
        equal = torch.full_like(weights, 1 / weights.shape[1]).detach()
        ratios = self._logps(responses, weights, form) - self._logps(responses, equal, form)
        sums = torch.stack(
            [part.sum() for part in ratios.split([len(r.labels) for r in responses])]
        )
        return sums[::2] - sums[1::2]

    def _logps(self, responses: Sequence[_Response], weights: Tensor, form: Form) -> Tensor:
        """[n] log-probabilities of all responses' tokens under the merge."""
        own = torch.cat([r.logps for r in responses], dim=1)
        if form == "mixture":
            return mixed_label_logps(own, weights)
        states = [torch.cat(parts) for parts in zip(*(r.states for r in responses), strict=True)]
        size = max(1, _CHUNK_LOGITS // len(self._heads[0].weight))
        return torch.cat(
            [
                product_label_logps(
                    own[:, at : at + size],
                    weights[at : at + size],
                    lambda at=at: torch.stack(  # type: ignore[misc]
                        [
                            head.logits(own_states[at : at + size]).float().log_softmax(-1)
                            for head, own_states in zip(self._heads, states, strict=True)
                        ]
                    ),
                )
                for at in range(0, len(weights), size)
            ]
        )

    @torch.no_grad()
    def _run_models(self) -> None:
        table = read_pairs(RunStore(self._facts.pairs))
        splits = map_splits(table, self._settings.num_pairs)
        found: dict[str, list[list[tuple[Tensor, ...]]]] = {}
        for model in self._facts.models:
            dtype = reference_dtype("auto", self._device)
            causal_lm = load_causal_lm(str(resolve_model(model)), dtype, self._device)
            head = head_of(causal_lm).detached()
            self._heads.append(head)
            for split, rows in splits.items():
                found.setdefault(split, []).append(
                    self._scored(causal_lm, head, table, split, rows)
                )
        for split, rows in splits.items():
            hashes = [prompt for (prompt,) in table.values(split, rows, ["prompt_hash"])]
            self._known[split] = [
                _Pair(hashes[i], *(_joined([one[2 * i + side] for one in found[split]])
                                   for side in (0, 1)))
                for i in range(len(rows))
            ]  # fmt: skip

    def _scored(
        self, causal_lm: Any, head: LMHead, table: PairTable, split: str, rows: range
    ) -> list[tuple[Tensor, ...]]:
        """(labels, their log-probabilities, states) of every response, chosen before rejected."""
        pairs = table.pairs(split, rows)
        found: dict[int, tuple[Tensor, ...]] = {}
        widths = [pair.width() for pair in pairs]
        for batch in token_budget_batches(range(len(pairs)), widths, 2, self._facts.batch_tokens):
            inputs = padded_layout([pairs[i] for i in batch]).to(self._device)
            states = scored_states(causal_lm, inputs)
            logps = score_tokens(states, head, inputs.labels)[0]
            lengths = [scored for i in batch for scored in pairs[i].num_scored()]
            parts = zip(*(x.split(lengths) for x in (inputs.labels, logps, states)), strict=True)
            places = [2 * i + side for i in batch for side in (0, 1)]
            found |= dict(zip(places, parts, strict=True))
        return [found[place] for place in range(2 * len(pairs))]


def _joined(said: Sequence[tuple[Tensor, ...]]) -> _Response:
    """Args: said: (labels, log-probabilities, states) by each model."""
    return _Response(
        said[0][0], torch.stack([logps for _, logps, _ in said]), tuple(s for _, _, s in said)
    )


def check_map(pairs: PairTable, place: str, num_pairs: int) -> None:
    """UserError if a map would have no pair to learn from, or rows that are labelled alone."""
    rows = map_splits(pairs, num_pairs)["train"]
    if not rows:
        raise UserError(f"map.pairs: {place} holds no training pair")
    pairs.check("train", slice(1))
    if any(label is not None for (label,) in pairs.values("train", rows[:1], ["desirable"])):
        raise UserError(f"map.pairs: {place} holds labelled rows; a map is fitted on pairs")
