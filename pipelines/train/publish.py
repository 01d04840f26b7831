"""The model that a training publishes, with its masks: written while the last checkpoint is.

Both are staged in the stage's folder under temporary names, hashed and forced to the disk there.
They get their names once the last checkpoint is complete: a run that is killed before goes on from
a checkpoint, and what is published is whole.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipelines.recipe import MASKS, MODEL, PUBLISHED
from pipelines.storage import RunStore, hashes_of_written, write_record
from pipelines.train.facts import TrainingFacts
from pipelines.train.policy import write_model
from pipelines.train.strategy import Strategy
from sparsepo.masks import LearnedMasks
from sparsepo.model import PolicyModel

_CHECKED = (".safetensors", ".json")  # files whose checksums the manifest holds


class Publication:
    """What rank 0 stages and then publishes. Other ranks only help to stage it."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._folders: dict[str, Path] = {}  # by the name that each will have
        self._hashes: dict[str, str] = {}

    def stage(
        self,
        facts: TrainingFacts,
        policy: PolicyModel,
        strategy: Strategy,
        copies: Mapping[str, Tensor],
    ) -> None:
        """Write everything under temporary names. Every rank must call it.

        Args:
            copies: the policy's parameters as they are on the host already, by name.
        """
        masks = policy.masks if isinstance(policy.masks, LearnedMasks) else None
        if strategy.placement.rank == 0:
            self._folders[MODEL] = self._store.staging_directory()
            if masks is not None:
                self._folders[MASKS] = self._store.staging_directory()
        target = self._folders.get(MODEL)
        with self._store.told_where(MODEL, target or Path()):
            if masks is not None and MASKS in self._folders:
                masks.save_pretrained(self._folders[MASKS])
            write_model(facts, policy.causal_lm, strategy, target, copies)
            files = {
                f"{name}/{file.name}": file
                for name, folder in self._folders.items()
                for file in sorted(folder.iterdir())
                if file.name.endswith(_CHECKED)
            }
            hashes = hashes_of_written(list(files.values()), self._store.is_local)
        self._hashes = dict(zip(files, hashes, strict=True))

    def publish(self) -> None:
        """Give everything its name, and leave the checksums to the driver."""
        if self._folders:
            write_record(self._store, PUBLISHED, self._hashes)
        for name, folder in self._folders.items():
            self._store.publish_directory(folder, name)

    def discard(self) -> None:
        """Remove what was staged and will not be published."""
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)
