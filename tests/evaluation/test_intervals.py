"""Intervals against arithmetic, other libraries and simulation; every benchmark that makes one."""

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evaluation.benchmarks import (
    dialogue_benchmark,
    masks_benchmark,
    preference_benchmark,
    sentiment_benchmark,
    summarization_benchmark,
)
from evaluation.intervals import (
    jackknife_interval,
    mean_interval,
    rate_interval,
    score_interval,
    t_interval,
)
from evaluation.metrics.auc import auc, auc_interval
from evaluation.metrics.distinct_n import distinct_n, distinct_n_interval
from evaluation.metrics.rank_correlation import rank_correlation_interval

_SIMULATION = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"


def _simulation() -> Any:
    """The script that made the table of docs/evaluation.md."""
    spec = importlib.util.spec_from_file_location("interval_coverage", _SIMULATION)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("world", "prompts", "samples", "least", "old_at_most"),
    [
        ("mean, normal", 10, 4, 0.93, 0.93),
        ("mean, exponential", 10, 1, 0.92, 0.90),
        ("mean, 70 % zeros", 10, 1, 0.93, 0.90),
        ("hits near 0.9", 10, 1, 0.93, 0.70),
        ("hits near 0.9", 10, 4, 0.93, 0.90),
        ("wins, most of them ties", 20, 4, 0.92, 0.93),
        ("pass@1", 10, 1, 0.92, 0.92),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    world: str, prompts: int, samples: int, least: float, old_at_most: float
) -> None:
    """400 worlds each: a true 95 % leaves the range below once in hundreds (standard error 1.1 %).

    The percentile bootstrap, which was there before, stays under what the new one must reach or
    near it: for hits of 10 prompts it holds the truth in two of three worlds.
    """
    simulation = _simulation()
    found = simulation.coverage(simulation.WORLDS[world], prompts, samples, 400, with_old=True)
    assert least <= found["coverage"] <= 0.995
    assert found["old_coverage"] <= old_at_most
    assert found["coverage"] >= found["old_coverage"] + 0.01


def test_pairs_of_a_prompt_taken_apart_pass_for_evidence() -> None:
    """The negative control: with 10 prompts of 4 samples that correlate 0.3, values taken apart
    claim n = 40, and hold the truth in 82 % or so: 1.96 * sqrt(1 / (1 + 3 * 0.3)) = 1.42 errors.
    """
    simulation, held = _simulation(), 0
    rng = np.random.default_rng(4)
    for _ in range(400):
        values, truth = simulation.WORLDS["mean, normal"].draw(rng, 10, 4)
        found = mean_interval(values.reshape(-1))
        assert found.n == 40
        held += found.low <= truth <= found.high
    assert 0.75 < held / 400 < 0.90


def test_means_by_hand() -> None:
    """Of 1, 2, 3: mean 2, standard error 1 / sqrt(3), t with two degrees of freedom 4.303; the
    values lie evenly, so nothing is skewed. Twice each under one name they are no more.
    """
    expected = 4.302653 / math.sqrt(3)
    for found in (
        mean_interval([1.0, 2.0, 3.0]),
        t_interval([1.0, 2.0, 3.0]),
        mean_interval([1.0, 1.0, 2.0, 2.0, 3.0, 3.0], list("aabbcc")),
    ):
        assert (found.mean, found.n) == (2.0, 3)
        assert (found.low, found.high) == pytest.approx((2 - expected, 2 + expected), rel=1e-6)


def test_a_mean_of_one_cluster_has_no_interval() -> None:
    """Nothing says how far another prompt would lie: a point would be certain of it."""
    for found in (mean_interval([1.0, 2.0, 6.0], ["a"] * 3), t_interval([3.0])):
        assert (found.mean, found.n) == (3.0, 1)
        assert math.isnan(found.low) and math.isnan(found.high)
    with_nan = mean_interval([1.0, math.nan])
    assert math.isnan(with_nan.mean) and math.isnan(with_nan.low)
    for wrong, said in (((), "at least one"), ([1.0, 2.0], "2 values in 3 places")):
        with pytest.raises(ValueError, match=said):
            mean_interval(wrong, ["a", "a", "b"][: 3 if wrong else 0])


