"""Quality gates: conditions on an evaluation's numbers, alone or against a release's."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class GateFailure:
    """A gate that did not hold: value is None where the evaluation did not report the metric."""

    metric: str
    value: float | None
    limit: float | None
    message: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def gate_failures(
    metric: str,
    values: Mapping[str, float],
    release: Mapping[str, float] | None = None,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    max_drop: float | None = None,
    max_rise: float | None = None,
) -> list[GateFailure]:
    """What of one gate does not hold; a metric that is missing, or not a number, fails.

    Args:
        values: numbers of the evaluation; release: those of the release that max_drop and max_rise
            compare with.
    """
    value = values.get(metric)
    if value is None or value != value:
        return [
            GateFailure(metric, value, None, f"{metric} is not reported{_near(metric, values)}")
        ]
    found = []
    if minimum is not None and value < minimum:
        found.append(
            GateFailure(metric, value, minimum, f"{metric} = {value:.6g} is below {minimum:g}")
        )
    if maximum is not None and value > maximum:
        found.append(
            GateFailure(metric, value, maximum, f"{metric} = {value:.6g} is above {maximum:g}")
        )
    if max_drop is not None or max_rise is not None:
        before = (release or {}).get(metric)
        if before is None:
            return [
                *found,
                GateFailure(
                    metric,
                    value,
                    None,
                    f"{metric} is not reported by the release{_near(metric, release or {})}",
                ),
            ]
        if max_drop is not None and value < before - max_drop:
            message = (
                f"{metric} = {value:.6g} is {before - value:.6g} below the release's {before:.6g}, "
                f"allowed are {max_drop:g}"
            )
            found.append(GateFailure(metric, value, before - max_drop, message))
        if max_rise is not None and value > before + max_rise:
            message = (
                f"{metric} = {value:.6g} is {value - before:.6g} above the release's {before:.6g}, "
                f"allowed are {max_rise:g}"
            )
            found.append(GateFailure(metric, value, before + max_rise, message))
    return found


def _near(metric: str, values: Mapping[str, float]) -> str:
    near = difflib.get_close_matches(
        metric, [key for key in values if not key.endswith(("/low", "/high"))], n=1, cutoff=0.4
    )
    return f": did you mean {near[0]!r}?" if near else ""
