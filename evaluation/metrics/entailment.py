"""Consistency of a text with its source.

Unit: share of its sentences that the source entails, by probability. Range: [0, 1]. Higher is
better.
"""

import re
from typing import Any

import datasets
import evaluate
import torch

# Not nltk's tokenizer: its rules are data that it fetches from the network.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def sentences(text: str) -> list[str]:
    """Pieces between sentence ends (a mark followed by white space), none of them empty."""
    return [piece for piece in (p.strip() for p in _SENTENCE_END.split(text.strip())) if piece]


class EntailmentScorer:
    """Probability that a premise entails a hypothesis, under a local classifier.

    The classifier is three-way (or two-way).

    Args:
        model, tokenizer: of transformers, for sequence classification of pairs. label: the name of
            its entailment class, any case.
    Raises: ValueError naming the classes if there is no such label.
    """

    def __init__(
        self, model: Any, tokenizer: Any, label: str = "entailment", batch_size: int = 32
    ) -> None:
        names = {str(name).lower(): int(index) for index, name in model.config.id2label.items()}
        if label.lower() not in names:
            raise ValueError(f"the classifier has the labels {', '.join(names)}, not {label!r}")
        self._model, self._tokenizer, self._index, self._batch_size = (
            model.eval(),
            tokenizer,
            names[label.lower()],
            batch_size,
        )

    @torch.no_grad()
    def probabilities(self, premises: list[str], hypotheses: list[str]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(premises), self._batch_size):
            chunk = slice(start, start + self._batch_size)
            inputs = self._tokenizer(
                premises[chunk],
                hypotheses[chunk],
                return_tensors="pt",
                padding=True,
                truncation="only_first",
            )
            logits = self._model(**inputs.to(self._model.device)).logits
            found += logits.float().softmax(-1)[:, self._index].tolist()
        return found

    def __call__(self, texts: list[str], sources: list[str]) -> list[float]:
        """Mean over the sentences of each text of P(source entails sentence); 0 for an empty text.

        ValueError if the lengths differ.
        """
        if len(texts) != len(sources):
            raise ValueError(f"{len(texts)} texts and {len(sources)} sources")
        pieces = [sentences(text) for text in texts]
        flat = self.probabilities(
            [source for source, parts in zip(sources, pieces, strict=True) for _ in parts],
            [part for parts in pieces for part in parts],
        )
        remaining = iter(flat)
        values = [[next(remaining) for _ in parts] for parts in pieces]
        return [sum(v) / len(v) if v else 0.0 for v in values]


class Entailment(evaluate.Metric):
    """compute(predictions=texts, references=sources, model=local directory, label="entailment").

    Returns: {"entailment"}, the mean.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], model: str, label: str = "entailment"
    ) -> dict[str, Any]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        classifier: Any = AutoModelForSequenceClassification.from_pretrained(
            model, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        scorer = EntailmentScorer(
            classifier,
            AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False),
            label,
        )
        values = scorer(predictions, references)
        return {"entailment": sum(values) / len(values)}
