"""DPO with a beta per batch, and without the pairs that stand out.

Source: Wu et al., arXiv:2407.08639, and their released trainer.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsepo.objectives.base import (
    CoupledBatch,
    CoupledObjective,
    PairLosses,
    logistic_loss,
    non_negative,
    positive,
    smoothing,
)
from sparsepo.records import Metrics, ObjectiveOutput, TokenScores, on_device

_LEAST_BETA = 1e-3
_LEAST_DEVIATION = 1e-3  # nats: differences below it are rounding


class BetaDPO(CoupledObjective, name="beta_dpo"):
    """losses = -log sigmoid(beta_batch * gap) of the kept pairs, gap = R_chosen - R_rejected.

    Over the global batch, without gradient:

        average   = momentum * average + (1 - momentum) * mean gap, and so for its deviation
        kept      = N * (1 - drop_fraction) pairs, drawn without replacement with probabilities
                    proportional to exp(-((gap - average) / deviation)^2 / 2)
        beta_batch = max(0.001, beta * (1 + alpha * (mean gap of the kept - average)))

    The average and the deviation start at 0 (`state`), as released. A dropped pair has loss 0 and a
    kept one N / kept times its own, so that the mean over the batch is that over the kept pairs; an
    NLL term is all pairs'. Draws depend on the seed and the number of batches before. Validation
    keeps every pair and takes beta itself: it is DPO's. The implicit reward is beta * R; at the
    reference the loss of a kept pair is ln 2 * N / kept.

    Ours: draws are seeded, the statistics are the global batch's, validation leaves them alone, and
    a deviation below 0.001 nats counts as that, or rounding would choose at the reference.

    Args:
        beta: > 0. alpha: how fast beta follows the gap, >= 0, per nat. momentum: of the average, in
            [0, 1). drop_fraction: in [0, 1); at least one pair is kept. seed: of the draws.
        label_smoothing: in [0, 0.5). nll_coef: see PreferenceObjective.
    """

    def __init__(
        self,
        beta: float = 0.1,
        alpha: float = 0.6,
        momentum: float = 0.9,
        drop_fraction: float = 0.2,
        seed: int = 0,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        super().__init__(nll_coef=nll_coef)
        for name, value in (("momentum", momentum), ("drop_fraction", drop_fraction)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value}: must be in [0, 1)")
        if seed < 0:
            raise ValueError(f"seed={seed}: must be >= 0")
        self.beta, self.alpha = positive("beta", beta), non_negative("alpha", alpha)
        self.momentum, self.drop_fraction, self.seed = momentum, drop_fraction, seed
        self.label_smoothing = smoothing(label_smoothing)
        self._average, self._deviation, self._batches = 0.0, 0.0, 0

    def state(self) -> dict[str, Any]:
        return {
            "average": self._average,
            "deviation": self._deviation,
            "batches": self._batches,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._average, self._deviation = state["average"], state["deviation"]
        self._batches = state["batches"]

    def shared_values(self, scores: TokenScores) -> Tensor:
        sums = scores.per_response(scores.log_ratios().detach())
        return (sums[:, 0] - sums[:, 1])[:, None]

    def batch_values(self, shared: Tensor, is_training: bool = True) -> Tensor:
        """[N, 2]: the factor of every pair's loss, and the batch's beta."""
        gaps = shared[:, 0].double().cpu()
        if not is_training:
            return shared.new_tensor([1.0, self.beta]).repeat(len(gaps), 1)
        average, deviation = self._updated(gaps)
        kept = self._drawn(gaps, average, deviation)
        beta = self.beta * (1 + self.alpha * (float(gaps[kept].mean()) - average))
        factors = torch.zeros_like(gaps)
        factors[kept] = len(gaps) / len(kept)
        betas = torch.full_like(gaps, max(_LEAST_BETA, beta))
        return torch.stack([factors, betas], dim=1).to(shared)

    def observe(self, shared: Tensor) -> None:
        self._average, self._deviation = self._updated(shared[:, 0].double().cpu())
        self._batches += 1

    def __call__(self, scores: TokenScores, batch: CoupledBatch | None = None) -> ObjectiveOutput:
        if batch is None:
            self.check(scores)
            batch = self._whole(scores)
        output = super().__call__(scores, batch)
        factors, betas = batch.values[batch.rows].unbind(1)
        pairs = on_device(scores.num_pairs, betas)
        metrics: Metrics = {
            "beta/batch": (betas.sum(), pairs),
            "beta/kept_fraction": ((factors > 0).to(betas.dtype).sum(), pairs),
        }
        return replace(output, metrics={**output.metrics, **metrics})

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        return self.slice_losses(scores, self._whole(scores))

    def slice_losses(self, scores: TokenScores, batch: CoupledBatch) -> PairLosses:
        sums = scores.per_response(scores.log_ratios())
        factors, betas = batch.values[batch.rows].to(sums.dtype).unbind(1)
        losses = factors * logistic_loss(betas * (sums[:, 0] - sums[:, 1]), self.label_smoothing)
        return PairLosses(losses, self.beta * sums)

    def _whole(self, scores: TokenScores) -> CoupledBatch:
        """These pairs as a whole training batch."""
        values = self.batch_values(self.shared_values(scores))
        return CoupledBatch(values, torch.arange(scores.num_pairs, device=values.device))

    def _updated(self, gaps: Tensor) -> tuple[float, float]:
        """Average and deviation with this batch in them."""
        spread = float(gaps.std()) if len(gaps) > 1 else 0.0
        keep = self.momentum
        return (
            keep * self._average + (1 - keep) * float(gaps.mean()),
            keep * self._deviation + (1 - keep) * spread,
        )

    def _drawn(self, gaps: Tensor, average: float, deviation: float) -> Tensor:
        """int64 [kept]: pairs drawn one after the other, of those left, by their weights.

        The largest of log weight + Gumbel noise are such a draw.
        """
        kept = max(1, int(len(gaps) * (1 - self.drop_fraction) + 1e-9))
        distance = (gaps - average) / max(deviation, _LEAST_DEVIATION)
        noise = np.random.default_rng([self.seed, self._batches]).gumbel(size=len(gaps))
        keys = -0.5 * distance.square() + torch.from_numpy(noise)
        return keys.topk(kept).indices.sort().values
