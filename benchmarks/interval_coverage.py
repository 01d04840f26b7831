"""How often the evaluation's 95 % intervals hold the truth: a simulation.

    python benchmarks/interval_coverage.py > coverage.jsonl
    python benchmarks/interval_coverage.py --table coverage.jsonl

The first takes minutes on one core and prints a line of JSON per case: a world, a number
of prompts and of samples per prompt, the share of intervals that held the truth, their mean width.
`old` is the percentile bootstrap over prompts that the evaluation used before. The second prints
the table of docs/evaluation.md.

Samples of one prompt share an effect of the prompt. A world's truth is known, or is the mean over
many draws of it.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.frontier import reward_at, reward_at_interval
from evaluation.intervals import Interval, mean_interval, rate_interval
from evaluation.metrics.auc import auc, auc_interval
from evaluation.metrics.distinct_n import distinct_n, distinct_n_interval
from evaluation.metrics.rank_correlation import rank_correlation_interval

PROMPTS, SAMPLES = (10, 20, 50, 200), (1, 4)
OLD_DRAWS = 400
Rng = np.random.Generator
Array = Any  # of numpy


@dataclass(frozen=True)
class World:
    """Values of [prompts, samples] with their truth, and the interval that the evaluation makes.

    Attributes:
        draw: values and truth. interval: of values and their prompts. statistic: of values of
            [prompts, samples], where its truth is not known; None for the mean. repeats: worlds
            drawn; of costly statistics fewer. old_up_to: prompts for which the old interval is
            made as well, which takes minutes for what is no mean.
    """

    draw: Callable[[Rng, int, int], tuple[Array, float]]
    interval: Callable[[Array, list[int]], Interval]
    statistic: Callable[[Array], float] | None = None
    repeats: int = 1000
    old_up_to: int = 200


def _normal(rng: Rng, n: int, m: int) -> tuple[Array, float]:
    return rng.normal(0, 0.55, (n, 1)) + rng.normal(0, 0.83, (n, m)), 0.0


def _exponential(rng: Rng, n: int, m: int) -> tuple[Array, float]:
    scale = np.ones((n, 1)) if m == 1 else rng.gamma(2, 0.5, (n, 1))
    return scale * rng.exponential(1.0, (n, m)), 1.0


def _lognormal(rng: Rng, n: int, m: int) -> tuple[Array, float]:
    return np.exp(rng.normal(0, 0.6, (n, 1)) + rng.normal(0, 0.8, (n, m))), float(np.exp(0.5))


def _mostly_zero(rng: Rng, n: int, m: int) -> tuple[Array, float]:
    """Rewards that are 0 for 70 % of samples, as VADER's are of texts without its words."""
    share = 0.3 * np.ones((n, 1)) if m == 1 else rng.beta(0.6, 1.4, (n, 1))
    return (rng.random((n, m)) < share) * rng.normal(0.5, 0.2, (n, m)), 0.15


def _hits(rng: Rng, n: int, m: int) -> tuple[Array, float]:
    """Zeros and ones; the share of ones is one of 0.85 to 0.95."""
    share = rng.uniform(0.85, 0.95)
    each = share if m == 1 else rng.beta(4 * share, 4 * (1 - share), (n, 1))
    return (rng.random((n, m)) < each).astype(float), share


def _verdicts(rng: Rng, n: int, m: int) -> tuple[Array, float]:
    """Losses, ties and wins (0, 0.5, 1), of which most are ties."""
    loss, win = rng.uniform(0.05, 0.15), rng.uniform(0.05, 0.35)
    if m == 1:
        drawn = rng.random((n, 1))
    else:
        from scipy.special import ndtr

        drawn = ndtr(
            np.sqrt(0.3) * rng.normal(size=(n, 1)) + np.sqrt(0.7) * rng.normal(size=(n, m))
        )
    values = np.where(drawn < loss, 0.0, np.where(drawn > 1 - win, 1.0, 0.5))
    return values, win + 0.5 * (1 - loss - win)


def _changes(rng: Rng, n: int, m: int) -> tuple[Array, float]:
    """Gains of hits: -1, 0, 1, of which most are 0."""
    values, truth = _verdicts(rng, n, m)
    return 2 * values - 1, 2 * truth - 1


