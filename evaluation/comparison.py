"""Two models on the same prompts, two methods on the same seeds: paired differences."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import variance
from typing import Any

from evaluation.intervals import Interval, mean_interval, ratio_interval, t_interval

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SeedComparison:
    """A method less another, seed by seed.

    Attributes:
        difference: over the seeds that both have; of a single one over its prompts. seeds: those.
            left_out: seeds of one method alone, by "first" and "second".
    """

    difference: Interval
    seeds: tuple[int, ...]
    left_out: Mapping[str, tuple[int, ...]]

    @property
    def varies_seeds(self) -> bool:
        return len(self.seeds) > 1


def paired_difference(first: Records, second: Records, value: str) -> Interval | None:
    """Interval of the mean of second minus first over the prompts that both have.

    It is None if there is none. A prompt's differences at several temperatures belong together.

    Args:
        first, second: sample records with prompt, temperature and the named value; of several
            samples of a prompt at one temperature the mean counts.
    """
    pairs = _pairs(first, second, value)
    if not pairs:
        return None
    return mean_interval(
        [other - one for one, other in pairs.values()], [prompt for prompt, _ in pairs]
    )


def paired_ratio(first: Records, second: Records, value: str) -> Interval | None:
    """Interval of second's mean over first's, on the prompts that both have.

    It is None if there is none, or if first's values are all 0, to which nothing has a ratio.

    Args:
        first, second: as in `paired_difference`; the values are not negative.
    """
    pairs = _pairs(first, second, value)
    if not any(one > 0 for one, _ in pairs.values()):
        return None
    return ratio_interval(
        [other for _, other in pairs.values()],
        [max(0.0, one) for one, _ in pairs.values()],
        [prompt for prompt, _ in pairs],
    )


def pooled_spread(first: Records, second: Records, value: str) -> float:
    """Root of the mean of both variances over the shared prompts: the unit of Cohen's d.

    It is 0 for fewer than two prompts.

    Source: Cohen, Statistical power analysis for the behavioral sciences (1988), section 2.2.
    """
    pairs = list(_pairs(first, second, value).values())
    if len(pairs) < 2:
        return 0.0
    return math.sqrt(sum(variance(side) for side in zip(*pairs, strict=True)) / 2)


def compared_by_seed(
    first: Mapping[int, Records], second: Mapping[int, Records], value: str
) -> SeedComparison | None:
    """Second minus first, paired by seed and by prompt: Student's interval over the seeds.

    Prompts tell how one trained model differs from another. Only seeds tell how a method does:
    with one of them the interval is over prompts, and says nothing about another training.

    Args:
        first, second: seed -> the sample records of its run. value: see `paired_difference`.
    Returns: None where no seed, or no prompt of a seed, is in both.
    """
    shared = sorted(first.keys() & second.keys())
    found = {seed: paired_difference(first[seed], second[seed], value) for seed in shared}
    known = {seed: difference for seed, difference in found.items() if difference is not None}
    if not known:
        return None
    differences = list(known.values())
    return SeedComparison(
        differences[0] if len(known) == 1 else t_interval([d.mean for d in differences]),
        tuple(known),
        _left_out(first, second, known),
    )


def numbers_by_seed(
    first: Mapping[int, float], second: Mapping[int, float]
) -> SeedComparison | None:
    """Second minus first of one number of each run; None with fewer than two seeds in both."""
    shared = sorted(first.keys() & second.keys())
    if len(shared) < 2:
        return None
    difference = t_interval([second[seed] - first[seed] for seed in shared])
    return SeedComparison(difference, tuple(shared), _left_out(first, second, shared))


def _left_out(
    first: Iterable[int], second: Iterable[int], taken: Iterable[int]
) -> dict[str, tuple[int, ...]]:
    named = {"first": set(first), "second": set(second)}
    return {
        name: tuple(sorted(rest)) for name, seeds in named.items() if (rest := seeds - set(taken))
    }


def _pairs(
    first: Records, second: Records, value: str
) -> dict[tuple[str, float], tuple[float, float]]:
    """Both values of every (prompt, temperature) that both have, in first's order."""
    one, other = _by_prompt(first, value), _by_prompt(second, value)
    return {key: (one[key], other[key]) for key in one if key in other}


def _by_prompt(records: Records, value: str) -> dict[tuple[str, float], float]:
    found: dict[tuple[str, float], list[float]] = {}
    for record in records:
        if value in record:
            found.setdefault((record["prompt"], record.get("temperature", 1.0)), []).append(
                float(record[value])
            )
    return {key: sum(values) / len(values) for key, values in found.items()}
