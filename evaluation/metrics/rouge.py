"""Overlap of summaries with references.

Unit: F1 of n-grams (rouge1, rouge2) or of the longest common subsequence (rougeL). Range: [0, 1].
Higher is better.
"""

from functools import lru_cache
from typing import Any

import datasets
import evaluate

KINDS = ("rouge1", "rouge2", "rougeL")


@lru_cache(maxsize=2)
def _scorer(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(KINDS, use_stemmer=stemmer)


def rouge(texts: list[str], references: list[str], stemmer: bool = True) -> dict[str, list[float]]:
    """F1 of each text with its reference; 0 for an empty text.

    Source: Lin 2004, by the package rouge-score.

    Returns: kind -> one value per text. ValueError if the lengths differ.
    """
    if len(texts) != len(references):
        raise ValueError(f"{len(texts)} texts and {len(references)} references")
    scores = [
        _scorer(stemmer).score(reference, text)
        for text, reference in zip(texts, references, strict=True)
    ]
    return {kind: [float(score[kind].fmeasure) for score in scores] for kind in KINDS}


class Rouge(evaluate.Metric):
    """compute(predictions=texts, references=texts, stemmer=True).

    Returns: {"rouge1", "rouge2", "rougeL"}, means.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], stemmer: bool = True
    ) -> dict[str, Any]:
        return {
            kind: sum(values) / len(values)
            for kind, values in rouge(predictions, references, stemmer).items()
        }
