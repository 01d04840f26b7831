"""Supervised fine-tuning on chosen responses, through the same trainer."""

import torch

from sparsepo.objectives.base import Objective
from sparsepo.records import ObjectiveOutput, TokenScores


class SFT(Objective, name="sft"):
    """losses = mean negative log-likelihood per token of the chosen response, nats.

    Every response weighs the same.
    """

    def __call__(self, scores: TokenScores) -> ObjectiveOutput:
        lengths = scores.lengths()[:, 0]
        if scores.num_pairs == 0 or bool((lengths == 0).any()):
            raise ValueError("every chosen response needs at least one scored token")
        logps = scores.per_response(scores.policy_logps)[:, 0]
        losses = -logps / lengths
        zeros = torch.zeros_like(losses, requires_grad=False)
        pairs = torch.tensor(float(scores.num_pairs), device=losses.device)
        metrics = {
            "loss": (losses.detach().sum(), pairs),
            "nll_per_token": (-logps.detach().sum(), lengths.sum()),
            "logps/chosen": (logps.detach().sum(), pairs),
        }
        return ObjectiveOutput(losses, zeros, zeros, metrics)
