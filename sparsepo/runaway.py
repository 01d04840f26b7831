"""Says when a policy leaves its reference without learning anything from it."""

from collections.abc import Mapping, Sequence
from typing import Any

_WINDOW, _MOST_NATS, _LEAST_FALL = 20, 1.0, 0.01


class RunawayWatch:
    """Watches loss and KL, and warns once when the KL runs away.

    It does when, over 20 steps, KL(reference || policy) grew by more than 1 nat per response and
    the loss did not fall by 1 % (means of the later ten steps against the earlier ten). A policy
    that learns pays for its loss with KL; one that drifts on rounding noise, or takes too large
    steps, pays for nothing. Needs an objective that reports the KL.

    Args:
        state: what `state` returned for an earlier watch, to continue after a restart.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._window: list[Sequence[float]] = list((state or {}).get("window", ()))
        self._has_told = bool((state or {}).get("has_told", False))

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"window": self._window, "has_told": self._has_told}

    def observe(self, record: Mapping[str, Any]) -> list[str]:
        """Take one step's metrics (means over the global batch); returns the step's warnings."""
        if "kl/reference_policy" not in record or self._has_told:
            return []
        self._window = [
            *self._window,
            (float(record["loss"]), float(record["kl/reference_policy"])),
        ][-_WINDOW:]
        if len(self._window) < _WINDOW:
            return []
        half = _WINDOW // 2
        (loss_before, kl_before), (loss, kl) = (
            _means(self._window[:half]),
            _means(self._window[half:]),
        )
        if kl - kl_before <= _MOST_NATS or loss < (1 - _LEAST_FALL) * loss_before:
            return []
        self._window, self._has_told = [], True
        return [
            f"KL(reference || policy) runs away: from {kl_before:.1f} to {kl:.1f} nats per "
            f"response within {_WINDOW} steps, and the loss did not fall ({loss_before:.3f} to "
            f"{loss:.3f}): lower the learning rate, raise beta, or centre a learned mask's weights "
            "(weights='centred')"
        ]


def _means(window: Sequence[Sequence[float]]) -> tuple[float, float]:
    return sum(loss for loss, _ in window) / len(window), sum(kl for _, kl in window) / len(window)
