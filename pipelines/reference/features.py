"""Where a micro-batch's features come from.

It is the pairs, the reference stage's store, or a frozen model beside the policy. The training loop
asks for features and cannot tell which.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.pairs import PairTable
from pipelines.reference.facts import ReferenceFacts
from pipelines.reference.model import load_reference
from pipelines.reference.store import ReferenceStore, open_reference
from sparsepo import ReferenceModel
from sparsepo.features import FEATURES
from sparsepo.kernels.token_scoring import LMHead
from sparsepo.records import Features, ModelInputs


class FeatureSource:
    """Answers for the features that objective and mask want.

    Args:
        pairs: the prepared pairs. wanted: names of Features' fields; those of the step and of the
            training loop come from there.
        online: the frozen reference, if it runs here; otherwise its features are read from the
            store.
        store: the finished reference stage; needed for every wanted feature that neither the pairs
            nor `online` give.
    """

    def __init__(
        self,
        pairs: PairTable,
        wanted: Iterable[str],
        online: ReferenceModel | None = None,
        store: ReferenceStore | None = None,
    ) -> None:
        wanted = frozenset(name for name in wanted if FEATURES[name].origin not in ("step", "loop"))
        self._pairs, self._model, self._store = pairs, online, store
        self._from_pairs = sorted(name for name in wanted if FEATURES[name].origin == "pairs")
        self._online = frozenset(
            n for n in wanted if online is not None and FEATURES[n].origin == "reference"
        )
        self._stored = sorted(wanted - self._online - set(self._from_pairs))
        self._needs_head = "reference_hidden" in wanted
        assert not self._stored or store is not None

    def head(self) -> LMHead | None:
        """The reference's LM head, if the wanted features need one for the KL."""
        if not self._needs_head:
            return None
        if self._model is not None:
            return self._model.head
        assert self._store is not None
        return self._store.head()

    def features(self, split: str, rows: Sequence[int], inputs: ModelInputs) -> Features:
        """The wanted features of the rows' scored tokens and pairs, in canonical order.

        They are on the inputs' device.

        Raises: UserError if the pairs or the store lack one.
        """
        return self.complete(self.read(split, rows), inputs)

    def read(self, split: str, rows: Sequence[int]) -> Features:
        """Those that are read rather than computed, on the CPU; no model is touched."""
        found: dict[str, Tensor] = {}
        if self._stored:
            assert self._store is not None
            found |= _present(self._store.features(split, rows, self._stored))
        for name in self._from_pairs:
            found[name] = _READERS[name](self._pairs, split, rows)
        return Features(**found)

    def fetch(self, split: str, rows: Sequence[int]) -> None:
        """Start to bring near what `read` will want of these rows, if an object store has it."""
        if self._stored:
            assert self._store is not None
            self._store.fetch(split, rows, self._stored)

    def complete(self, read: Features, inputs: ModelInputs) -> Features:
        """What was read, moved to the inputs' device.

        With it comes what the frozen reference computes there.
        """
        features = read.to(inputs.labels.device)
        if self._store is not None:
            features = self._store.expanded(features)
        if self._model is None or not self._online:
            return features
        return replace(features, **_present(self._model.features(inputs, self._online)))


def feature_source(
    facts: ReferenceFacts,
    pairs: PairTable,
    device: torch.device,
    online: ReferenceModel | None = None,
) -> FeatureSource:
    """The source that recipe.reference.mode asks for.

    UserError if a stored one is missing or does not match.

    Args:
        online: the frozen reference if it is loaded already; loaded here if one is needed.
    """
    if online is None and facts.online:
        online = load_reference(facts.model, device)
    return FeatureSource(
        pairs,
        facts.wanted,
        online,
        open_reference(facts, pairs) if facts.stored else None,
    )


def _present(features: Features) -> dict[str, Tensor]:
    return {name: value for name in FEATURES if (value := getattr(features, name)) is not None}


def _scores(pairs: PairTable, split: str, rows: Sequence[int]) -> Tensor:
    cure = (
        "set data.sources[].columns.chosen_score and rejected_score, or use the scored form "
        "(prompt, responses, scores)"
    )
    return torch.tensor(
        _both_sides(pairs, split, rows, ("chosen_score", "rejected_score"), f"no scores: {cure}"),
        dtype=torch.float64,
    )


def _weights(pairs: PairTable, split: str, rows: Sequence[int]) -> Tensor:
    cure = "set data.sources[].columns.chosen_weights and rejected_weights"
    values = _both_sides(
        pairs, split, rows, ("chosen_weights", "rejected_weights"), f"no token weights: {cure}"
    )
    return torch.tensor([weight for weights in values for side in weights for weight in side])


def _both_sides(
    pairs: PairTable, split: str, rows: Sequence[int], names: tuple[str, str], lacking: str
) -> list[tuple[Any, ...]]:
    """Two columns of the rows; UserError for the first row that has not both."""
    values = pairs.values(split, rows, names)
    for row, sides in zip(rows, values, strict=True):
        if None in sides:
            raise UserError(f"row {row} of the {split} pairs has {lacking}")
    return values


def _keys(pairs: PairTable, split: str, rows: Sequence[int]) -> Tensor:
    ids = pairs.values(split, rows, ("pair_id",))
    return torch.tensor(
        [
            int.from_bytes(hashlib.sha256(i.encode()).digest()[:8], "big", signed=True)
            for (i,) in ids
        ]
    )


_READERS = {"preference_scores": _scores, "external_weights": _weights, "pair_keys": _keys}
