"""DPO with less weight on the rejected response. Source: Yang et al., arXiv:2502.07599."""

from torch import Tensor

from sparsepo.objectives.base import LogisticObjective, positive
from sparsepo.records import Metrics, TokenScores, on_device


class DPOShift(LogisticObjective, name="dpo_shift"):
    """logits = beta * (R_chosen - lambda * R_rejected).

    R is the sum of a response's log ratios in nats. lambda goes linearly from lambda_start in the
    first step to lambda_end in the last (`advance`); two equal numbers are a fixed one, 1 is DPO.
    The implicit reward is beta * R, so the margin is the logit where lambda is 1; exchanging chosen
    and rejected negates the margin. At the reference the loss is ln 2.

    Args:
        beta: inverse temperature, > 0. lambda_start, lambda_end: in (0, 1]. label_smoothing,
            nll_coef: see LogisticObjective.
    """

    def __init__(
        self,
        beta: float = 0.1,
        lambda_start: float = 0.5,
        lambda_end: float = 1.0,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, nll_coef=nll_coef)
        for name, value in (("lambda_start", lambda_start), ("lambda_end", lambda_end)):
            if not 0 < value <= 1:
                raise ValueError(f"{name}={value}: must be in (0, 1]")
        self.beta = positive("beta", beta)
        self.lambda_start, self.lambda_end = lambda_start, lambda_end
        self.progress = 0.0

    def advance(self, progress: float) -> None:
        self.progress = progress

    @property
    def rejected_weight(self) -> float:
        """lambda, now."""
        return self.lambda_start + self.progress * (self.lambda_end - self.lambda_start)

    def logits_and_rewards(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        rewards = self.beta * scores.per_response(scores.log_ratios())
        return rewards[:, 0] - self.rejected_weight * rewards[:, 1], rewards

    def extra_metrics(self, scores: TokenScores) -> Metrics:
        pairs = scores.num_pairs
        return {
            "weights/rejected": (
                on_device(self.rejected_weight * pairs, scores.policy_logps),
                on_device(pairs, scores.policy_logps),
            )
        }
