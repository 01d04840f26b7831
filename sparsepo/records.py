"""Records that layouts, the reference, masks and objectives exchange.

Per-token quantities are one-dimensional over the *scored* response tokens of a micro-batch, in canonical order: pair by
pair, chosen before rejected, position ascending. Padding exists only inside the model's input.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModelInputs:
    """One micro-batch as the backbone wants it, with the rows to score.

    Attributes:
        input_ids: int64 [R, T].
        attention_mask: int64 [R, T], 1 = real token.
        position_ids: int64 [R, T].
        score_rows: int64 [S], row of the flattened [R*T] hidden states that predicts each scored token.
        labels: int64 [S], the scored tokens.
        response_index: int64 [S], 2*i for the chosen and 2*i+1 for the rejected response of pair i.
        num_pairs: pairs in the micro-batch.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    score_rows: Tensor
    labels: Tensor
    response_index: Tensor
    num_pairs: int

    def to(self, device: torch.device | str) -> Self:
        moved: Self = _moved(self, device)
        return moved


@dataclass(frozen=True)
class ReferenceFeatures:
    """What the frozen reference says about each scored token; every tensor is [S, ...] and carries no gradient.

    Attributes:
        reference_logps: float [S], nats.
        reference_hidden: [S, d], input of the reference's LM head.
        reference_layers: [S, L, d], outputs of layers 1..L; the last has the final normalisation applied.
        activation_mask: float [S], MaPO's weight per token.
    """

    reference_logps: Tensor | None = None
    reference_hidden: Tensor | None = None
    reference_layers: Tensor | None = None
    activation_mask: Tensor | None = None

    def to(self, device: torch.device | str) -> Self:
        moved: Self = _moved(self, device)
        return moved


FEATURE_NAMES = tuple(f.name for f in fields(ReferenceFeatures))


@dataclass(frozen=True)
class TokenScores:
    """Everything an objective needs about one micro-batch.

    Attributes:
        policy_logps: [S] log pi(y_t | x, y_<t) in nats, with gradient.
        reference_logps: [S] the reference's, no gradient; None when the objective needs no reference.
        token_kl: [S] KL(reference || policy) >= 0 in nats over the full vocabulary, with gradient; None if not required.
        reward_mask: [S] weight of each log ratio, >= 0.
        kl_mask: [S] weight of each token_kl, >= 0.
        response_index: int64 [S], even = chosen, odd = rejected, non-decreasing.
        num_pairs: number of pairs.
        l1_shares: factors of the (reward, kl) masks' L1 norms: (0.5, 0.5) when one mask serves both terms, 0 for a term
            that is not masked.
    """

    policy_logps: Tensor
    reference_logps: Tensor | None
    token_kl: Tensor | None
    reward_mask: Tensor
    kl_mask: Tensor
    response_index: Tensor
    num_pairs: int
    l1_shares: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        expected = tuple(self.policy_logps.shape)
        if len(expected) != 1:
            raise ValueError(f"policy_logps must be one-dimensional, got shape {expected}")
        for name in ("reference_logps", "token_kl", "reward_mask", "kl_mask", "response_index"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, policy_logps has {expected}: they must be equal")

    def log_ratios(self) -> Tensor:
        """[S] policy minus reference, nats. ValueError if the reference's logps are missing."""
        if self.reference_logps is None:
            raise ValueError("reference_logps are missing: run the reference stage with this objective's features")
        return self.policy_logps - self.reference_logps

    def require_token_kl(self) -> Tensor:
        if self.token_kl is None:
            raise ValueError("token_kl is missing: the objective needs the feature 'reference_hidden' of the reference stage")
        return self.token_kl

    def per_response(self, values: Tensor) -> Tensor:
        """Sum [S] values over each response: [num_pairs, 2], column 0 chosen, column 1 rejected."""
        return segment_sum(values, self.response_index, 2 * self.num_pairs).view(self.num_pairs, 2)


Metrics = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ObjectiveOutput:
    """Losses and rewards per pair; metrics as (sum, count), so that they add over micro-batches and ranks."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    metrics: Metrics = field(default_factory=dict)


def segment_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Sum values [S] with equal index: [num_segments]. Deterministic on CPU; gradient flows to values."""
    return values.new_zeros(num_segments).index_add(0, index, values)


def add_metrics(total: Metrics, new: Metrics) -> Metrics:
    """Add (sum, count) metrics key by key; a key missing on one side counts as (0, 0)."""
    merged = dict(total)
    for key, (value, count) in new.items():
        if key in merged:
            merged[key] = (merged[key][0] + value, merged[key][1] + count)
        else:
            merged[key] = (value, count)
    return merged


def _moved(record: Any, device: torch.device | str) -> Any:
    moved = {}
    for item in fields(record):
        value = getattr(record, item.name)
        moved[item.name] = value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
    return type(record)(**moved)