def _cr2(values: np.ndarray, names: np.ndarray) -> tuple[float, float]:
    """Variance and degrees of freedom of the mean by the matrices of Bell and McCaffrey."""
    count = len(values)
    hat = np.full((count, count), 1 / count)
    residuals = values - values.mean()
    contrasts, variance = [], 0.0
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        block = np.eye(len(rows)) - hat[np.ix_(rows, rows)]
        roots, vectors = np.linalg.eigh(block)
        adjusted = vectors @ np.diag(roots**-0.5) @ vectors.T
        part = np.ones(len(rows)) @ adjusted / count
        variance += float(part @ residuals[rows]) ** 2
        contrasts.append((np.eye(count) - hat)[:, rows] @ part)
    products = np.array(contrasts) @ np.array(contrasts).T
    return variance, float(np.trace(products) ** 2 / np.square(products).sum())


def test_clusters_of_unequal_size_against_the_matrices() -> None:
    """Variance and degrees of freedom as of CR2's definition; skewness by the cubic's own roots."""
    rng = np.random.default_rng(6)
    for _ in range(5):
        names = np.repeat(np.arange(8), rng.integers(1, 9, 8))
        values = rng.exponential(1, len(names)) + rng.normal(size=8)[names]
        variance, degrees = _cr2(values, names)
        parts = np.array([(values[names == i] - values.mean()).sum() for i in range(8)])
        skew = (parts**3).sum() / np.square(parts).sum() ** 1.5
        found = mean_interval(values, names.tolist())
        ends = []
        for quantile in stats.t.ppf([0.975, 0.025], degrees):
            cubic = np.roots([skew**2 / 27, skew / 3, 1, skew / 6 - quantile])
            real = cubic[np.abs(cubic.imag) < 1e-6].real
            ends.append(values.mean() - math.sqrt(variance) * real[0])
        assert (found.low, found.high) == pytest.approx(ends, rel=1e-6)
        assert found.n == 8 and found.high - found.mean != pytest.approx(found.mean - found.low)


def test_rates_are_wilsons_and_clopper_and_pearsons() -> None:
    """scipy's own intervals for 1 to 9 of 10, and for all or none, where a width of 0 would say
    that no other prompt is ever lost.
    """
    for hits in range(11):
        found = rate_interval([1.0] * hits + [0.0] * (10 - hits))
        method = "exact" if hits in (0, 10) else "wilson"
        known = stats.binomtest(hits, 10).proportion_ci(0.95, method)
        assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9)
        assert (found.mean, found.n) == (pytest.approx(hits / 10), 10)


def test_equal_rates_have_a_width() -> None:
    """Ten ties, ten gains of 0: as wide as if one more prompt had been won and one lost. Of the
    twelve values the variance of the mean is 2 * 0.25 / (12 * 11), and t has 11 degrees.
    """
    square = stats.t.ppf(0.975, 11) ** 2 * (0.5 / (12 * 11)) / 0.25
    half = math.sqrt(square / 4 + square**2 / 4) / (1 + square)
    ties, gains = rate_interval([0.5] * 10), rate_interval([0.0] * 10, None, (-1.0, 1.0))
    assert half > 0.1
    assert (ties.low, ties.high) == pytest.approx((0.5 - half, 0.5 + half))
    assert (gains.low, gains.high) == pytest.approx((2 * ties.low - 1, 2 * ties.high - 1))
    with pytest.raises(ValueError, match=r"from 0 to 1\.5: must be in \[0, 1\]"):
        rate_interval([0.0, 1.5])


