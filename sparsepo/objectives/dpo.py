"""Direct preference optimisation, and other losses of the same log ratios.

Source: Rafailov et al., arXiv:2305.18290, eq. 7; of every other loss and divergence: equations.py.
"""

from torch import Tensor

from sparsepo.objectives.base import LogisticObjective, PairLosses, positive
from sparsepo.objectives.equations import DIVERGENCES, EQUATIONS, ResponseValues
from sparsepo.objectives.losses import (
    DEFAULT_DIVERGENCE_ALPHA,
    LOSSES,
    Divergence,
    SequenceLoss,
    loss_conflict,
)
from sparsepo.records import TokenScores


class DPO(LogisticObjective, name="dpo"):
    """losses = loss(z, R_chosen, R_rejected) with z = beta * (R_chosen - R_rejected).

    R is the sum of a response's log ratios in nats, or what `divergence` puts for it. The loss
    `sigmoid` is DPO: z is its logit, at the reference it is ln 2 (label_smoothing 0). The implicit
    reward is beta * R, so the margin is z; exchanging chosen and rejected negates it.

    Args:
        beta: inverse temperature, > 0; None is the loss's own default, 0.1 for all but
            sigmoid_norm. label_smoothing, nll_coef: see LogisticObjective.
        loss: one of LOSSES. sigmoid_norm reads means per token, and so are its rewards.
        divergence: f'(policy / reference) instead of R: `reverse` is R, `forward` 1 - e^-R, `js`
            log 2 + log sigmoid(R), `alpha` (e^((a-1) R) - 1) / (a - 1).
        divergence_alpha: the a of `alpha`, in (0, 1); None is 0.5.
    Raises: ValueError for an option that the loss would ignore.
    """

    def __init__(
        self,
        beta: float | None = None,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
        loss: SequenceLoss = "sigmoid",
        divergence: Divergence = "reverse",
        divergence_alpha: float | None = None,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        conflict = loss_conflict(loss, label_smoothing, divergence, divergence_alpha)
        if conflict:
            raise ValueError(conflict)
        self.beta = positive("beta", LOSSES[loss].beta if beta is None else beta)
        self.loss, self.divergence = loss, divergence
        self.divergence_alpha = divergence_alpha or DEFAULT_DIVERGENCE_ALPHA

    def response_values(self, scores: TokenScores) -> ResponseValues:
        """What the loss reads of every response."""
        sums = scores.per_response(scores.log_ratios())
        values = DIVERGENCES[self.divergence](sums, self.divergence_alpha)
        if LOSSES[self.loss].is_per_token:
            values = values / scores.lengths()
        return ResponseValues(values, self.beta, self.label_smoothing)

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        values = self.response_values(scores)
        return values.logits, values.rewards

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        values = self.response_values(scores)
        return PairLosses(EQUATIONS[self.loss](values), values.rewards)
