"""What every objective is, and the statistics all of them report."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsepo.checks import require
from sparsepo.objectives.declarations import OBJECTIVES
from sparsepo.records import Metrics, ObjectiveOutput, TokenScores, on_device, segment_sum


class Objective(ABC):
    """A loss per preference pair from a flat token record.

    A subclass with `name="..."` behind its bases takes the attributes from its declaration in
    OBJECTIVES. One that is not declared there sets them itself.

    Attributes:
        name: its key in OBJECTIVES.
        requires: features the loss itself reads (the mask declares its own). A constructor whose
            options change them sets its own.
        uses_rejected: False for objectives on chosen responses alone.
        couples_pairs: True if a pair's loss depends on other pairs of the global batch (see
            CoupledObjective).
        mask_kinds: kinds of token mask that the loss can work with; "none" alone means that it
            reads no mask.
        default_mask: the kind that is meant where none is named; "none" where the loss reads no
            mask, or one must be chosen.
    """

    name: ClassVar[str]
    requires: frozenset[str] = frozenset({"reference_logps"})
    uses_rejected: ClassVar[bool] = True
    couples_pairs: ClassVar[bool] = False
    mask_kinds: ClassVar[frozenset[str]] = frozenset({"none"})
    default_mask: ClassVar[str] = "none"

    def __init_subclass__(cls, name: str | None = None) -> None:
        if name is not None:
            declared = OBJECTIVES[name]
            cls.name, cls.requires = name, declared.requires
            cls.uses_rejected = declared.uses_rejected
            cls.mask_kinds, cls.default_mask = declared.mask_kinds, declared.default_mask

    @abstractmethod
    def __call__(self, scores: TokenScores) -> ObjectiveOutput:
        """Losses [num_pairs] with gradient, implicit rewards [num_pairs] without, and metrics.

        The metrics come as (sum, count).

        Raises: ValueError for an empty response, a missing feature, or weights that are negative or
            not finite.
        """


class PairLosses(NamedTuple):
    """losses [num_pairs] with gradient, rewards [num_pairs, 2].

    rewards are the implicit rewards of chosen and rejected.
    """

    losses: Tensor
    rewards: Tensor


class PreferenceObjective(Objective):
    """An objective on chosen and rejected responses; subclasses write `pair_losses`.

    Args:
        nll_coef: adds nll_coef times the chosen response's negative log-likelihood per token
            (nats), >= 0.
    """

    def __init__(self, *, nll_coef: float = 0.0) -> None:
        self.nll_coef = non_negative("nll_coef", nll_coef)

    @abstractmethod
    def pair_losses(self, scores: TokenScores) -> PairLosses:
        """The equation, of scores that have been checked."""

    def extra_metrics(self, scores: TokenScores) -> Metrics:
        """Further metrics as (sum, count)."""
        return {}

    def __call__(self, scores: TokenScores) -> ObjectiveOutput:
        self.check(scores)
        return self.assemble(scores, self.pair_losses(scores))

    def check(self, scores: TokenScores) -> None:
        """Raises what __call__ promises, or leaves it to `checks_read_later`."""
        for feature in sorted(self.requires):
            scores.require("token_kl" if feature == "reference_hidden" else feature)
        check_tokens(scores)

    def assemble(self, scores: TokenScores, pair: PairLosses) -> ObjectiveOutput:
        """Add the NLL term and the statistics that every preference objective shares."""
        sums = scores.per_response(scores.policy_logps)
        nll = -sums[:, 0] / scores.lengths()[:, 0]
        losses = pair.losses + self.nll_coef * nll if self.nll_coef else pair.losses
        rewards, logps = pair.rewards.detach(), sums.detach()
        margins = rewards[:, 0] - rewards[:, 1]
        pairs = on_device(scores.num_pairs, losses)
        metrics: Metrics = {
            "loss": (losses.detach().sum(), pairs),
            "rewards/chosen": (rewards[:, 0].sum(), pairs),
            "rewards/rejected": (rewards[:, 1].sum(), pairs),
            "rewards/margins": (margins.sum(), pairs),
            # A tie (the policy is still the reference) counts one half, so that chance level is
            # 0.5.
            "rewards/accuracies": (
                ((margins > 0).float() + 0.5 * (margins == 0).float()).sum(),
                pairs,
            ),
            "logps/chosen": (logps[:, 0].sum(), pairs),
            "logps/rejected": (logps[:, 1].sum(), pairs),
            "nll/chosen": (nll.detach().sum(), pairs),
            **_kl_metrics(scores, pairs),
            **self.extra_metrics(scores),
        }
        return ObjectiveOutput(losses, rewards[:, 0], rewards[:, 1], metrics)


class LogisticObjective(PreferenceObjective):
    """losses = -(1-e) log sigmoid(logits) - e log sigmoid(-logits).

    Subclasses write `logits_and_rewards`.

    Args:
        label_smoothing: e, assumed share of flipped preferences, in [0, 0.5).
        nll_coef: see PreferenceObjective.
    """

    def __init__(self, *, label_smoothing: float = 0.0, nll_coef: float = 0.0) -> None:
        super().__init__(nll_coef=nll_coef)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing={label_smoothing}: must be in [0, 0.5)")
        self.label_smoothing = label_smoothing

    @abstractmethod
    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        """(logits [num_pairs], implicit rewards [num_pairs, 2])."""

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        logits, rewards = self.logits_and_rewards(scores)
        return PairLosses(logistic_loss(logits, self.label_smoothing), rewards)


@dataclass(frozen=True)
class CoupledBatch:
    """What a pair needs to know about all pairs of the global batch.

    Attributes:
        values: [N, c], `shared_values` of all N pairs, the same on every rank; no gradient.
        rows: int64 [num_pairs], where the micro-batch's own pairs are among them.
    """

    values: Tensor
    rows: Tensor


class CoupledObjective(PreferenceObjective):
    """An objective whose losses depend on the whole global batch.

    Called on scores alone, these are the whole batch. A trainer that cuts the batch takes two
    passes: `shared_values` of every micro-batch without gradient, gathered; then each micro-batch
    with the gathered record. The sum of the slices' losses and gradients equals the whole's.
    """

    couples_pairs = True

    @abstractmethod
    def shared_values(self, scores: TokenScores) -> Tensor:
        """[num_pairs, c] what other pairs need to know about these; no gradient."""

    @abstractmethod
    def slice_losses(self, scores: TokenScores, batch: CoupledBatch) -> PairLosses:
        """The micro-batch's share of the losses, [num_pairs].

        Its sum over the batch is the batch's, in value and gradient.
        """

    def __call__(self, scores: TokenScores, batch: CoupledBatch | None = None) -> ObjectiveOutput:
        self.check(scores)
        return self.assemble(
            scores, self.pair_losses(scores) if batch is None else self.slice_losses(scores, batch)
        )


def positive(name: str, value: float) -> float:
    """Check an option that must be finite and > 0; ValueError naming it otherwise."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value}: must be finite and > 0")
    return value


