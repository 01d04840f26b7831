"""Records that layouts, the reference, masks and objectives exchange.

Per-token quantities are one-dimensional over the *scored* response tokens of a micro-batch, in
canonical order: pair by pair, chosen before rejected, position ascending. Padding exists only
inside the model's input.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from sparsepo.features import FEATURES


class _TensorRecord:
    """A frozen dataclass whose tensors move together; other fields stay."""

    def to(self, device: torch.device | str) -> Self:
        return self._mapped(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """In page-locked memory, from which a copy to a GPU runs beside its work."""
        return self._mapped(lambda value: value.contiguous().pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        return type(self)(
            **{
                name: change(value) if isinstance(value, Tensor) else value
                for name, value in values.items()
            }
        )


@dataclass(frozen=True)
class ModelInputs(_TensorRecord):
    """One micro-batch as the backbone wants it, with the rows to score.

    Attributes:
        input_ids: int64 [R, T].
        attention_mask: int64 [R, T], 1 = real token.
        position_ids: int64 [R, T].
        score_rows: int64 [S], row of the flattened [R*T] hidden states that predicts each scored
            token.
        labels: int64 [S], the scored tokens.
        response_index: int64 [S], 2*i for the chosen and 2*i+1 for the rejected response of pair i.
        num_pairs: pairs in the micro-batch.
        segments: int32 [R, T] of rows that hold whole pairs: 4 * pair + part (0 prompt, 1 chosen, 2
            rejected), -1 = padding; None where every row is one sequence.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    score_rows: Tensor
    labels: Tensor
    response_index: Tensor
    num_pairs: int
    segments: Tensor | None = None


@dataclass(frozen=True)
class Features(_TensorRecord):
    """What is known about a micro-batch beside the policy's gradient; no tensor carries any.

    Per scored token, in canonical order:
        reference_logps: float [S], nats.
        reference_hidden: [S, d], input of the reference's LM head.
        reference_topk: uint8 [S, 6k + 4], the reference's k most likely tokens (compression.py).
        reference_layers: [S, L, d], outputs of layers 1..L; the last has the final normalisation
            applied, unless the model projects it to another width.
        activation_mask: float [S], MaPO's weight per token.
        reference_entropy: float [S], of the reference's next-token distribution, nats.
        reference_square_sum: float [S], sum of its squared probabilities, in (0, 1].
        saliency: float [S] >= 0, how much the token moves what the reference says last
            (saliency.py).
        token_states: [S, d], what one of the reference's layers makes of each token itself: states
            that have read the token, where reference_hidden predicts it.
        discriminator_values: float [S] in [0, 1], D_t: how likely a TokenDiscriminator finds the
            token to be good.
        scorer_log_ratios: float [S], log-probability under the positive minus under the negative
            scorer, nats; the reference stands for a scorer that is missing.
        positive_logps, negative_logps: float [S], log-probability under either, nats.
        external_weights: float [S], weights that came with the data.
        policy_logps, policy_hidden: [S] nats and [S, d], of the policy in this step, detached;
            PolicyModel puts them in where a mask requires them.
        policy_square_sum: [S], sum over the vocabulary of the policy's squared probabilities.
    Per pair:
        prompt_embedding: float [num_pairs, e], of any norm (RPO).
        preference_scores: float64 [num_pairs, 2], scores of chosen and rejected (ODPO).
        desirable: bool [num_pairs], the label of a row whose chosen response is its own and whose
            rejected one answers another prompt (KTO).
        pair_keys: int64 [num_pairs], a number that names the pair in every batch and run (random
            masks).
        epoch: int64 [num_pairs], how often training has seen the pair before.
    """

    reference_logps: Tensor | None = None
    reference_hidden: Tensor | None = None
    reference_topk: Tensor | None = None
    reference_layers: Tensor | None = None
    activation_mask: Tensor | None = None
    reference_entropy: Tensor | None = None
    reference_square_sum: Tensor | None = None
    saliency: Tensor | None = None
    token_states: Tensor | None = None
    discriminator_values: Tensor | None = None
    scorer_log_ratios: Tensor | None = None
    positive_logps: Tensor | None = None
    negative_logps: Tensor | None = None
    external_weights: Tensor | None = None
    prompt_embedding: Tensor | None = None
    preference_scores: Tensor | None = None
    pair_keys: Tensor | None = None
    desirable: Tensor | None = None
    policy_logps: Tensor | None = None
    policy_hidden: Tensor | None = None
    policy_square_sum: Tensor | None = None
    epoch: Tensor | None = None


