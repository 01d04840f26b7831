"""Supervised fine-tuning on chosen responses, through the same trainer."""

import torch

from sparsepo.checks import require
from sparsepo.objectives.base import Objective
from sparsepo.records import ObjectiveOutput, TokenScores, on_device


class SFT(Objective, name="sft"):
    """losses = mean negative log-likelihood per token of the chosen response, nats.

    Every response weighs the same.
    """

    def __call__(self, scores: TokenScores) -> ObjectiveOutput:
        lengths = scores.lengths()[:, 0]
        message = "every chosen response needs at least one scored token"
        if scores.num_pairs == 0:
            raise ValueError(message)
        require((lengths > 0).all(), lambda: message)
        logps = scores.per_response(scores.policy_logps)[:, 0]
        losses = -logps / lengths
        zeros = torch.zeros_like(losses, requires_grad=False)
        pairs = on_device(scores.num_pairs, losses)
        metrics = {
            "loss": (losses.detach().sum(), pairs),
            "nll_per_token": (-logps.detach().sum(), lengths.sum()),
            "logps/chosen": (logps.detach().sum(), pairs),
        }
        return ObjectiveOutput(losses, zeros, zeros, metrics)
