"""What the worlds' trainings say of two methods: at equal distance, and at their best."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats
from world_settings import COMPARED, settings_of

from evaluation.intervals import t_interval

Record = dict[str, Any]
NAMES = [setting.name for setting in COMPARED]
ALL = settings_of("worlds")
MOST_NATS_PER_TOKEN = 2.0
_LEVELS, _FEWEST = 9, 3  # distances of a mean; seeds of an interval


def gain_at(records: Sequence[Record], nats: float, what: str = "gain") -> float | None:
    """A method's gain at this distance, from its finished trainings with different betas.

    Between two of them, in the order of their KL, it is a straight line; None outside.
    """
    ends = sorted((r["points"][-1]["kl"], r["points"][-1][what]) for r in records if r["points"])
    for (near, low), (far, high) in pairwise(ends):
        if near <= nats <= far:
            return float(low + (high - low) * (nats - near) / ((far - near) or 1.0))
    return None


def is_lost(record: Record) -> bool:
    """Whether the training was refused, warned of, or ran away."""
    if record["failed"] or record["warnings"] or not record["points"]:
        return True
    last = record["points"][-1]
    return bool(last["kl"] > MOST_NATS_PER_TOKEN * max(1.0, last["tokens"]))


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, and the bounds of a 95 % t interval over the seeds; none of one seed."""
    return t_interval(values).as_dict()


def over_seeds(
    records: Sequence[Record], value: Callable[[Record], float | None]
) -> dict[str, float] | None:
    """The interval of a value, None where a seed has none."""
    values = [value(record) for record in records]
    known = [v for v in values if v is not None and not math.isnan(v)]
    return interval(known) if known and len(known) == len(values) else None


def last(name: str) -> Callable[[Record], float | None]:
    def value(record: Record) -> float | None:
        return float(record["points"][-1][name]) if record["points"] else None

    return value


def by_seed(own: Sequence[Record], name: str) -> dict[int, list[Record]]:
    """A method's trainings with all betas that were not lost."""
    found: dict[int, list[Record]] = {}
    for record in own:
        if record["setting"].rpartition(" ")[0] == name and not is_lost(record):
            found.setdefault(record["seed"], []).append(record)
    return found


def shared_range(one: Sequence[Record], other: Sequence[Record]) -> tuple[float, float] | None:
    """The distances in nats that both methods' trainings span, None if they have none in common."""
    ends = [[r["points"][-1]["kl"] for r in records] for records in (one, other)]
    low, high = max(map(min, ends)), min(map(max, ends))
    return (low, high) if 0 < low < high else None


def difference_over(
    one: Sequence[Record], other: Sequence[Record], span: tuple[float, float]
) -> float:
    """Mean of one's gain less the other's at distances spread evenly over the logarithm."""
    low, high = span
    levels = [low, *np.geomspace(low, high, _LEVELS)[1:-1], high]
    gains = [(gain_at(one, nats), gain_at(other, nats)) for nats in levels]
    assert all(mine is not None and its is not None for mine, its in gains), "within the range"
    return float(np.mean([mine - its for mine, its in gains]))  # type: ignore[operator]


def at_equal_distance(own: Sequence[Record], name: str) -> dict[str, Any] | None:
    """A method's gain less DPO's at the same KL, over the range that both reach on a seed.

    None if they share one on fewer than `_FEWEST` seeds. `n` of `of` seeds are in the interval;
    `nats` are the ends of the range, geometric means over them.
    """
    mine, base = by_seed(own, name), by_seed(own, NAMES[0])
    spans = {s: shared_range(mine[s], base[s]) for s in sorted(mine.keys() & base.keys())}
    known = {seed: span for seed, span in spans.items() if span is not None}
    if len(known) < _FEWEST:
        return None
    found = interval([difference_over(mine[s], base[s], span) for s, span in known.items()])
    nats = [float(stats.gmean(ends)) for ends in zip(*known.values(), strict=True)]
    return {**found, "nats": nats, "of": len({r["seed"] for r in own})}


def at_best(own: Sequence[Record], name: str) -> dict[str, Any] | None:
    """The beta with the highest mean gain over all seeds: that gain, and what it is above DPO's.

    Trainings that were lost count as they ended; one without an end leaves its beta out.
    """
    best, base = _best(own, name), _best(own, NAMES[0])
    if best is None or base is None:
        return None
    other = {r["seed"]: r["points"][-1]["gain"] for r in base}
    less = [r["points"][-1]["gain"] - other[r["seed"]] for r in best if r["seed"] in other]
    return {
        **interval(less),
        "beta": float(best[0]["setting"].rpartition(" ")[2]),
        "gain": over_seeds(best, last("gain")),
        "kl": over_seeds(best, last("kl")),
    }


def _best(own: Sequence[Record], name: str) -> list[Record] | None:
    settings = [s.name for s in ALL if s.name.rpartition(" ")[0] == name]
    groups = [[r for r in own if r["setting"] == setting] for setting in settings]
    ended = [group for group in groups if group and all(r["points"] for r in group)]
    return max(ended, key=lambda g: np.mean([r["points"][-1]["gain"] for r in g]), default=None)
