"""Rewards of generated texts, by the recipe's reward section."""

from collections.abc import Callable
from typing import Any

import torch

from pipelines.config import ClassifierReward, VaderReward
from pipelines.errors import UserError
from pipelines.models import resolve_model

Reward = Callable[[list[str]], list[float]]


def build_reward(section: VaderReward | ClassifierReward) -> Reward:
    """A function texts -> rewards. UserError if the classifier or its label does not exist."""
    if isinstance(section, VaderReward):
        from evaluation.metrics.vader_sentiment import vader_scores

        return vader_scores
    return _classifier(section)


def _classifier(section: ClassifierReward) -> Reward:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    directory = str(resolve_model(section.model))
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked out by the attention mask
    model: Any = AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True, use_safetensors=True).eval()
    labels = {str(name).upper(): index for index, name in model.config.id2label.items()}
    if section.label.upper() not in labels:
        raise UserError(f"reward.label = {section.label!r}: the classifier {section.model} has {', '.join(labels)}")
    index = int(labels[section.label.upper()])

    @torch.no_grad()
    def score(texts: list[str]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(texts), 32):
            inputs = tokenizer(texts[start : start + 32], return_tensors="pt", padding=True, truncation=True)
            found += model(**inputs).logits.softmax(-1)[:, index].tolist()
        return found

    return score