def test_copies_of_a_prompt_are_no_evidence() -> None:
    """Every value ten times: by prompt the interval is exactly that of the values once."""
    rng = np.random.default_rng(3)
    names = np.repeat(np.arange(30), 10).tolist()
    for interval, values in ((mean_interval, rng.normal(size=30)), (rate_interval, rng.random(30))):
        once, copied = interval(values), interval(np.repeat(values, 10), names)
        assert (copied.low, copied.high, copied.n) == pytest.approx((once.low, once.high, 30))


def _auc_variance(scores: np.ndarray, keys: np.ndarray, names: np.ndarray) -> float:
    """By the infinitesimal jackknife: how the area moves where one cluster weighs a little more."""

    def area(weights: np.ndarray) -> float:
        one, other = scores[keys], scores[~keys]
        wins = (one[:, None] > other) + 0.5 * (one[:, None] == other)
        pairs = weights[names[keys]][:, None] * weights[names[~keys]]
        return float((wins * pairs).sum() / pairs.sum())

    count, step = names.max() + 1, 1e-5
    moves = [
        (area(1 + step * (np.arange(count) == i)) - area(1 - step * (np.arange(count) == i)))
        / (2 * step)
        for i in range(count)
    ]
    return float(np.square(moves).sum()) * count / (count - 1)


def test_auc_intervals_against_the_infinitesimal_jackknife() -> None:
    rng = np.random.default_rng(8)
    names = np.repeat(np.arange(9), 12)
    keys = rng.random(108) < 0.3
    scores = (keys + rng.normal(size=108) + rng.normal(size=9)[names]).round(1)  # with ties
    found = auc_interval(scores, keys, names.tolist())
    area = auc(scores, keys)
    expected = score_interval(area, _auc_variance(scores, keys, names), stats.t.ppf(0.975, 8), 9)
    assert (found.mean, found.n) == (area, 9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-5)
    perfect = auc_interval(keys.astype(float), keys, names.tolist())
    assert perfect.mean == perfect.high == 1.0 and perfect.low == pytest.approx(0.025 ** (1 / 9))
    for labels in (np.ones(108, bool), np.zeros(108, bool)):
        assert math.isnan(auc_interval(scores, labels, names.tolist()).low)


def test_distinct_n_without_each_prompt() -> None:
    """The jackknife from the definition: the share without each prompt, texts counted anew."""
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(list("abcde"), 6)) for _ in range(12)]
    names = np.repeat(np.arange(6), 2)
    without = [
        distinct_n([t for t, n in zip(texts, names, strict=True) if n != i]) for i in range(6)
    ]
    expected = jackknife_interval(distinct_n(texts), without, (0.0, 1.0))
    found = distinct_n_interval(texts, names.tolist())
    assert found == expected and 0 < found.low < found.mean < found.high < 1


def test_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(1).normal(size=12)
    without = (values.sum() - values) / 11
    found, known = jackknife_interval(float(values.mean()), without), t_interval(values)
    assert (found.low, found.high, found.n) == pytest.approx((known.low, known.high, 12))


def test_rank_correlation_by_scipy_and_by_resampled_prompts() -> None:
    """The estimate is scipy's. Its error is near that of drawing prompts anew from the world."""
    rng = np.random.default_rng(5)
    simulation = _simulation()

    def drawn() -> tuple[Any, Any]:
        values = simulation.WORLDS["rank correlation"].draw(rng, 40, 1)[0]
        return values[..., 0].reshape(-1), values[..., 1].reshape(-1)

    names = np.repeat(np.arange(40), 8).tolist()
    first, second = (x.round(1) for x in drawn())
    found = rank_correlation_interval(first, second, names, 300, 0)
    assert found.mean == pytest.approx(stats.spearmanr(first, second).statistic)
    spread = np.std([np.arctanh(stats.spearmanr(*drawn()).statistic) for _ in range(200)])
    half = (math.atanh(found.high) - math.atanh(found.low)) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, 39) * spread, rel=0.3)


