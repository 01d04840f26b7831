"""Relative preference optimisation: contrasts over all pairs of the batch.

Source: Yin et al., arXiv:2402.10958.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsepo.objectives.base import (
    CoupledBatch,
    CoupledObjective,
    PairLosses,
    logistic_loss,
    positive,
    smoothing,
)
from sparsepo.records import TokenScores


class RPO(CoupledObjective, name="rpo"):
    """losses_i = mean_j -log sigmoid(beta * omega_ij * (R_chosen^i - R_rejected^j)).

    i and j run over the global batch. omega_i = softmax_j(-(1 - cos(e_i, e_j)) / tau) with e the
    prompts' embeddings: a contrast weighs the more, the more alike the prompts are. Rows of omega
    sum to 1, so the effective scale is about beta / N. A batch of one pair is DPO. The implicit
    reward is beta * R; at the reference the loss is ln 2.

    Args:
        beta: inverse temperature, > 0. tau: temperature of the similarity, > 0.
        label_smoothing: in [0, 0.5), of every contrast. nll_coef: see PreferenceObjective.
    """

    def __init__(
        self,
        beta: float = 0.1,
        tau: float = 0.5,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        super().__init__(nll_coef=nll_coef)
        self.beta, self.tau = positive("beta", beta), positive("tau", tau)
        self.label_smoothing = smoothing(label_smoothing)

    def weights(self, embeddings: Tensor) -> Tensor:
        """omega [N, N] of embeddings [N, e]; rows sum to 1.

        The diagonal is the largest entry of its row.
        """
        unit = F.normalize(embeddings, dim=-1)
        return ((unit @ unit.t() - 1) / self.tau).softmax(-1)

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        sums = scores.per_response(scores.log_ratios())
        omega = self.weights(scores.require("prompt_embedding").to(sums.dtype))
        return PairLosses(
            self._contrasts(omega, sums[:, :1], sums[None, :, 1]).mean(1), self.beta * sums
        )

    def shared_values(self, scores: TokenScores) -> Tensor:
        sums = scores.per_response(scores.log_ratios().detach())
        return torch.cat([sums, scores.require("prompt_embedding").to(sums.dtype)], dim=1)

    def slice_losses(self, scores: TokenScores, batch: CoupledBatch) -> PairLosses:
        sums = scores.per_response(scores.log_ratios())
        chosen, rejected, embeddings = batch.values[:, 0], batch.values[:, 1], batch.values[:, 2:]
        omega = self.weights(embeddings)
        as_chosen = self._contrasts(omega[batch.rows], sums[:, :1], rejected[None]).mean(1)
        # The same contrasts seen from the rejected side: other pairs' losses, which only lend their
        # gradient here.
        as_rejected = self._contrasts(omega[:, batch.rows], chosen[:, None], sums[None, :, 1]).mean(
            0
        )
        return PairLosses(as_chosen + (as_rejected - as_rejected.detach()), self.beta * sums)

    def _contrasts(self, omega: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
        return logistic_loss(self.beta * omega * (chosen - rejected), self.label_smoothing)
