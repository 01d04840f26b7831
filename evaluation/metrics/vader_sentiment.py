"""Sentiment of texts by VADER's lexicon.

Unit: compound score. Range: [-1, 1]. Higher is more positive.
"""

from functools import lru_cache
from typing import Any

import datasets
import evaluate


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def vader_scores(texts: list[str]) -> list[float]:
    """Compound score of each text; 0 for an empty one.

    Source: Hutto & Gilbert, ICWSM 2014 (package vaderSentiment).
    """
    return [float(_analyzer().polarity_scores(text)["compound"]) for text in texts]


class VaderSentiment(evaluate.Metric):
    """compute(predictions=texts) -> {"mean", "scores"}."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict[str, Any]:
        scores = vader_scores(predictions)
        return {"mean": sum(scores) / len(scores), "scores": scores}
