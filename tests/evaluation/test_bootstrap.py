"""Intervals of values that share a prompt: coverage by simulation, and every benchmark that
makes one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from evaluation.benchmarks import (
    dialogue_benchmark,
    masks_benchmark,
    preference_benchmark,
    sentiment_benchmark,
    summarization_benchmark,
)
from evaluation.bootstrap import mean_interval
from evaluation.comparison import paired_difference

_TRUTH = 0.3


def _drawn(rng: np.random.Generator, sizes: Any) -> tuple[list[float], list[int]]:
    """Values of mean _TRUTH and variance 1, of which the prompt's is 0.3: pairs of a prompt
    correlate 0.3.
    """
    prompts = np.repeat(np.arange(len(sizes)), sizes)
    effects = rng.normal(0, np.sqrt(0.3), len(sizes))
    return (
        _TRUTH + effects[prompts] + rng.normal(0, np.sqrt(0.7), len(prompts))
    ).tolist(), prompts.tolist()


@pytest.mark.parametrize("uneven", [False, True])
def test_intervals_over_prompts_cover(uneven: bool) -> None:
    """400 worlds of 40 prompts with 10 pairs (or 1 to 19): resampled by prompt, 19 of 20 intervals
    or so hold the truth.

    Apart, an interval is as wide as that of 400 independent values, +- 1.96 * 0.05. The mean's
    standard error is sqrt(0.3 / 40 + 0.7 / 400) = 0.096 for even sizes: 1.96 * 0.05 / 0.096 = 1.02
    standard errors hold it in 69 %.
    """
    rng = np.random.default_rng(11)
    covered = {"prompts": 0, "apart": 0}
    for seed in range(400):
        sizes = rng.integers(1, 20, 40) if uneven else np.full(40, 10)
        values, prompts = _drawn(rng, sizes)
        for name, clusters in (("prompts", prompts), ("apart", None)):
            found = mean_interval(values, 200, seed, clusters)
            covered[name] += found.low <= _TRUTH <= found.high
            assert found.n == (40 if clusters else len(values)) and found.mean == pytest.approx(
                np.mean(values)
            )
    assert 0.91 <= covered["prompts"] / 400 <= 0.97
    assert 0.6 < covered["apart"] / 400 < 0.76, "the negative control: what the interval was before"


def test_identical_copies_are_no_evidence() -> None:
    """Every pair ten times: by prompt the interval is exactly that of the pairs once."""
    values = np.random.default_rng(3).normal(size=30)
    once = mean_interval(values.tolist(), 500, 1)
    copied = mean_interval(
        np.repeat(values, 10).tolist(), 500, 1, np.repeat(np.arange(30), 10).tolist()
    )
    assert (copied.low, copied.high, copied.n) == pytest.approx((once.low, once.high, once.n))
    with pytest.raises(ValueError, match="2 values in 3 places"):
        mean_interval([1.0, 2.0], 100, 0, ["a", "a", "b"])


def _by_hand(values: list[float], samples: int, seed: int, clusters: list[int]) -> Any:
    """One resample after another: the same draws as the library's, which makes them in batches."""
    data, names = np.asarray(values), list(dict.fromkeys(clusters))
    groups = [data[[c == name for c in clusters]] for name in names]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(samples):
        picked = [groups[i] for i in rng.integers(0, len(groups), len(groups))]
        means.append(np.concatenate(picked).mean())
    return np.percentile(means, [2.5, 97.5])


@pytest.mark.parametrize("batch", [1, 1 << 10, 1 << 16])
@pytest.mark.parametrize("kind", ["normal", "ties", "constant", "rare", "nan", "one", "two"])
def test_intervals_are_those_of_one_draw_after_another(
    kind: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, for values apart and together, to the last digits; recorded intervals stay."""
    monkeypatch.setattr("evaluation.bootstrap._BATCH_VALUES", batch)
    rng = np.random.default_rng(8)
    for seed in range(4):
        count = {"one": 1, "two": 2}.get(kind, 30)
        values = rng.normal(size=count)
        values = {"ties": values.round(), "constant": np.full(count, 0.1),
                  "rare": (values > 1.5).astype(float)}.get(kind, values)  # fmt: skip
        if kind == "nan":
            values[3] = np.nan
        for clusters in (list(range(count)), rng.integers(0, 5, count).tolist()):
            found = mean_interval(values.tolist(), 300, seed, clusters)
            assert (found.low, found.high) == pytest.approx(
                _by_hand(values.tolist(), 300, seed, clusters), rel=1e-13, abs=1e-15, nan_ok=True
            )
            assert found.mean == pytest.approx(values.mean(), nan_ok=True)
            assert found.n == len(set(clusters))
    everything_in_one = mean_interval([1.0, 2.0, 6.0], 300, 0, ["a"] * 3)
    assert everything_in_one.as_dict() == {"mean": 3.0, "low": 3.0, "high": 3.0, "n": 1}


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
        (lambda records: preference_benchmark(records, 300, 0), _pair, ()),
        # Copies draw other random weights, and texts of self-BLEU are compared with their own
        # copies.
        (lambda records: masks_benchmark(records, 200, 0), _response, ("auc/random_mask",)),
        (lambda records: sentiment_benchmark(records, 1.0, 300, 0), _sample, ()),
        (lambda records: dialogue_benchmark(records, 1.0, 300, 0), _sample, ()),
        (
            lambda records: summarization_benchmark(records, 1.0, 300, 0),
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


def test_two_runs_differ_by_prompts_not_by_temperatures() -> None:
    """The same difference of a prompt at three temperatures is one prompt's: the interval of one
    temperature.
    """
    rng = np.random.default_rng(2)
    gains = rng.normal(size=20)

    def records(temperatures: tuple[float, ...], gain: float) -> list[dict[str, Any]]:
        return [
            {"prompt": str(i), "temperature": t, "x": gain * g}
            for i, g in enumerate(gains)
            for t in temperatures
        ]

    one = paired_difference(records((1.0,), 0.0), records((1.0,), 1.0), "x", 400)
    three = paired_difference(
        records((0.0, 0.5, 1.0), 0.0), records((0.0, 0.5, 1.0), 1.0), "x", 400
    )
    assert one is not None and three is not None
    assert (three.low, three.high, three.n) == pytest.approx((one.low, one.high, 20))


def test_a_difference_is_the_second_less_the_first() -> None:
    """Two prompts that both have: 3 - 1, and the mean of 2 and 4 less 2. The others do not count,
    nor does one at another temperature.
    """
    first = [{"prompt": name, "x": x} for name, x in (("a", 1.0), ("b", 2.0), ("c", 9.0))]
    second: list[dict[str, Any]] = [
        {"prompt": name, "x": x} for name, x in (("a", 3.0), ("b", 2.0), ("b", 4.0), ("d", 7.0))
    ]
    second.append({"prompt": "c", "temperature": 0.5, "x": 9.0})
    found = paired_difference(first, second, "x", 200)
    assert found is not None and (found.mean, found.n) == (1.5, 2)
    assert paired_difference(first, second[3:], "x") is None
