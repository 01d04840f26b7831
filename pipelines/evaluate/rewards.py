"""Rewards of generated texts, by the recipe's reward section."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UserError
from pipelines.models import compute_device, from_directory, hf_config, resolve_model
from pipelines.recipe import BrevityReward, ClassifierReward, RewardSection, VaderReward

Reward = Callable[[list[str]], list[float]]


def build_reward(section: RewardSection) -> Reward:
    """A function texts -> rewards. UserError if the classifier or its label does not exist."""
    match section:
        case VaderReward():
            from evaluation.metrics.vader_sentiment import vader_scores

            return vader_scores
        case BrevityReward():
            from evaluation.metrics.brevity import brevity_scores

            return partial(brevity_scores, most_words=section.most_words)
        case ClassifierReward():
            return _classifier(section)


def needs_model(section: RewardSection) -> bool:
    """Whether texts are scored by a model, which is an actor's work."""
    return isinstance(section, ClassifierReward)


def reward_span(section: RewardSection) -> tuple[float, float] | None:
    """Where rewards can lie; None where that is not known (a classifier's may be a logit)."""
    match section:
        case VaderReward():
            return (-1.0, 1.0)
        case BrevityReward():
            return (-1.0, 0.0)
        case ClassifierReward():
            return None


def check_reward(section: RewardSection, key: str) -> None:
    """UserError naming the recipe's key if a classifier does not exist or lacks its label."""
    if isinstance(section, ClassifierReward):
        label_index(model_config_of(section.model, f"{key}.model"), section.label, f"{key}.label")


def model_config_of(name: str, key: str) -> Any:
    """A model's configuration. UserError naming the recipe's key if there is no such model."""
    try:
        return hf_config(resolve_model(name))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _classifier(section: ClassifierReward) -> Reward:
    model, tokenizer = load_classifier(section.model)
    index = label_index(model.config, section.label, "reward.label")
    return lambda texts: class_scores(model, tokenizer, texts, index)


def load_classifier(name: str) -> tuple[Any, Any]:
    """A sequence classifier on this process's device, and its tokenizer with a padding token."""
    from transformers import AutoModelForSequenceClassification

    directory = resolve_model(name)
    tokenizer = padding_tokenizer(directory)
    model: Any = from_directory(AutoModelForSequenceClassification, directory, use_safetensors=True)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id  # decoders find the last token by it
    return model.eval().to(compute_device()), tokenizer


def padding_tokenizer(directory: Path) -> Any:
    """The tokenizer of a local directory, with a padding token."""
    from transformers import AutoTokenizer

    tokenizer = from_directory(AutoTokenizer, directory)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked out by the attention mask
    return tokenizer


def label_index(config: Any, label: str, key: str) -> int:
    """The output of a label, which may be in any letter case.

    Raises: UserError that names the recipe's key and the labels there are.
    """
    labels = {str(name).upper(): int(index) for index, name in config.id2label.items()}
    if label.upper() not in labels:
        raise UserError(
            f"{key} = {label!r}: the classifier {config.name_or_path} has {', '.join(labels)}"
        )
    return labels[label.upper()]


@torch.no_grad()
def class_scores(
    model: Any, tokenizer: Any, texts: list[str], index: int, is_rendered: bool = False
) -> list[float]:
    """One output for each text: a probability, or the logit of a model that has no other.

    Args:
        is_rendered: by a chat template, which wrote the special tokens.
    """
    found: list[float] = []
    for start in range(0, len(texts), 32):
        inputs = tokenizer(
            texts[start : start + 32],
            return_tensors="pt",
            padding=True,
            truncation=True,
            add_special_tokens=not is_rendered,
        ).to(model.device)
        logits = model(**inputs).logits.float()
        found += (logits.softmax(-1) if logits.shape[-1] > 1 else logits)[:, index].tolist()
    return found
