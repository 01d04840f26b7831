"""Shards: disjoint parts of a sweep, for machines that know nothing of each other.

Trial i of a sweep's list belongs to shard i mod n + 1 of n. The list is a function of the sweep
file alone, so that the union of all shards is the sweep, whoever runs which of them.
"""

import re
from dataclasses import dataclass

_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")
_FOLDER = re.compile(r"(\d{1,6})-of-(\d{1,6})")
SHARDS = "shards"  # below a sweep's run_dir: a directory for each


@dataclass(frozen=True)
class Shard:
    """Shard `number` (from 1) of `of`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """A shard as it is typed, 2/6. Raises: ValueError naming what is allowed."""
        match = _SHARD.fullmatch(text)
        if match is None:
            raise ValueError(f"shard = {text!r}: write K/N, such as 2/6")
        shard = cls(int(match[1]), int(match[2]))
        if shard.of < 1:
            raise ValueError(f"shard = {text}: a sweep has at least 1 shard")
        if not 1 <= shard.number <= shard.of:
            raise ValueError(
                f"shard = {text}: shards of {shard.of} are 1/{shard.of} to {shard.of}/{shard.of}"
            )
        return shard

    @classmethod
    def of_folder(cls, name: str) -> "Shard | None":
        """The shard whose directory is called so; None if it is none's."""
        match = _FOLDER.fullmatch(name)
        return None if match is None else cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def folder(self) -> str:
        """Below the sweep's run_dir."""
        return f"{SHARDS}/{self.number}-of-{self.of}"

    def holds(self, trial: int) -> bool:
        """Whether trial number `trial` of the whole sweep is one of this shard's."""
        return trial % self.of == self.number - 1

    def check(self, trials: int) -> None:
        """Raises: ValueError if some shard of a sweep with so many trials has none."""
        if self.of > trials:
            empty = f"{trials + 1}/{self.of}"
            more = f" to {self.of}/{self.of}" if self.of > trials + 1 else ""
            are = "are" if more else "is"
            raise ValueError(
                f"shard = {self}: the sweep has {trials} trial{'s' * (trials != 1)}, so that shard "
                f"{empty}{more} {are} empty: make at most {trials}"
            )
