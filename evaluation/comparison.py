"""Two models on the same prompts: differences paired by prompt."""

from collections.abc import Sequence
from typing import Any

from evaluation.bootstrap import Interval, mean_interval


def paired_difference(
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]],
    value: str,
    samples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Interval of the mean of second minus first over the prompts that both have.

    It is None if there is none. A prompt's differences at several temperatures are resampled
    together.

    Args:
        first, second: sample records with prompt, temperature and the named value; of several
            samples of a prompt at one temperature the mean counts.
    """
    one, other = _by_prompt(first, value), _by_prompt(second, value)
    shared = [key for key in one if key in other]
    if not shared:
        return None
    return mean_interval(
        [other[key] - one[key] for key in shared], samples, seed, [prompt for prompt, _ in shared]
    )


def _by_prompt(records: Sequence[dict[str, Any]], value: str) -> dict[tuple[str, float], float]:
    found: dict[tuple[str, float], list[float]] = {}
    for record in records:
        if value in record:
            found.setdefault((record["prompt"], record.get("temperature", 1.0)), []).append(
                float(record[value])
            )
    return {key: sum(values) / len(values) for key, values in found.items()}