def _passes(rng: Rng, n: int, m: int) -> tuple[Array, float]:
    """Shares of a task's 20 programs that pass: most tasks are hard, or easy."""
    return rng.binomial(20, rng.beta(0.3, 0.5, (n, m))) / 20, 0.3 / 0.8


def _tokens(rng: Rng, n: int, m: int) -> tuple[Array, float]:
    """Weight, other number and key label of the 8 tokens of each sample: [prompts, tokens, 3]."""
    shape = (n, 8 * m)
    keys = rng.random(shape) < 0.3
    shared = rng.normal(0, 0.4, (n, 1))
    weight = keys + shared + rng.normal(size=shape)
    other = 0.5 * weight + rng.normal(0, 0.4, (n, 1)) + rng.normal(size=shape)
    return np.stack([weight, other, keys], -1), np.nan


def _texts(rng: Rng, n: int, m: int) -> tuple[Array, float]:
    """Words by Zipf's law, of which a prompt prefers some: [prompts, samples] texts."""
    weights = 1 / np.arange(1, 301)
    texts = np.empty((n, m), dtype=object)
    for i in range(n):
        liked = weights * rng.gamma(1.0, 1.0, 300)
        words = rng.choice(300, (m, 15), p=liked / liked.sum())
        texts[i] = [" ".join(map(str, row)) for row in words]
    return texts, np.nan


def _strengths(rng: Rng, n: int, m: int) -> tuple[Array, float]:
    """KL and reward of samples of three strengths of a method: [prompts, samples, 3, 2]."""
    ease = rng.normal(0, 0.5, (n, 1, 1))
    kl = np.array([1.0, 3.0, 6.0]) * rng.gamma(4, 0.25, (n, m, 3))
    reward = np.array([0.2, 0.5, 0.6]) + ease + rng.normal(0, 0.6, (n, m, 3))
    return np.stack([kl, reward], -1), 0.35


def _at_two(values: Array) -> float:
    found = reward_at([(float(kl), float(r)) for kl, r in values.mean((0, 1))], 2.0)
    return np.nan if found is None else found


def _front_interval(values: Array, prompts: list[int]) -> Interval:
    by_prompt = values.mean(1)  # [prompts, 3, 2]
    found = reward_at_interval([(by_prompt[:, i, 0], by_prompt[:, i, 1]) for i in range(3)], 2.0)
    return found or Interval(np.nan, np.nan, np.nan, len(values))


def _of_tokens(interval: Callable[..., Interval]) -> Callable[[Array, list[int]], Interval]:
    def of(values: Array, prompts: list[int]) -> Interval:
        flat = values.reshape(-1, 3)
        return interval(*flat.T, np.repeat(np.arange(len(values)), values.shape[1]))

    return of


def _rank_correlation(weight: Array, other: Array, keys: Array, prompts: Array) -> Interval:
    return rank_correlation_interval(weight, other, prompts.tolist(), 400, 0)


def _spearman(values: Array) -> float:
    from scipy.stats import spearmanr

    flat = values.reshape(-1, 3)
    return float(spearmanr(flat[:, 0], flat[:, 1]).statistic)


def _flat(interval: Callable[..., Interval], *further: Any) -> Callable[..., Interval]:
    return lambda values, prompts: interval(values.reshape(-1), prompts, *further)


WORLDS = {
    "mean, normal": World(_normal, _flat(mean_interval)),
    "mean, exponential": World(_exponential, _flat(mean_interval)),
    "mean, lognormal": World(_lognormal, _flat(mean_interval)),
    "mean, 70 % zeros": World(_mostly_zero, _flat(mean_interval)),
    "hits near 0.9": World(_hits, _flat(rate_interval)),
    "wins, most of them ties": World(_verdicts, _flat(rate_interval)),
    "gains of hits, most of them 0": World(_changes, _flat(rate_interval, (-1.0, 1.0))),
    "pass@1": World(_passes, _flat(rate_interval)),
    "AUC": World(
        _tokens,
        _of_tokens(lambda weight, other, keys, of: auc_interval(weight, keys, of.tolist())),
        lambda values: auc(values[..., 0].reshape(-1), values[..., 2].reshape(-1)),
        500,
        20,
    ),
    "rank correlation": World(_tokens, _of_tokens(_rank_correlation), _spearman, 200, 0),
    "distinct-2": World(
        _texts,
        lambda values, prompts: distinct_n_interval(list(values.reshape(-1)), prompts),
        lambda values: distinct_n(list(values.reshape(-1))),
        200,
        0,
    ),
    "reward at 2 nats of a front": World(_strengths, _front_interval, _at_two, 500, 0),
}


