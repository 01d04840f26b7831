"""Whether stated probabilities come true. Range: [0, 1]. Lower is better.

`expected_calibration_error`: mean distance between probability and frequency over bins of equal
width; `brier`: mean squared error.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from evaluation.intervals import Interval, cluster_numbers, jackknife_interval


def calibration_bins(
    probabilities: Any, outcomes: Any, num_bins: int = 10
) -> list[dict[str, float]]:
    """Per non-empty bin of equal width on [0, 1]: mean probability, mean outcome, count.

    Args:
        probabilities: [n] in [0, 1]. outcomes: [n], 1 where it came true, 0 where not, 0.5 for a
            tie.
    Raises: ValueError for lengths that differ, no value, or a probability outside [0, 1].
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if p.shape != y.shape or p.size == 0:
        raise ValueError(
            f"{p.size} probabilities and {y.size} outcomes: both must be as many, one at least"
        )
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"probabilities reach from {p.min():g} to {p.max():g}: must be in [0, 1]")
    # Not scikit-learn's calibration_curve: outcomes there are 0 or 1, and no tie.
    bins = np.minimum((p * num_bins).astype(int), num_bins - 1)
    return [
        {
            "probability": float(p[bins == b].mean()),
            "outcome": float(y[bins == b].mean()),
            "count": int((bins == b).sum()),
        }
        for b in range(num_bins)
        if (bins == b).any()
    ]


def expected_calibration_error(probabilities: Any, outcomes: Any, num_bins: int = 10) -> float:
    """Mean over all values of the distance between their bin's mean probability and mean outcome.

    Source: Guo et al., arXiv:1706.04599.
    """
    found = calibration_bins(probabilities, outcomes, num_bins)
    total = sum(b["count"] for b in found)
    return sum(b["count"] * abs(b["probability"] - b["outcome"]) for b in found) / total


def calibration_interval(
    probabilities: Any, outcomes: Any, clusters: Sequence[Hashable], num_bins: int = 10
) -> Interval:
    """`expected_calibration_error` with its interval over clusters.

    The limits come from the jackknife: they hold the spread, not the bias of a binned error, which
    is above 0 even where all probabilities are true.

    Args:
        clusters: [n], equal for values that belong together.
    """
    error = expected_calibration_error(probabilities, outcomes, num_bins)
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    numbers = cluster_numbers(clusters)
    count = int(numbers.max()) + 1
    cell = numbers * num_bins + np.minimum((p * num_bins).astype(int), num_bins - 1)
    # Of every cluster and bin the sum of p - y, and how many values there are.
    gaps, sizes = (
        np.bincount(cell, weights, count * num_bins).reshape(count, num_bins)
        for weights in (p - y, np.ones(p.size))
    )
    left = np.maximum(p.size - sizes.sum(1), 1)
    without = np.abs(gaps.sum(0) - gaps).sum(1) / left
    return jackknife_interval(error, without, (0.0, 1.0))


class Calibration(evaluate.Metric):
    """compute(predictions=probabilities, references=outcomes, num_bins=10).

    Returns: {"expected_calibration_error", "brier"}.
    """

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(
        self, predictions: list[float], references: list[float], num_bins: int = 10
    ) -> dict[str, Any]:
        error = np.asarray(predictions) - np.asarray(references)
        return {
            "expected_calibration_error": expected_calibration_error(
                predictions, references, num_bins
            ),
            # Not scikit-learn's brier_score_loss, for the same reason.
            "brier": float((error**2).mean()),
        }