def non_negative(name: str, value: float) -> float:
    """Check an option that must be finite and >= 0; ValueError naming it otherwise."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value}: must be finite and >= 0")
    return value


def check_tokens(scores: TokenScores) -> None:
    """Check that every response has a scored token, and that every mask has allowed weights.

    Raises: ValueError naming the first response without a scored token, or the mask with a weight
        that is not allowed.
    """
    if scores.num_pairs == 0:
        raise ValueError("every response needs at least one scored token: no pair at all")
    masks = {"reward_mask": scores.reward_mask.detach(), "kl_mask": scores.kl_mask.detach()}
    empty = scores.lengths() == 0
    # NaN is not >= 0 either, and infinity is not finite: one test for both.
    wrong = {
        name: ~(weights.isfinite() & ((weights >= 0) | scores.signed_masks))
        for name, weights in masks.items()
    }

    def first() -> str:
        for pair, side in empty.nonzero().tolist():
            return (
                f"every response needs at least one scored token: pair {pair}, "
                f"{'rejected' if side else 'chosen'}"
            )
        name, at = next(
            (name, at) for name, bad in wrong.items() for at in bad.nonzero().flatten().tolist()
        )
        allowed = "finite" if scores.signed_masks else "finite and >= 0"
        return f"{name}[{at}]={float(masks[name][at])}: weights must be {allowed}"

    require(~torch.stack([empty.any(), *(bad.any() for bad in wrong.values())]).any(), first)


def logistic_loss(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1-e) log sigmoid(x) - e log sigmoid(-x), elementwise."""
    losses = -F.logsigmoid(logits)
    if label_smoothing == 0.0:
        return losses
    return (1 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-logits)