def coverage(
    world: World, prompts: int, samples: int, repeats: int, with_old: bool = False, seed: int = 0
) -> dict[str, float]:
    """Shares of intervals that hold the truth, and mean widths.

    Args:
        with_old: the percentile bootstrap too.
    """
    rng = np.random.default_rng([seed, prompts, samples])
    of = np.repeat(np.arange(prompts), samples).tolist()
    truth = _truth(world, prompts, samples, repeats)
    held, made, old_held, width, old_width = 0, 0, 0, 0.0, 0.0
    for _ in range(repeats):
        values, known = world.draw(rng, prompts, samples)
        target = truth if np.isnan(known) else known
        found = world.interval(values, of)
        if found.low == found.low:  # a front may not reach so far
            made += 1
            held += found.low <= target <= found.high
            width += found.high - found.low
        if with_old:
            low, high = percentile_bootstrap(values, world.statistic, rng)
            old_held += low <= target <= high
            old_width += high - low
    found_of = {"intervals": made, "coverage": held / made, "width": width / made}
    old = {"old_coverage": old_held / repeats, "old_width": old_width / repeats}
    return {**found_of, **(old if with_old else {})}


def _truth(world: World, prompts: int, samples: int, repeats: int) -> float:
    """What the statistic is of so many prompts on average, or of many, where it is not known."""
    rng = np.random.default_rng(1)
    if world.statistic is None or not np.isnan(world.draw(rng, 2, 1)[1]):
        return np.nan
    if world.draw is _texts:  # it falls with the number of texts
        drawn = [world.statistic(world.draw(rng, prompts, samples)[0]) for _ in range(repeats)]
        return float(np.mean(drawn))
    return world.statistic(world.draw(rng, 20_000, samples)[0])


def percentile_bootstrap(
    values: Array, statistic: Callable[[Array], float] | None, rng: Rng
) -> tuple[float, float]:
    count = len(values)
    if statistic is None:
        drawn = values.mean(1)[rng.integers(0, count, (OLD_DRAWS, count))].mean(1)
    else:
        picks = rng.integers(0, count, (OLD_DRAWS // 4, count))
        drawn = np.array([statistic(values[pick]) for pick in picks])
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def cases(names: Sequence[str], share: float) -> Iterator[dict[str, Any]]:
    for name in names:
        world = WORLDS[name]
        for prompts in PROMPTS:
            for samples in SAMPLES if name != "pass@1" else (1,):
                repeats = max(2, round(world.repeats * share))
                if world.statistic is not None and prompts >= 200:
                    repeats = max(2, repeats // 2)
                found = coverage(world, prompts, samples, repeats, prompts <= world.old_up_to)
                size = {"prompts": prompts, "samples": samples, "repeats": repeats}
                yield {"world": name, **size, **found}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Coverage in percent, now and (before), by world and size."""
    sizes = [(n, m) for m in SAMPLES for n in PROMPTS]
    rows = [
        "| | " + " | ".join(f"{n} x {m}" for n, m in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for name in dict.fromkeys(line["world"] for line in lines):
        known = {(x["prompts"], x["samples"]): x for x in lines if x["world"] == name}
        cells = [
            f"{100 * x['coverage']:.1f}"
            + (f" ({100 * x['old_coverage']:.0f})" if "old_coverage" in x else "")
            if (x := known.get(size))
            else ""
            for size in sizes
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=WORLDS, action="append", help="by default all")
    parser.add_argument("--share", type=float, default=1.0, help="of the repeats")
    parser.add_argument("--table", type=Path, help="lines of an earlier run")
    given = parser.parse_args()
    if given.table is not None:
        print(table([json.loads(line) for line in given.table.read_text().splitlines()]))
        return
    for case in cases(given.world or list(WORLDS), given.share):
        print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