Metrics = dict[str, tuple[Tensor, Tensor]]
Summand = TypeVar("Summand", Tensor, float)


@dataclass(frozen=True)
class TokenScores:
    """Everything an objective needs about one micro-batch.

    Attributes:
        policy_logps: [S] log pi(y_t | x, y_<t) in nats, with gradient.
        reference_logps: [S] the reference's, no gradient; None when the objective needs no
            reference.
        token_kl: [S] KL(reference || policy) >= 0 in nats over the full vocabulary, with gradient;
            None if not required.
        reward_mask: [S] weight of each log ratio.
        kl_mask: [S] weight of each token_kl.
        response_index: int64 [S], even = chosen, odd = rejected, non-decreasing.
        num_pairs: number of pairs.
        l1_shares: factors of the (reward, kl) masks' L1 norms: (0.5, 0.5) when one mask serves both
            terms, 0 for a term that is not masked.
        signed_masks: weights may be negative (a learned mask without final activation); otherwise
            they are refused.
        empty_sides: a response may have no weight other than 0 (a mask that says so).
        mask_statistics: metrics of the masks themselves, as (sum, count).
        scorer_log_ratios, external_weights, policy_square_sum, prompt_embedding,
            preference_scores, desirable: as in Features.
    Raises: ValueError naming both shapes if a per-token field differs from policy_logps, or a
        per-pair one from num_pairs.
    """

    policy_logps: Tensor
    reference_logps: Tensor | None
    token_kl: Tensor | None
    reward_mask: Tensor
    kl_mask: Tensor
    response_index: Tensor
    num_pairs: int
    l1_shares: tuple[float, float] = (1.0, 1.0)
    signed_masks: bool = False
    empty_sides: bool = False
    mask_statistics: Metrics = field(default_factory=dict)
    scorer_log_ratios: Tensor | None = None
    external_weights: Tensor | None = None
    policy_square_sum: Tensor | None = None
    prompt_embedding: Tensor | None = None
    preference_scores: Tensor | None = None
    desirable: Tensor | None = None

    def __post_init__(self) -> None:
        expected = tuple(self.policy_logps.shape)
        if len(expected) != 1:
            raise ValueError(f"policy_logps must be one-dimensional, got shape {expected}")
        for name in (
            "reference_logps",
            "token_kl",
            "reward_mask",
            "kl_mask",
            "response_index",
            "scorer_log_ratios",
            "external_weights",
            "policy_square_sum",
        ):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, policy_logps has {expected}: they "
                    "must be equal"
                )
        for name, columns in (("prompt_embedding", None), ("preference_scores", 2)):
            value = getattr(self, name)
            if value is not None and (
                value.ndim != 2
                or len(value) != self.num_pairs
                or value.shape[1] != (columns or value.shape[1])
            ):
                wanted = f"({self.num_pairs}, {columns or 'any'})"
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, {self.num_pairs} pairs want {wanted}"
                )

        if self.desirable is not None and tuple(self.desirable.shape) != (self.num_pairs,):
            raise ValueError(
                f"desirable has shape {tuple(self.desirable.shape)}, {self.num_pairs} pairs want "
                f"({self.num_pairs},)"
            )

    @classmethod
    def from_padded(
        cls,
        response_mask: Tensor,
        policy_logps: Tensor,
        reference_logps: Tensor | None = None,
        token_kl: Tensor | None = None,
        reward_mask: Tensor | None = None,
        kl_mask: Tensor | None = None,
        scorer_log_ratios: Tensor | None = None,
        external_weights: Tensor | None = None,
        policy_square_sum: Tensor | None = None,
        **per_pair: Any,
    ) -> Self:
        """The record of padded tensors, as most training loops have them.

        What lies outside response_mask is never read.

        Args:
            response_mask: bool [num_pairs, 2, T], True = scored token; index 0 of the second axis
                is chosen.
            policy_logps: [num_pairs, 2, T], like the other token quantities; masks left out weigh
                every token 1.
            per_pair: further fields of the record (prompt_embedding, preference_scores, l1_shares,
                ...).
        Raises: ValueError naming both shapes if they differ.
        """
        shape = tuple(response_mask.shape)
        if response_mask.dtype != torch.bool or len(shape) != 3 or shape[1] != 2:
            raise ValueError(
                f"response_mask must be bool [num_pairs, 2, T], got {response_mask.dtype} {shape}"
            )

        def flat(name: str, value: Tensor) -> Tensor:
            if tuple(value.shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, response_mask has {shape}: they must "
                    "be equal"
                )
            return value[response_mask]

        def optional(name: str, value: Tensor | None) -> Tensor | None:
            return None if value is None else flat(name, value)

        logps = flat("policy_logps", policy_logps)
        ones = torch.ones_like(logps, requires_grad=False)
        return cls(
            policy_logps=logps,
            reference_logps=optional("reference_logps", reference_logps),
            token_kl=optional("token_kl", token_kl),
            reward_mask=ones if reward_mask is None else flat("reward_mask", reward_mask),
            kl_mask=ones if kl_mask is None else flat("kl_mask", kl_mask),
            response_index=response_mask.flatten(0, 1).nonzero()[:, 0],
            num_pairs=shape[0],
            scorer_log_ratios=optional("scorer_log_ratios", scorer_log_ratios),
            external_weights=optional("external_weights", external_weights),
            policy_square_sum=optional("policy_square_sum", policy_square_sum),
            **per_pair,
        )

    def weighed(self, masks: Any, **features: Tensor) -> Self:
        """The record with the weights that token masks (or a producer) give its tokens.

        Masks read what the record has of Features; the policy's log-probabilities without gradient.

        Args:
            masks: TokenMasks. features: further fields of Features, flat [S, ...] or per pair; by
                default pair_keys count the pairs.
        Raises: ValueError naming a feature that is missing.
        """
        own = {name: getattr(self, name, None) for name in FEATURES}
        own["policy_logps"] = self.policy_logps.detach()
        own["pair_keys"] = torch.arange(self.num_pairs, device=self.policy_logps.device)
        weights = masks(Features(**own | features), self.response_index, self.num_pairs)
        return replace(
            self,
            reward_mask=weights.reward,
            kl_mask=weights.kl,
            mask_statistics=weights.statistics,
            l1_shares=masks.l1_shares,
            signed_masks=masks.signed,
            empty_sides=masks.may_be_empty,
        )

    def log_ratios(self) -> Tensor:
        """[S] policy minus reference, nats. ValueError if the reference's logps are missing."""
        return self.policy_logps - self.require("reference_logps")

    def require(self, name: str) -> Tensor:
        """A field by name; ValueError naming the feature and what gives it if it is missing."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            feature = "reference_hidden" if name == "token_kl" else name
            raise ValueError(
                f"{name} is missing: it needs the feature {feature!r}, which comes from "
                f"{FEATURES[feature].made_by}"
            )
        return value

    def per_response(self, values: Tensor) -> Tensor:
        """Sum [S] values over each response: [num_pairs, 2], column 0 chosen, column 1 rejected."""
        return segment_sum(values, self.response_index, 2 * self.num_pairs).view(self.num_pairs, 2)

    def lengths(self) -> Tensor:
        """Scored tokens of each response, float [num_pairs, 2]."""
        return self.per_response(torch.ones_like(self.policy_logps, requires_grad=False))


@dataclass(frozen=True)
class ObjectiveOutput:
    """Losses and rewards per pair, and metrics as (sum, count).

    So metrics add over micro-batches and ranks.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    metrics: Metrics = field(default_factory=dict)


def on_device(number: float, like: Tensor) -> Tensor:
    """A number as float32 beside a tensor, without a wait for the device."""
    return torch.full((), float(number), device=like.device)


def segment_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Sum values [S] with equal index: [num_segments].

    A GPU adds in one order only under torch.use_deterministic_algorithms. Gradient flows to values.
    """
    return values.new_zeros(num_segments).index_add(0, index, values)


def add_metrics(
    total: dict[str, tuple[Summand, Summand]], new: dict[str, tuple[Summand, Summand]]
) -> dict[str, tuple[Summand, Summand]]:
    """Add (sum, count) metrics key by key; a key missing on one side counts as (0, 0)."""
    merged = dict(total)
    for key, (value, count) in new.items():
        if key in merged:
            merged[key] = (merged[key][0] + value, merged[key][1] + count)
        else:
            merged[key] = (value, count)
    return merged
