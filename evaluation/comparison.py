"""Two models on the same prompts: differences paired by prompt."""

import math
from collections.abc import Mapping, Sequence
from statistics import variance
from typing import Any

from evaluation.bootstrap import Interval, mean_interval, ratio_interval

Records = Sequence[Mapping[str, Any]]


def paired_difference(
    first: Records, second: Records, value: str, samples: int = 2000, seed: int = 0
) -> Interval | None:
    """Interval of the mean of second minus first over the prompts that both have.

    It is None if there is none. A prompt's differences at several temperatures are resampled
    together.

    Args:
        first, second: sample records with prompt, temperature and the named value; of several
            samples of a prompt at one temperature the mean counts.
    """
    pairs = _pairs(first, second, value)
    if not pairs:
        return None
    return mean_interval(
        [other - one for one, other in pairs.values()],
        samples,
        seed,
        [prompt for prompt, _ in pairs],
    )


def paired_ratio(
    first: Records, second: Records, value: str, samples: int = 2000, seed: int = 0
) -> Interval | None:
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
        samples,
        seed,
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
