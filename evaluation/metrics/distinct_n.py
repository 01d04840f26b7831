"""Diversity of texts: distinct n-grams over all n-grams. Range: [0, 1]. Higher is more varied."""

from typing import Any

import datasets
import evaluate


def distinct_n(texts: list[str], n: int = 2) -> float:
    """Share of distinct word n-grams among all word n-grams of the texts; 0 if there is none.

    It falls with the amount of text: compare samples of like number and length only. Source: Li et
    al., arXiv:1510.03055.
    """
    if n < 1:
        raise ValueError(f"n={n}: must be >= 1")
    grams = []
    for text in texts:
        words = text.split()
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


class DistinctN(evaluate.Metric):
    """compute(predictions=texts, n=2) -> {"distinct_n"}."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], n: int = 2) -> dict[str, Any]:
        return {"distinct_n": distinct_n(predictions, n)}
