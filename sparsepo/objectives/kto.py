"""KTO: responses with labels, each against the policy's distance from the reference.

Source: Ethayarajh et al., arXiv:2402.01306; read as TRL's KTOTrainer has it.
"""

import torch
from torch import Tensor

from sparsepo.objectives.base import (
    CoupledBatch,
    CoupledObjective,
    PairLosses,
    check_tokens,
    non_negative,
    positive,
)
from sparsepo.records import Metrics, ObjectiveOutput, TokenScores, on_device


class KTO(CoupledObjective, name="kto"):
    """losses = w * (1 - sigmoid(beta * (R - KL))); of an undesirable row R and KL change places.

    A row is a pair of the record: its chosen response is the row's own, R that one's log ratio; its
    rejected response answers another prompt. KL is the mean log ratio of these over the global
    batch, at least 0, without gradient. w is the weight of the row's label. The implicit reward is
    beta * R, the rejected one's beta times the other response's log ratio (0 where that is
    missing). At the reference every loss is w / 2.

    Metrics of chosen and rejected are those of desirable and undesirable rows. rewards/margins is
    the mean over rows of reward minus beta * KL, negated where the row is undesirable;
    rewards/accuracies how often that is positive.

    Args:
        beta: > 0. desirable_weight, undesirable_weight: >= 0.
    """

    rejected_are_shared = True

    def __init__(
        self, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.beta = positive("beta", beta)
        self.desirable_weight = non_negative("desirable_weight", desirable_weight)
        self.undesirable_weight = non_negative("undesirable_weight", undesirable_weight)

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        return self._losses(scores, self.shared_values(scores))

    def shared_values(self, scores: TokenScores) -> Tensor:
        """[num_pairs, 1] log ratio of the response to another prompt."""
        return scores.per_response(scores.log_ratios().detach())[:, 1:]

    def slice_losses(self, scores: TokenScores, batch: CoupledBatch) -> PairLosses:
        return self._losses(scores, batch.values)

    def __call__(self, scores: TokenScores, batch: CoupledBatch | None = None) -> ObjectiveOutput:
        self.check_features(scores)
        check_tokens(scores, sides=2 if batch is None else 1)
        pair = self.pair_losses(scores) if batch is None else self.slice_losses(scores, batch)
        losses, rewards = pair.losses, pair.rewards
        kl = _kl(self.shared_values(scores) if batch is None else batch.values)
        desirable = scores.require("desirable")
        margins = _signed(rewards[:, 0] - self.beta * kl, desirable)
        logps = scores.per_response(scores.policy_logps.detach())[:, 0]
        rows = on_device(scores.num_pairs, losses)
        metrics: Metrics = {
            "loss": (losses.detach().sum(), rows),
            "rewards/margins": (margins.sum(), rows),
            "rewards/accuracies": (
                ((margins > 0).float() + 0.5 * (margins == 0).float()).sum(),
                rows,
            ),
            "kl/mismatched": (kl * rows, rows),
        }
        for name, mine in (("chosen", desirable), ("rejected", ~desirable)):
            share = mine.to(logps.dtype)
            metrics[f"rewards/{name}"] = ((share * rewards[:, 0]).sum(), share.sum())
            metrics[f"logps/{name}"] = ((share * logps).sum(), share.sum())
        return ObjectiveOutput(losses, rewards[:, 0], rewards[:, 1], metrics)

    def _losses(self, scores: TokenScores, values: Tensor) -> PairLosses:
        sums = scores.per_response(scores.log_ratios())
        desirable = scores.require("desirable")
        distances = _signed(sums[:, 0] - _kl(values).to(sums.dtype), desirable)
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight)
        losses = weights.to(sums.dtype) * (1 - (self.beta * distances).sigmoid())
        return PairLosses(losses, self.beta * sums.detach())


def _kl(values: Tensor) -> Tensor:
    """Mean log ratio of the responses to other prompts, at least 0, of [N, 1]."""
    return values.mean().clamp(min=0)


def _signed(values: Tensor, desirable: Tensor) -> Tensor:
    return torch.where(desirable, values, -values)
