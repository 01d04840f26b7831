"""What every objective is, and the statistics all of them report."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsepo.records import Metrics, ObjectiveOutput, TokenScores


class Objective(ABC):
    """A loss per preference pair from a flat token record.

    Attributes:
        name: as in recipes.
        requires: reference features the loss itself reads (the mask declares its own).
        uses_rejected: False for objectives on chosen responses alone.
        couples_pairs: True if a pair's loss depends on other pairs of the global batch.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset({"reference_logps"})
    uses_rejected: ClassVar[bool] = True
    couples_pairs: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, scores: TokenScores) -> ObjectiveOutput:
        """Losses [num_pairs] with gradient, implicit rewards [num_pairs] without, metrics as (sum, count)."""


def positive(name: str, value: float) -> float:
    """Check an option that must be finite and > 0; ValueError naming it otherwise."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value}: must be finite and > 0")
    return value


def require_tokens(scores: TokenScores) -> None:
    """ValueError naming the first pair whose chosen or rejected response has no scored token."""
    counts = scores.per_response(torch.ones_like(scores.policy_logps, requires_grad=False))
    if scores.num_pairs == 0 or bool((counts == 0).any()):
        empty = (counts == 0).nonzero()
        where = f"pair {int(empty[0, 0])}, {'rejected' if int(empty[0, 1]) else 'chosen'}" if len(empty) else "no pair at all"
        raise ValueError(f"every response needs at least one scored token: {where}")


def logistic_loss(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1-e) log sigmoid(x) - e log sigmoid(-x), elementwise."""
    losses = -F.logsigmoid(logits)
    if label_smoothing == 0.0:
        return losses
    return (1 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-logits)


def preference_output(scores: TokenScores, losses: Tensor, rewards: Tensor, extra: Metrics | None = None) -> ObjectiveOutput:
    """Attach the statistics every pairwise objective shares.

    Args:
        losses: [num_pairs]. rewards: [num_pairs, 2] implicit rewards, chosen then rejected.
        extra: objective-specific metrics as (sum, count).
    """
    rewards = rewards.detach()
    margins = rewards[:, 0] - rewards[:, 1]
    logps = scores.per_response(scores.policy_logps.detach())
    pairs = torch.tensor(float(scores.num_pairs), device=losses.device)
    metrics: Metrics = {
        "loss": (losses.detach().sum(), pairs),
        "rewards/chosen": (rewards[:, 0].sum(), pairs),
        "rewards/rejected": (rewards[:, 1].sum(), pairs),
        "rewards/margins": (margins.sum(), pairs),
        # A tie (the policy is still the reference) counts one half, so that chance level is 0.5.
        "rewards/accuracies": (((margins > 0).float() + 0.5 * (margins == 0).float()).sum(), pairs),
        "logps/chosen": (logps[:, 0].sum(), pairs),
        "logps/rejected": (logps[:, 1].sum(), pairs),
        **_kl_metrics(scores, pairs),
        **(extra or {}),
    }
    return ObjectiveOutput(losses, rewards[:, 0], rewards[:, 1], metrics)


def mask_metrics(scores: TokenScores) -> Metrics:
    """Statistics of both masks: mean weight, largest weight, share of exact zeros, L1 norm per response."""
    responses = torch.tensor(float(2 * scores.num_pairs), device=scores.reward_mask.device)
    tokens = torch.tensor(float(scores.reward_mask.numel()), device=scores.reward_mask.device)
    metrics: Metrics = {}
    for name, weights in (("reward", scores.reward_mask.detach()), ("kl", scores.kl_mask.detach())):
        largest = weights.new_zeros(2 * scores.num_pairs).scatter_reduce(0, scores.response_index, weights, "amax")
        metrics[f"masks/{name}_mean"] = (weights.sum(), tokens)
        metrics[f"masks/{name}_max"] = (largest.sum(), responses)
        metrics[f"masks/{name}_zero_fraction"] = ((weights == 0).float().sum(), tokens)
        metrics[f"masks/{name}_l1"] = (weights.abs().sum(), responses)
    return metrics


def _kl_metrics(scores: TokenScores, pairs: Tensor) -> Metrics:
    if scores.token_kl is None:
        return {}
    kl = scores.per_response(scores.token_kl.detach())
    return {
        "kl/reference_policy": (kl.sum(), 2 * pairs),
        "kl/reference_policy_chosen": (kl[:, 0].sum(), pairs),
        "kl/reference_policy_rejected": (kl[:, 1].sum(), pairs),
    }
