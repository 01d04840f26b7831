"""MaPO: the SparsePO loss with a frozen mask and no penalty.

Source: Christopoulou et al., arXiv:2410.05102.
"""

from sparsepo.objectives.weighted import Weighted


class MaPO(Weighted, name="mapo"):
    """logits = beta * [(U + K)_chosen - (U + K)_rejected].

    The reference's activations weight U and K. The same equation serves any frozen mask: random or
    external weights are its natural baselines. Without a mask it is TDPO v1, which has a name of
    its own. The implicit reward is
    beta * (U + K), so the margin is the logit. At the reference the loss is ln 2; exchanging chosen
    and rejected negates the margin. It is Weighted with alpha 1.

    Args:
        beta: inverse temperature, > 0. label_smoothing, nll_coef: see LogisticObjective.
    """

    def __init__(
        self, beta: float = 0.1, label_smoothing: float = 0.0, nll_coef: float = 0.0
    ) -> None:
        super().__init__(beta, alpha=1.0, label_smoothing=label_smoothing, nll_coef=nll_coef)