def test_a_divergence_is_cut_at_0_as_a_whole() -> None:
    """The mean of -2e-7 and 1e-7 is below 0 and becomes 0; cut one by one it would be 5e-8."""
    found = mean_interval([-2e-7, 1e-7]).at_least(0.0)
    assert (found.mean, found.low) == (0.0, 0.0) and found.high > 0


def _pair(rng: np.random.Generator, prompt: str) -> dict[str, Any]:
    sums = {
        f"{who}_{side}": float(rng.normal())
        for who in ("policy", "start", "reward", "kl")
        for side in ("chosen", "rejected")
    }
    return {"prompt_hash": prompt, **sums, "num_chosen": 3, "num_rejected": 4}


def _response(rng: np.random.Generator, prompt: str) -> dict[str, Any]:
    weights = {name: rng.random(6).tolist() for name in ("reward_mask", "kl_mask", "token_kl")}
    return {
        "prompt_hash": prompt,
        "tokens": list("abcdef"),
        **weights,
        "is_key": [True, *(rng.random(5) < 0.4).tolist()],
    }


def _sample(rng: np.random.Generator, prompt: str) -> dict[str, Any]:
    record: dict[str, Any] = {
        "prompt": prompt,
        "chosen_text": "the cat sat",
        "kl_policy_reference": float(rng.random()),
    }
    for who in ("start", "policy"):
        text = " ".join(rng.choice(["the", "cat", "sat", "dog"], rng.integers(1, 7)))
        record |= {
            f"{who}_text": text,
            f"{who}_reward": float(rng.normal()),
            f"{who}_tokens": 4,
            f"{who}_entailment": float(rng.random()),
        }
    for opponent in ("chosen", "start"):
        verdict = str(rng.choice(["policy", "opponent", "tie", "failed"]))
        record |= {
            f"{opponent}_verdict": verdict,
            f"{opponent}_consistent": bool(rng.random() < 0.5),
        }
    return record


@pytest.mark.parametrize(
    ("benchmark", "make", "without"),
    [
        (lambda records: preference_benchmark(records), _pair, ()),
        # Copies draw other random weights, and texts of self-BLEU are compared with their own
        # copies.
        (lambda records: masks_benchmark(records, 200, 0), _response, ("auc/random_mask",)),
        # More text has fewer distinct n-grams.
        (
            lambda records: sentiment_benchmark(records, 1.0),
            _sample,
            ("distinct_2/before", "distinct_2/after"),
        ),
        (lambda records: dialogue_benchmark(records, 1.0), _sample, ()),
        (
            lambda records: summarization_benchmark(records, 1.0),
            _sample,
            ("self_bleu/before", "self_bleu/after"),
        ),
    ],
)
def test_every_benchmark_resamples_prompts(
    benchmark: Callable[[list[dict[str, Any]]], dict[str, Any]],
    make: Callable[..., dict[str, Any]],
    without: tuple[str, ...],
) -> None:
    """Five copies of every record under its own prompt leave every interval as it was; under
    prompts of their own they shrink it.
    """
    rng = np.random.default_rng(5)
    records = [make(rng, f"prompt {i}") for i in range(24)]
    key = "prompt" if "prompt" in records[0] else "prompt_hash"
    once = _intervals(benchmark(records), without)
    assert once
    together = _intervals(
        benchmark([dict(record) for record in records for _ in range(5)]), without
    )
    apart = _intervals(
        benchmark([{**record, key: f"{record[key]} {i}"} for record in records for i in range(5)]),
        without,
    )
    for name, (low, high) in once.items():
        assert together[name] == pytest.approx((low, high)), name
        if high > low:
            assert apart[name][1] - apart[name][0] < 0.8 * (high - low), name


def _intervals(found: dict[str, Any], without: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    return {
        k: (v["low"], v["high"])
        for k, v in found.items()
        if isinstance(v, dict) and "low" in v and k not in without
    }
