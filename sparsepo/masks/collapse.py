"""Says when a mask has stopped telling tokens apart."""

from collections.abc import Mapping
from typing import Any

_PATIENCE = 20


class CollapseWatch:
    """Watches the masks' statistics and warns once per mask and way of collapsing.

    A mask has collapsed when it is zero on every token, or has one value on all tokens of every
    response, on 20 steps in a row.

    Args:
        terms: names of the masked terms, "reward" and "kl".
        streaks: counts of an earlier watch, to continue after a restart.
    """

    def __init__(self, terms: tuple[str, ...], streaks: Mapping[str, int] | None = None) -> None:
        self._terms = terms
        self.streaks: dict[str, int] = dict(streaks or {})

    def observe(self, record: Mapping[str, Any]) -> list[str]:
        """Take one step's metrics (means over the global batch); returns the warnings that this
        step gives rise to.
        """
        warnings = []
        for term in self._terms:
            zeros, spread = record[f"masks/{term}_zero_fraction"], record[f"masks/{term}_spread"]
            states = {"zero": zeros == 1.0, "equal": spread == 0.0 and zeros < 1.0}
            for state, holds in states.items():
                key = f"{term}_{state}"
                self.streaks[key] = self.streaks.get(key, 0) + 1 if holds else 0
                if self.streaks[key] == _PATIENCE:
                    warnings.append(_MESSAGES[state].format(term=term, steps=_PATIENCE))
        return warnings


_MESSAGES = {
    "zero": (
        "the {term} mask has been zero on every token for {steps} steps and gets no gradient any "
        "more: hold its zeros with target_sparsity, lower l1_{term} or the masks' learning rate, "
        "or try another seed"
    ),
    "equal": (
        "the {term} mask has had one value on all tokens of every response for {steps} steps, so "
        "it selects nothing: raise the masks' learning rate, set target_sparsity, or train without "
        "a mask, which costs less"
    ),
}
