"""Says when a policy leaves its reference without learning anything from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparsepo.watch import WindowWatch

_WINDOW, _MOST_NATS, _LEAST_FALL = 20, 1.0, 0.01


class RunawayWatch(WindowWatch):
    """Watches loss and KL, and warns once when the KL runs away.

    It does when, over 20 steps, KL(reference || policy) grew by more than 1 nat per response and
    the loss did not fall by 1 % (means of the later ten steps against the earlier ten). A policy
    that learns pays for its loss with KL; one that drifts on rounding noise, or takes too large
    steps, pays for nothing. Needs an objective that reports the KL.

    Args:
        state: what `state` returned for an earlier watch, to continue after a restart.
    """

    def observe(self, record: Mapping[str, Any]) -> list[str]:
        """Take one step's metrics (means over the global batch); returns the step's warnings."""
        if "kl/reference_policy" not in record or self._has_told:
            return []
        values = float(record["loss"]), float(record["kl/reference_policy"])
        if not self._fills(_WINDOW, *values):
            return []
        half = _WINDOW // 2
        (loss_before, kl_before), (loss, kl) = (
            _means(self._window[:half]),
            _means(self._window[half:]),
        )
        if kl - kl_before <= _MOST_NATS or loss < (1 - _LEAST_FALL) * loss_before:
            return []
        return self._tell(
            f"KL(reference || policy) runs away: from {kl_before:.1f} to {kl:.1f} nats per "
            f"response within {_WINDOW} steps, and the loss did not fall ({loss_before:.3f} to "
            f"{loss:.3f}): lower the learning rate, raise beta, or centre a learned mask's weights "
            "(weights='centred')"
        )


def _means(window: Sequence[Sequence[float]]) -> tuple[float, float]:
    return sum(loss for loss, _ in window) / len(window), sum(kl for _, kl in window) / len(window)
