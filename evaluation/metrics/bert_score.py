"""Similarity of texts to references by matched contextual embeddings.

Unit: cosine, F1 of both directions. Range: [-1, 1]. Higher is better.
"""

from typing import Any

import datasets
import evaluate
import torch
from torch import Tensor


class BertScorer:
    """Greedy matching of token embeddings of one layer of a local encoder.

    Equal to the package bert-score without idf weights and without rescaling by a baseline. That
    one loads its encoder by itself: by name, from any format of weights. Source: Zhang et al.,
    arXiv:1904.09675.

    Args:
        model, tokenizer: of transformers. layer: index into the hidden states, 0 = embeddings; the
            last one by default.
    """

    def __init__(
        self, model: Any, tokenizer: Any, layer: int | None = None, batch_size: int = 64
    ) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        self._layer, self._batch_size = -1 if layer is None else layer, batch_size

    @torch.no_grad()
    def __call__(self, texts: list[str], references: list[str]) -> dict[str, list[float]]:
        """precision, recall and f1 of each text; 0 where either is empty.

        ValueError if the lengths differ.
        """
        if len(texts) != len(references):
            raise ValueError(f"{len(texts)} texts and {len(references)} references")
        found: dict[str, list[float]] = {"precision": [], "recall": [], "f1": []}
        embedded = self._embedded(sorted({t.strip() for t in texts + references}, key=len))
        for text, reference in zip(texts, references, strict=True):
            if not text.strip() or not reference.strip():
                values = (0.0, 0.0, 0.0)
            else:
                values = _matched(embedded[text.strip()], embedded[reference.strip()])
            for name, value in zip(found, values, strict=True):
                found[name].append(value)
        return found

    def _embedded(self, texts: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """text -> (unit embeddings [T, d], 1 for a token that counts and 0 for CLS and SEP [T])."""
        found = {}
        ignored = torch.tensor(
            [
                i
                for i in (self._tokenizer.cls_token_id, self._tokenizer.sep_token_id)
                if i is not None
            ]
        )
        for start in range(0, len(texts), self._batch_size):
            batch = texts[start : start + self._batch_size]
            inputs = self._tokenizer(batch, return_tensors="pt", padding=True, truncation=True)
            ids, attention = inputs["input_ids"], inputs["attention_mask"]
            device = self._model.device
            states = self._model(
                input_ids=ids.to(device),
                attention_mask=attention.to(device),
                output_hidden_states=True,
            ).hidden_states
            unit = torch.nn.functional.normalize(states[self._layer].float(), dim=-1).cpu()
            for i, text in enumerate(batch):
                kept = attention[i].bool()
                found[text] = (unit[i][kept], (~torch.isin(ids[i][kept], ignored)).float())
        return found


def _matched(
    text: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]
) -> tuple[float, float, float]:
    similarity = text[0] @ reference[0].T
    precision = float((similarity.max(1).values * text[1]).sum() / text[1].sum().clamp_min(1))
    recall = float(
        (similarity.max(0).values * reference[1]).sum() / reference[1].sum().clamp_min(1)
    )
    return (
        precision,
        recall,
        2 * precision * recall / (precision + recall) if precision + recall else 0.0,
    )


class BertScore(evaluate.Metric):
    """compute(predictions=texts, references=texts, model=local directory, layer=None).

    Returns: {"precision", "recall", "f1"}, means.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], model: str, layer: int | None = None
    ) -> dict[str, Any]:
        from transformers import AutoModel, AutoTokenizer

        encoder: Any = AutoModel.from_pretrained(
            model, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        scorer = BertScorer(
            encoder,
            AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False),
            layer,
        )
        return {
            name: sum(values) / len(values)
            for name, values in scorer(predictions, references).items()
        }
