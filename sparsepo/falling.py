"""Says when a preference loss is paid for with the chosen responses' own probability."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparsepo.watch import WindowWatch

_WINDOW, _LEAST_NATS, _LEAST_ERRORS = 50, 1.0, 4.0


class FallingChosenWatch(WindowWatch):
    """Watches the chosen responses' log-probability, and warns once when it falls as margins grow.

    It does when, over 50 steps, the fitted line of logps/chosen falls by more than 1 nat per
    response, that of rewards/margins rises, and both slopes are 4 standard errors from 0. Batches
    differ in length and difficulty: a fall that this noise explains is none.
    Needs an objective that reports margins.

    Args:
        state: what `state` returned for an earlier watch, to continue after a restart.
    """

    def observe(self, record: Mapping[str, Any]) -> list[str]:
        """Take one step's metrics (means over the global batch); returns the step's warnings."""
        if self._has_told or not {"logps/chosen", "rewards/margins"} <= record.keys():
            return []
        values = float(record["logps/chosen"]), float(record["rewards/margins"])
        if not self._fills(_WINDOW, *values):
            return []
        chosen, margins = (_Line.through(values) for values in zip(*self._window, strict=True))
        falls = -chosen.rise > _LEAST_NATS and chosen.errors < -_LEAST_ERRORS
        if not (falls and margins.errors > _LEAST_ERRORS):
            return []
        return self._tell(
            f"logps/chosen falls while rewards/margins grow: by {-chosen.rise:.1f} nats per "
            f"response within {_WINDOW} steps, so the policy unlearns the chosen responses too: "
            "add their likelihood to the loss (nll_coef), or take DPOP or the loss apo_zero, which "
            "hold it up (with KTO, raise desirable_weight)"
        )


class _Line:
    """A least-squares line through equally spaced values.

    Attributes:
        rise: last minus first value of the line. errors: the slope in its standard errors.
    """

    def __init__(self, rise: float, errors: float) -> None:
        self.rise, self.errors = rise, errors

    @classmethod
    def through(cls, values: Sequence[float]) -> "_Line":
        count = len(values)
        mean = sum(values) / count
        places = [at - (count - 1) / 2 for at in range(count)]
        spread = sum(place * place for place in places)
        slope = sum(place * value for place, value in zip(places, values, strict=True)) / spread
        left = [value - mean - slope * at for at, value in zip(places, values, strict=True)]
        error = math.sqrt(sum(value * value for value in left) / (count - 2) / spread)
        if slope and not error:
            return cls(slope * (count - 1), math.copysign(math.inf, slope))
        return cls(slope * (count - 1), slope / error if slope else 0.0)