def mask_metrics(
    scores: TokenScores, beta: float, terms: tuple[str, ...] = ("reward", "kl")
) -> Metrics:
    """Statistics of the masks of these terms, as (sum, count).

    Per mask, under masks/reward_* and masks/kl_*: mean weight over tokens; largest weight, spread
    (largest minus smallest) and L1 norm, means over responses; fraction of tokens with weight
    exactly 0; kl_correlation, the mean over responses of Pearson's correlation with token_kl within
    the response (responses where either is constant are left out). masks/effective_beta: beta times
    the mean reward weight.
    """
    responses = on_device(2 * scores.num_pairs, scores.reward_mask)
    tokens = on_device(scores.reward_mask.numel(), scores.reward_mask)
    metrics: Metrics = dict(scores.mask_statistics)
    masks = {"reward": scores.reward_mask.detach(), "kl": scores.kl_mask.detach()}
    for name in terms:
        weights = masks[name]
        empty = weights.new_zeros(2 * scores.num_pairs)
        largest = empty.scatter_reduce(
            0, scores.response_index, weights, "amax", include_self=False
        )
        smallest = empty.scatter_reduce(
            0, scores.response_index, weights, "amin", include_self=False
        )
        metrics[f"masks/{name}_mean"] = (weights.sum(), tokens)
        metrics[f"masks/{name}_max"] = (largest.sum(), responses)
        metrics[f"masks/{name}_spread"] = ((largest - smallest).sum(), responses)
        metrics[f"masks/{name}_zero_fraction"] = ((weights == 0).float().sum(), tokens)
        metrics[f"masks/{name}_l1"] = (weights.abs().sum(), responses)
        if scores.token_kl is not None:
            metrics[f"masks/{name}_kl_correlation"] = _mean_correlation(
                weights, scores.token_kl.detach(), scores.response_index, 2 * scores.num_pairs
            )
    metrics["masks/effective_beta"] = (beta * metrics["masks/reward_mean"][0], tokens)
    return metrics


def _mean_correlation(
    x: Tensor, y: Tensor, index: Tensor, num_responses: int
) -> tuple[Tensor, Tensor]:
    """Sum and count of Pearson's correlation within each response, where both vary."""
    x, y = x.double(), y.double()
    counts = segment_sum(torch.ones_like(x), index, num_responses).clamp(min=1)
    x = x - (segment_sum(x, index, num_responses) / counts)[index]
    y = y - (segment_sum(y, index, num_responses) / counts)[index]
    xx, yy, xy = (segment_sum(value, index, num_responses) for value in (x * x, y * y, x * y))
    product = (xx * yy).sqrt()
    varies = product > 1e-18
    correlation = torch.where(
        varies, xy / product.where(varies, torch.ones_like(product)), torch.zeros_like(product)
    )
    return correlation.sum(), varies.double().sum()


def _kl_metrics(scores: TokenScores, pairs: Tensor) -> Metrics:
    if scores.token_kl is None:
        return {}
    kl = scores.per_response(scores.token_kl.detach())
    tokens = on_device(scores.token_kl.numel(), kl)
    return {
        "kl/reference_policy": (kl.sum(), 2 * pairs),
        "kl/reference_policy_chosen": (kl[:, 0].sum(), pairs),
        "kl/reference_policy_rejected": (kl[:, 1].sum(), pairs),
        "kl/reference_policy_per_token": (kl.sum(), tokens),
    }
