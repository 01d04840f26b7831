"""How alike texts are among themselves: BLEU of each against all others.

Range: [0, 1]. Lower is more varied.
"""

from typing import Any

import datasets
import evaluate


def self_bleu(texts: list[str]) -> list[float]:
    """Sentence BLEU-4 of each text with the other texts as its references; 0 for an empty text.

    The work grows with the square of the number of texts, and so does the score: compare equal
    numbers only.
    Source: Zhu et al., arXiv:1802.01886; BLEU by the package sacrebleu (13a tokens, exponential
        smoothing).
    Raises: ValueError for fewer than two texts.
    """
    from sacrebleu.metrics import BLEU

    if len(texts) < 2:
        raise ValueError(f"self-BLEU needs at least two texts, got {len(texts)}")
    bleu = BLEU(effective_order=True)
    return [
        bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score / 100 if text.strip() else 0.0
        for i, text in enumerate(texts)
    ]


class SelfBleu(evaluate.Metric):
    """compute(predictions=texts) -> {"self_bleu"}, the mean."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict[str, Any]:
        values = self_bleu(predictions)
        return {"self_bleu": sum(values) / len(values)}
