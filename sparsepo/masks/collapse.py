"""Says when a mask has stopped telling tokens apart."""

from collections.abc import Mapping
from typing import Any

_PATIENCE = 20
_DEAD_FRACTION = (
    0.99  # of tokens with weight zero; a ReLU that is shut this far gets next to no gradient
)


class CollapseWatch:
    """Watches the masks' statistics and warns once per mask and way of collapsing.

    A mask has collapsed when more than 99 % of its weights are zero, or it has one value on all
    tokens of every response, on 20 steps in a row.

    Args:
        terms: names of the masked terms, "reward" and "kl".
        streaks: counts of an earlier watch, to continue after a restart.
    """

    def __init__(self, terms: tuple[str, ...], streaks: Mapping[str, int] | None = None) -> None:
        self._terms = terms
        self.streaks: dict[str, int] = dict(streaks or {})

    def observe(self, record: Mapping[str, Any]) -> list[str]:
        """Take one step's metrics (means over the global batch); returns the step's warnings."""
        warnings = []
        for term in self._terms:
            zeros, spread = record[f"masks/{term}_zero_fraction"], record[f"masks/{term}_spread"]
            is_dead = zeros > _DEAD_FRACTION
            states = {"zero": is_dead, "equal": spread == 0.0 and not is_dead}
            for state, holds in states.items():
                key = f"{term}_{state}"
                self.streaks[key] = self.streaks.get(key, 0) + 1 if holds else 0
                if self.streaks[key] == _PATIENCE:
                    warnings.append(_MESSAGES[state].format(term=term, steps=_PATIENCE))
        return warnings


_MESSAGES = {
    "zero": (
        "the {term} mask has been zero on more than 99 % of all tokens for {steps} steps and "
        "hardly gets a gradient any more: centre the weights (weights='centred'), hold its zeros "
        "with target_sparsity, or lower l1_{term} or the masks' learning rate"
    ),
    "equal": (
        "the {term} mask has had one value on all tokens of every response for {steps} steps, so "
        "it selects nothing: raise the masks' learning rate, set target_sparsity, or take TDPO1, "
        "which costs less"
    ),
}
