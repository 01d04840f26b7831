"""Which pairs each optimizer step sees: a pure function.

The global batch of a step depends on the number of rows, the seed and the global batch size alone,
so a restart, another worker count or another micro-batch budget sees the same pairs.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Sampler:
    """A deterministic permutation of the rows per epoch, cut into global batches.

    The last, smaller batch is kept.
    """

    num_rows: int
    global_batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_rows / self.global_batch_size)

    def num_steps(self, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps of a run: epochs (fractions rounded up to a step), at most max_steps."""
        steps = math.ceil(self.steps_per_epoch * epochs - 1e-9)
        return steps if max_steps is None else min(steps, max_steps)

    def pair_indices(self, step: int) -> list[int]:
        """Rows of the global batch of optimizer step 0, 1, ..."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _permutation(self.num_rows, self.seed, epoch)
        start = within * self.global_batch_size
        return [int(i) for i in order[start : start + self.global_batch_size]]


@lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)
