"""The exported masks: learned ones as the library loads them, and stored features pair by pair."""

import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.errors import StageFailed
from pipelines.export.finished import FinishedRun
from pipelines.pairs import SPLITS, PairTable, shard_name
from pipelines.recipe import MANIFEST, MASKS, Say, read_manifest
from pipelines.reference import FeatureSource, finished_reference
from sparsepo import LearnedMasks
from sparsepo.features import FEATURES


def write_masks(run: FinishedRun, folder: Path, say: Say) -> tuple[str, ...]:
    """Write the run's masks into a folder, which is made if there are any.

    Of a mask that is not learned those features are written that it reads per token and that the
    run has stored: `sparsepo.token_weights` takes them. A file per shard of the pairs holds
    `PAIR_ID/FEATURE` -> [tokens of chosen and rejected].

    Returns: the features; none of learned masks.
    """
    train = run.paths.train
    if train.exists(MASKS):
        with train.as_local_directory(MASKS) as source:
            shutil.copytree(source, folder)
        return ()
    stored = _Stored.of(run, say)
    if stored.names:
        folder.mkdir()
        for split in SPLITS:
            for number, rows in stored.shards(split):
                if tensors := dict(stored.values(split, rows)):
                    save_file(tensors, folder / f"{shard_name(split, number)}.safetensors")
    return stored.names


def check_masks(run: FinishedRun, folder: Path, stored: tuple[str, ...]) -> str:
    """Read the masks again; a line that says so, empty without masks.

    Raises: StageFailed if they are not the run's.
    """
    train = run.paths.train
    if train.exists(MASKS):
        with train.as_local_directory(MASKS) as source:
            ours, theirs = (LearnedMasks.from_pretrained(f) for f in (folder, source))
        own, wanted = ours.state_dict(), theirs.state_dict()
        same = own.keys() == wanted.keys() and all(torch.equal(own[n], wanted[n]) for n in wanted)
        if not same or ours.config != theirs.config:
            raise StageFailed("the exported masks are not those of the run")
        return "masks: LearnedMasks.from_pretrained reads the run's masks, bit for bit"
    if not stored:
        return ""
    files, read = sorted(folder.iterdir()), 0
    for file in files:
        with safe_open(file, "pt") as tensors:
            read += len(list(tensors.keys()))
    return f"masks: {', '.join(stored)} of {read // len(stored):,} pairs in {len(files)} files"


@dataclass(frozen=True)
class _Stored:
    """Features that a mask reads per token, one number each, and that the run has on a disk.

    Attributes:
        failed: split -> rows that the reference stage could not score.
    """

    names: tuple[str, ...]
    pairs: PairTable
    source: FeatureSource
    failed: Mapping[str, Container[int]]

    @classmethod
    def of(cls, run: FinishedRun, say: Say) -> "_Stored":
        pairs, reference = run.pair_table(), run.paths.reference
        read = {name for name in run.recipe.mask.requires() if FEATURES[name].per == "token"}
        from_pairs = {name for name in read if FEATURES[name].origin == "pairs"}
        store, failed = None, {}
        scored = (read - from_pairs) & run.recipe.stored_features()
        if scored and not reference.exists(MANIFEST):
            say(f"masks: {reference.root} is not there any more, so its features are left out")
            scored = set()
        if scored:
            store = finished_reference(reference, str(run.train["inputs"]["reference"]), pairs)
            told = read_manifest(reference)["counts"]["failed"]
            failed = {split: frozenset(map(int, rows)) for split, rows in told.items()}
        source = FeatureSource(pairs, from_pairs | scored, store=store)
        found = cls((), pairs, source, failed)
        return replace(found, names=found._numbers(from_pairs | scored))

    def _numbers(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those that are one number per token."""
        for split in SPLITS:
            for _, rows in self.shards(split):
                for row in rows:
                    read = self.source.read(split, [row])
                    return tuple(n for n in sorted(names) if getattr(read, n).ndim == 1)
        return ()

    def shards(self, split: str) -> Iterator[tuple[int, list[int]]]:
        """(number, rows that were scored) of every shard of the pairs."""
        start, failed = 0, self.failed.get(split, ())
        for number in range(self.pairs.num_shards(split)):
            rows = range(start, start + self.pairs.shard_rows(split, number))
            start = rows.stop
            yield number, [row for row in rows if row not in failed]

    def values(self, split: str, rows: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of some rows."""
        ids = self.pairs.values(split, rows, ("pair_id",))
        for row, (pair,) in zip(rows, ids, strict=True):
            read = self.source.read(split, [row])
            for name in self.names:
                yield f"{pair}/{name}", getattr(read, name).float().contiguous()
