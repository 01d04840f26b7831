"""Brevity of texts.

Unit: minus the words of a text as a share of a limit. Range: [-1, 0]. Higher is shorter.
"""

from typing import Any

import datasets
import evaluate


def brevity_scores(texts: list[str], most_words: int = 100) -> list[float]:
    """Minus the words of each text over `most_words`; -1 from so many words on, 0 for none.

    A word is what stands between white space.

    Raises: ValueError for most_words < 1.
    """
    if most_words < 1:
        raise ValueError(f"most_words = {most_words}: must be at least 1")
    return [-min(len(text.split()), most_words) / most_words for text in texts]


class Brevity(evaluate.Metric):
    """compute(predictions=texts, most_words=100) -> {"mean", "scores"}."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], most_words: int = 100) -> dict[str, Any]:
        scores = brevity_scores(predictions, most_words)
        return {"mean": sum(scores) / len(scores), "scores": scores}
