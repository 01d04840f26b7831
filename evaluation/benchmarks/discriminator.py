"""How well a discriminator of tokens knows held-out tokens, and how far its word can be taken."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evaluation.intervals import mean_interval, rate_interval
from evaluation.metrics.auc import auc_interval
from evaluation.metrics.calibration import calibration_bins, calibration_interval


def discriminator_benchmark(
    probabilities: ArrayLike, labels: ArrayLike, prompts: Sequence[Hashable]
) -> dict[str, Any]:
    """Figures of labelled tokens, with intervals over prompts.

    `accuracy`: share of tokens whose D is on their label's side of 1/2, a tie counts one half;
    `accuracy/majority`: that of always saying the commoner label. `auc`: share of (good, bad) pairs
    of tokens that D ranks rightly. `ece`: expected calibration error in ten bins; `brier`: mean
    squared error.

    Args:
        probabilities: [n] in [0, 1], D. labels: [n], whether a token is good. prompts: [n], equal
            for tokens that answer one prompt.
    Raises: ValueError for no token, or lengths that differ.
    """
    given, good = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=bool)
    if not given.size == good.size == len(prompts) or given.size == 0:
        raise ValueError(
            f"{given.size} probabilities, {good.size} labels and {len(prompts)} prompts: all must "
            "be as many, one at least"
        )
    right = np.where(given == 0.5, 0.5, (given > 0.5) == good)
    commoner = good if good.mean() >= 0.5 else ~good
    return {
        "num_tokens": int(given.size),
        "num_good": int(good.sum()),
        "num_prompts": len(set(prompts)),
        "accuracy": rate_interval(right, prompts).as_dict(),
        "accuracy/majority": rate_interval(commoner, prompts).as_dict(),
        "auc": auc_interval(given, good, prompts).as_dict(),
        "auc/chance": 0.5,
        "ece": calibration_interval(given, good, prompts).as_dict(),
        "brier": mean_interval((given - good) ** 2, prompts).as_dict(),
        "calibration": calibration_bins(given, good),
    }
