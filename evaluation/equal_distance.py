"""Methods compared where they have moved equally far from the reference.

A sweep measures each method at a few distances. Along a method's own Pareto front its gain between
two of them is interpolated. Prompts are drawn again for the intervals: gain and distance of every
trial are taken anew on them, and both methods of a difference see the same ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evaluation.frontier import pareto_front
from evaluation.intervals import Interval

Floats = NDArray[np.float64]
_COVERED = (2.5, 97.5)  # percentiles
_STEPS = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Measured:
    """A trial: its distance (nats, lower is nearer) and its gain (higher is better).

    Attributes:
        by_prompt: prompt -> (gain, distance); empty where the metrics are not measured by prompt.
    """

    distance: float
    gain: float
    by_prompt: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reached:
    """A method's gain at a distance.

    Attributes:
        gain: None where the method was not measured so near or so far ("not reached"), or only
            with a gain that it has nearer already ("past its best").
        low, high: of the 95 % interval, None without values by prompt.
    """

    why: str = ""
    gain: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Level:
    """All methods at one distance; differences are those to the first method that is there."""

    distance: float
    methods: dict[str, Reached]
    differences: dict[str, Interval]


def compare_at(
    methods: Mapping[str, Sequence[Measured]],
    levels: Sequence[float],
    samples: int = 2000,
    seed: int = 0,
) -> list[Level]:
    """Every method's gain at each distance, and by how much it differs from the first one's.

    Args:
        methods: name -> its trials, at least one each.
    """
    fronts = {name: own_front(trials) for name, trials in methods.items()}
    drawn = _drawn(fronts, samples, seed)
    return [_level(level, methods, fronts, drawn) for level in levels]


def own_front(trials: Sequence[Measured]) -> list[Measured]:
    """The trials that no other of the method dominates, the nearest first."""
    kept = pareto_front([(t.gain, t.distance) for t in trials], (True, False))
    return sorted((trials[i] for i in kept), key=lambda t: t.distance)


def round_levels(lowest: float, highest: float, most: int = 5) -> list[float]:
    """Round distances (1, 2 or 5 times a power of ten) in a range, evenly chosen if too many."""
    if not 0 <= lowest < highest:
        return []
    first = int(np.floor(np.log10(max(lowest, highest / 50, 1e-12))))
    ladder = [
        float(f"{step * 10.0**power:.1g}")
        for power in range(first, int(np.floor(np.log10(highest))) + 1)
        for step in _STEPS
    ]
    found = [level for level in ladder if max(lowest, highest / 50) <= level <= highest]
    if len(found) > most:
        found = [found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)]
    return found


def _level(
    level: float,
    methods: Mapping[str, Sequence[Measured]],
    fronts: Mapping[str, list[Measured]],
    drawn: Mapping[str, tuple[Floats, Floats]],
) -> Level:
    reached: dict[str, Reached] = {}
    again: dict[str, Floats] = {}
    for name, front in fronts.items():
        distances = [trial.distance for trial in front]
        if not min(distances) <= level <= max(t.distance for t in methods[name]):
            reached[name] = Reached("not reached")
            continue
        if level > distances[-1]:
            reached[name] = Reached("past its best")
            continue
        gain = float(np.interp(level, distances, [trial.gain for trial in front]))
        reached[name] = Reached(gain=gain)
        if name in drawn:
            again[name] = _interpolated(level, *drawn[name])
            low, high = np.percentile(again[name], _COVERED)
            reached[name] = Reached("", gain, float(low), float(high))
    there = [name for name, found in reached.items() if found.gain is not None]
    differences = {}
    for name in there[1:]:
        if name in again and there[0] in again:
            low, high = np.percentile(again[name] - again[there[0]], _COVERED)
            mean = (reached[name].gain or 0.0) - (reached[there[0]].gain or 0.0)
            number = len(fronts[name][0].by_prompt)
            differences[name] = Interval(mean, float(low), float(high), number)
    return Level(level, reached, differences)


def _drawn(
    fronts: Mapping[str, list[Measured]], samples: int, seed: int
) -> dict[str, tuple[Floats, Floats]]:
    """Method -> distances and gains [samples, trials] of its front on prompts drawn again.

    Only the prompts that all trials have count; empty without any.
    """
    trials = [trial for front in fronts.values() for trial in front]
    shared = [p for p in trials[0].by_prompt if all(p in t.by_prompt for t in trials)]
    if not shared:
        return {}
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(shared), [1 / len(shared)] * len(shared), samples) / len(shared)
    found = {}
    for name, front in fronts.items():
        values = np.array([[trial.by_prompt[p] for p in shared] for trial in front])
        found[name] = (weights @ values[:, :, 1].T, weights @ values[:, :, 0].T)
    return found


def _interpolated(level: float, distances: Floats, gains: Floats) -> Floats:
    """Gain at the level in every drawing, at the end of the front if the drawing's is shorter."""
    found = np.empty(len(distances))
    for i, (there, gain) in enumerate(zip(distances, gains, strict=True)):
        order = np.argsort(there)
        found[i] = np.interp(level, there[order], gain[order])
    return found
