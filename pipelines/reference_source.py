"""Where a micro-batch's reference features come from: the store or a frozen model beside the policy.

Both answer the same call; the training loop cannot tell which one it has.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from pipelines.config import ActivationMaskSection, Recipe
from pipelines.models import load_causal_lm, reference_dtype
from pipelines.pair_table import PairTable
from pipelines.reference import open_reference, reference_model_dir
from pipelines.reference_store import ReferenceStore
from sparsepo import ReferenceModel
from sparsepo.kernels.token_scoring import LMHead
from sparsepo.records import ModelInputs, Features


class ReferenceSource(Protocol):
    def head(self) -> LMHead | None:
        """The reference's LM head, if the wanted features need one for the KL."""

    def features(self, split: str, rows: Sequence[int], inputs: ModelInputs) -> Features:
        """The wanted features of the rows' scored tokens, in canonical order, on the inputs' device."""


class StoredReference:
    """Reads what the reference stage wrote."""

    def __init__(self, store: ReferenceStore, wanted: frozenset[str]) -> None:
        self._store, self._wanted = store, sorted(wanted)

    def head(self) -> LMHead | None:
        return self._store.head() if "reference_hidden" in self._wanted else None

    def features(self, split: str, rows: Sequence[int], inputs: ModelInputs) -> Features:
        return self._store.features(split, rows, self._wanted).to(inputs.labels.device)


class OnlineReference:
    """Runs the frozen model on the micro-batch itself."""

    def __init__(self, model: ReferenceModel, wanted: frozenset[str]) -> None:
        self._model, self._wanted = model, wanted

    def head(self) -> LMHead | None:
        return self._model.head if "reference_hidden" in self._wanted else None

    def features(self, split: str, rows: Sequence[int], inputs: ModelInputs) -> Features:
        return self._model.features(inputs, self._wanted)


def reference_source(recipe: Recipe, pairs: PairTable, device: torch.device) -> ReferenceSource:
    """The source that recipe.reference.mode asks for. UserError if a stored one is missing or does not match."""
    wanted = recipe.required_features()
    if not wanted or recipe.reference_mode() == "online":
        if not wanted:
            return _NoReference()
        return OnlineReference(online_reference(recipe, device), wanted)
    return StoredReference(open_reference(recipe, pairs), wanted)


def online_reference(recipe: Recipe, device: torch.device) -> ReferenceModel:
    """The frozen reference model of a recipe on a device."""
    mask = recipe.mask
    hooks, mapping = (mask.hooks, mask.mapping) if isinstance(mask, ActivationMaskSection) else ("all", "zn_rescale")
    dtype = reference_dtype(recipe.reference.dtype, device)
    return ReferenceModel(load_causal_lm(reference_model_dir(recipe), dtype, device), hooks, mapping)


class _NoReference:
    """For objectives without a reference (sft)."""

    def head(self) -> LMHead | None:
        return None

    def features(self, split: str, rows: Sequence[int], inputs: ModelInputs) -> Features:
        return Features()
