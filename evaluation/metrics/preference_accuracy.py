"""Share of pairs whose chosen response scores higher.

Range: [0, 1]; chance 0.5; a tie counts one half. Higher is better.
"""

from typing import Any

import datasets
import evaluate
import numpy as np


def preference_hits(chosen: list[float], rejected: list[float]) -> list[float]:
    """Per pair 1 if chosen > rejected, 0.5 for a tie, else 0. ValueError if the lengths differ."""
    if len(chosen) != len(rejected):
        raise ValueError(f"{len(chosen)} chosen and {len(rejected)} rejected scores")
    difference = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    hits: list[float] = ((difference > 0) + 0.5 * (difference == 0)).tolist()
    return hits


class PreferenceAccuracy(evaluate.Metric):
    """compute(predictions=chosen scores, references=rejected scores) -> {"accuracy"}."""

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, Any]:
        hits = preference_hits(predictions, references)
        return {"accuracy": sum(hits) / len(hits)}
