"""Metrics and benchmarks against hand counts and brute force."""

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from evaluation.benchmarks import (
    discriminator_benchmark,
    labelled_benchmark,
    masks_benchmark,
    preference_benchmark,
    sentiment_benchmark,
)
from evaluation.benchmarks.masks import token_class
from evaluation.intervals import jackknife_interval, rate_interval
from evaluation.key_tokens import key_token_labels
from evaluation.metrics import (
    Brevity,
    DistinctN,
    PreferenceAccuracy,
    TokenAUC,
    VaderSentiment,
    auc,
    brevity_scores,
    distinct_n,
)
from evaluation.metrics.calibration import calibration_interval, expected_calibration_error


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_ordered_pairs(items: list[tuple[int, bool]]) -> None:
    positives, negatives = [s for s, y in items if y], [s for s, y in items if not y]
    value = auc([s for s, _ in items], [y for _, y in items])
    if not positives or not negatives:
        assert math.isnan(value)
        return
    brute = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives) / (
        len(positives) * len(negatives)
    )
    assert value == pytest.approx(brute)


@pytest.mark.filterwarnings("error")
def test_auc_is_scikit_learns_and_nan_where_there_is_none() -> None:
    """Ties, many values, one value of a class; one class only and nan are no number, unwarned."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(4)
    for count, levels in ((2, 3), (10, 2), (40, 5), (3000, 50), (3000, None)):
        scores = rng.integers(0, levels, count) if levels else rng.normal(size=count)
        labels = np.arange(count) < max(1, count // 7)
        assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-14)
    assert auc([0.5] * 6, [1, 0, 0, 1, 0, 0]) == 0.5
    for scores, labels in (
        ([1.0, 2.0], [1, 1]), ([1.0, 2.0], [0, 0]), ([1.0], [1]), ([], []),
        ([1.0, math.nan, 2.0], [1, 0, 0]), ([math.nan, 1.0, 2.0], [1, 0, 0]),
    ):  # fmt: skip
        assert math.isnan(auc(scores, labels)), (scores, labels)
    with pytest.raises(ValueError, match="labels"):
        auc([1.0, 2.0], [1])


def test_distinct_by_hand() -> None:
    """'a b a b' has bigrams ab, ba, ab and 'b a' has ba: 2 distinct of 4."""
    assert distinct_n(["a b a b", "b a"], 2) == 0.5
    assert distinct_n(["a"], 2) == 0.0
    with pytest.raises(ValueError, match="n=0"):
        distinct_n(["a"], 0)


def test_masks_by_kind_and_position_by_hand() -> None:
    """Weights 1, 0, 3 on a word, a full stop and an end mark; ranks 2, 1, 3 against token KL's
    1, 2, 3: Spearman 0.5. A constant mask has none.
    """
    record = {
        "tokens": [" good", ".", "</s>"],
        "reward_mask": [1.0, 0.0, 3.0],
        "kl_mask": [1.0] * 3,
        "token_kl": [0.1, 0.2, 0.3],
        "is_key": None,
        "prompt_hash": "p",
    }
    found = masks_benchmark([record, {**record}], 100, 0)
    assert {
        row["class"]: (row["mean_weight"], row["zero_fraction"], row["weight_fraction"])
        for row in found["reward_mask/by_class"]
    } == {
        "word": (1.0, 0.0, 0.25),
        "punctuation": (0.0, 1.0, 0.0),
        "special": (3.0, 0.0, 0.75),
    }
    assert [
        (row["from_fraction"], row["mean_weight"], row["count"])
        for row in found["reward_mask/by_position"]
    ] == [
        (0.0, 1, 2),
        (0.3, 0, 2),
        (0.6, 3, 2),
    ]
    assert found["reward_mask/token_kl_correlation"]["mean"] == pytest.approx(0.5)
    assert "kl_mask/token_kl_correlation" not in found
    kinds = {"\n": "space", "7": "number", "[INST]": "special", "a1": "word", "...": "punctuation"}
    assert {token: token_class(token) for token in kinds} == kinds


def _ranks(values: list[float]) -> list[float]:
    """How many values are less, and the middle of those that are equal."""
    return [sum(v < x for v in values) + (1 + sum(v == x for v in values)) / 2 for x in values]


def _tokens(weights: Any, kl: Any, **more: Any) -> dict[str, Any]:
    return {
        "tokens": ["a"] * len(weights), "reward_mask": list(weights), "kl_mask": list(weights),
        "token_kl": list(kl), "is_key": None, "prompt_hash": "p", **more,
    }  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("levels", [2, 5, None])
def test_rank_correlation_by_counting(levels: int | None) -> None:
    rng = np.random.default_rng(6)
    for count in (2, 3, 60):
        weights = rng.integers(0, levels, count) if levels else rng.normal(size=count)
        weights[0], weights[-1] = 0, 1
        kl = weights + rng.normal(size=count).round(1)
        if np.ptp(kl):
            found = masks_benchmark([_tokens(weights, kl)], 100, 0)
            wanted = np.corrcoef(_ranks(weights.tolist()), _ranks(kl.tolist()))[0, 1]
            assert found["kl_mask/token_kl_correlation"]["mean"] == pytest.approx(wanted, abs=1e-13)
    key = "kl_mask/token_kl_correlation"
    for weights, kl in (([1.0, 1.0], [0.0, 1.0]), ([0.0, 1.0], [2.0, 2.0]), ([1.0], [1.0])):
        assert key not in masks_benchmark([_tokens(weights, kl)], 100, 0), "constant"
    broken = masks_benchmark([_tokens([0.0, math.nan], [0.0, 1.0])], 100, 0)[key]
    assert math.isnan(broken["mean"])


def test_a_weight_that_is_nan_leaves_no_interval() -> None:
    """One prompt of four has key tokens: the area is known, how it varies is known of one alone."""
    records = [_tokens([2.0, 1.0], [1.0, 2.0], is_key=[n == 0, False], prompt_hash=str(n))
               for n in range(4)]  # fmt: skip
    found = masks_benchmark(records, 200, 0)
    # The key token's weight of 2 against 1 of its own prompt and 2 and 1 of three others.
    assert found["auc/kl_mask"]["mean"] == pytest.approx((4 + 3 / 2) / 7)
    assert found["auc/kl_mask"]["high"] - found["auc/kl_mask"]["low"] > 0.2
    records[2]["kl_mask"] = [math.nan, 1.0]
    broken = masks_benchmark(records, 200, 0)
    for key in ("auc/kl_mask", "kl_mask/token_kl_correlation"):
        assert all(math.isnan(broken[key][name]) for name in ("mean", "low", "high"))


def test_metric_classes_compute_without_a_network() -> None:
    assert TokenAUC().compute(predictions=[0.1, 0.9], references=[0, 1]) == {"auc": 1.0}
    assert DistinctN().compute(predictions=["a b a b", "b a"]) == {"distinct_n": 0.5}
    assert PreferenceAccuracy().compute(
        predictions=[1.0, 2.0, 0.0], references=[0.0, 2.0, 1.0]
    ) == {"accuracy": 0.5}
    scores = VaderSentiment().compute(predictions=["a wonderful film", "an awful film", "a film"])[
        "scores"
    ]
    assert scores[0] > 0 > scores[1]
    assert scores[2] == 0


def test_key_tokens_overlap_words() -> None:
    text = " Not bad , Badly good"
    offsets = [(0, 4), (4, 8), (8, 10), (10, 13), (13, 16), (16, 21)]
    assert key_token_labels(text, offsets, frozenset({"bad", "good"})) == [
        False,
        True,
        False,
        False,
        False,
        True,
    ]


def test_labelled_benchmark_by_hand() -> None:
    """Rewards of other prompts' responses are 0.5, -0.25 and 0.125: their mean is 0.125.

    Rewards 0.5 (desirable), 0.25 (not), 0.125 (desirable): margins 0.375, -0.125 and a tie, so 1.5
    of 3 are right. By reward one of two pairs is ranked rightly; by log-probability -8, -9, -12
    too, per token (-4, -3, -2) one; before (-9, -9, -9) both are ties.
    """
    given = [
        (True, 0.5, 0.5, -8.0, 2, 1.0),
        (False, 0.25, -0.25, -9.0, 3, 2.0),
        (True, 0.125, 0.125, -12.0, 6, 3.0),
    ]
    records = [
        {
            "prompt_hash": f"p{number}",
            "desirable": label,
            "reward_chosen": reward,
            "reward_rejected": other,
            "policy_chosen": logps,
            "start_chosen": -9.0,
            "num_chosen": length,
            "kl_chosen": kl,
        }
        for number, (label, reward, other, logps, length, kl) in enumerate(given)
    ]
    found = labelled_benchmark(records)
    assert (found["num_rows"], found["num_desirable"], found["num_prompts"]) == (3, 2, 3)
    assert found["accuracy/implicit_reward"]["mean"] == pytest.approx(0.5)
    assert found["rewards/margins"]["mean"] == pytest.approx(0.25 / 3)
    assert found["kl/reference_policy"]["mean"] == pytest.approx(2.0)
    ranks = {key: value["mean"] for key, value in found.items() if key.startswith("auc/")}
    assert ranks == {
        "auc/logps/before": 0.5,
        "auc/logps/after": 0.5,
        "auc/logps_per_token/before": 0.5,
        "auc/logps_per_token/after": 0.5,
        "auc/implicit_reward": 0.5,
    }
    better = [{**records[0]}, {**records[1], "reward_chosen": -1.0}]
    assert labelled_benchmark(better)["auc/implicit_reward"]["mean"] == 1.0
    alone = labelled_benchmark(records[:1])
    assert not any(key.startswith("auc/") for key in alone)
    with pytest.raises(ValueError, match="at least one row"):
        labelled_benchmark([])


def test_preference_benchmark_by_hand() -> None:
    def pair(before: float, after: float, reward: float, length: int) -> dict[str, Any]:
        return {
            "prompt_hash": str((before, after)),
            "start_chosen": before, "start_rejected": 0.0, "policy_chosen": after,
            "policy_rejected": -3.0, "num_chosen": length,
            "num_rejected": 1, "reward_chosen": reward, "reward_rejected": 0.0, "kl_chosen": 1.0,
            "kl_rejected": 3.0,
        }  # fmt: skip

    result = preference_benchmark(
        [pair(1, -2, 1, 1), pair(-1, -4, 0, 2), pair(-1, -2, -1, 1), pair(0, -2, 2, 1)]
    )
    assert result["accuracy/logps/before"]["mean"] == (1 + 0 + 0 + 0.5) / 4
    assert result["accuracy/logps/after"]["mean"] == 3 / 4
    assert result["accuracy/logps/gain"]["mean"] == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    assert result["accuracy/logps_per_token/after"]["mean"] == 1.0
    assert result["accuracy/implicit_reward"]["mean"] == (1 + 0.5 + 0 + 1) / 4
    assert result["rewards/margins"]["mean"] == 0.5
    assert result["kl/reference_policy"]["mean"] == 2.0


def test_sentiment_gain_is_paired() -> None:
    """Rewards that differ wildly between prompts but by exactly 0.1 within them: the gain's
    interval is a point.
    """
    rng = random.Random(0)
    records = []
    for number in range(50):
        base = rng.uniform(-0.9, 0.8)
        records.append({
            "prompt": str(number), "policy_text": "a b", "start_text": "c d",
            "policy_reward": base + 0.1, "start_reward": base, "policy_tokens": 2,
            "start_tokens": 3, "kl_policy_reference": 1.5,
        })  # fmt: skip
    result = sentiment_benchmark(records, 1.0)
    assert result["reward/gain"]["low"] == pytest.approx(0.1)
    assert result["reward/gain"]["high"] == pytest.approx(0.1)
    assert result["reward/after"]["high"] - result["reward/after"]["low"] > 0.1
    assert result["kl/policy_reference"]["mean"] == 1.5
    assert sum(result["reward_histogram"]["start"]) == 50


def test_rewards_of_a_known_range_have_a_rates_interval() -> None:
    """Ten rewards of 1 in [-1, 1] and as many gains of 0: no other prompt is certain of either."""
    record = {"policy_text": "a", "start_text": "a", "start_reward": 1.0, "policy_reward": 1.0,
              "policy_tokens": 1, "start_tokens": 1, "kl_policy_reference": 0.0}  # fmt: skip
    records = [{**record, "prompt": str(i)} for i in range(10)]
    found = sentiment_benchmark(records, 1.0, span=(-1.0, 1.0))
    scaled = rate_interval([1.0] * 10)
    assert found["reward/after"]["low"] == pytest.approx(2 * scaled.low - 1)
    assert found["reward/after"]["high"] == 1.0
    gain = rate_interval([0.0] * 10, None, (-2.0, 2.0))
    assert (found["reward/gain"]["low"], found["reward/gain"]["high"]) == (gain.low, gain.high)
    assert gain.low < -0.4
    unknown = sentiment_benchmark(records, 1.0)["reward/after"]
    assert (unknown["low"], unknown["high"]) == (1.0, 1.0)


def test_rewards_are_counted_in_the_bin_that_they_open() -> None:
    """Every tenth from -1.2 to 1.2; -0.8 is the start of the second bin, not of the first, and 1
    is in the last. What lies outside counts at the ends.
    """
    tenths = range(-12, 13)
    record = {"prompt": "p", "policy_text": "a", "start_text": "a", "start_reward": 0.0,
              "policy_tokens": 1, "start_tokens": 1, "kl_policy_reference": 0.0}  # fmt: skip
    records = [{**record, "policy_reward": tenth / 10} for tenth in tenths]
    counts = [0] * 10
    for tenth in tenths:
        counts[min(9, max(0, (tenth + 10) // 2))] += 1
    found = sentiment_benchmark(records, 1.0)["reward_histogram"]
    assert found == {"start": [0] * 5 + [len(records)] + [0] * 4, "policy": counts}


def test_masks_benchmark_finds_a_planted_mask() -> None:
    rng = random.Random(1)
    records = []
    for number in range(60):
        labels = [rng.random() < 0.3 for _ in range(10)]
        records.append({
            "prompt_hash": str(number), "tokens": ["key" if y else "other" for y in labels],
            "is_key": labels, "reward_mask": [0.9 if y else 0.0 for y in labels],
            "kl_mask": [0.0 if y else 0.5 for y in labels],
            "token_kl": [rng.random() for _ in labels],
        })  # fmt: skip
    result = masks_benchmark(records, 200, 0)
    assert result["auc/reward_mask"]["mean"] == 1.0
    assert result["auc/kl_mask"]["mean"] == 0.0
    assert abs(result["auc/random_mask"]["mean"] - 0.5) < 0.08
    assert result["auc/token_kl"]["low"] < 0.5 < result["auc/token_kl"]["high"]
    assert result["reward_mask/zero_fraction"] == pytest.approx(1 - result["key_token_fraction"])
    assert result["reward_mask/top_tokens"][0]["token"] == "key"


def test_brevity_counts_words_up_to_a_limit() -> None:
    """Three words of four: -0.75. From the limit on it is -1, and 0 for no word."""
    texts = ["", "  a \n b\tc ", "one", "a b c d", "a b c d e f"]
    assert brevity_scores(texts, most_words=4) == [0.0, -0.75, -0.25, -1.0, -1.0]
    found = Brevity().compute(predictions=["a", "a b"], most_words=4)
    assert found == {"mean": -0.375, "scores": [-0.25, -0.5]}
    assert brevity_scores(["a " * 50]) == [-0.5]
    with pytest.raises(ValueError, match="most_words = 0: must be at least 1"):
        brevity_scores(["a"], most_words=0)


def test_calibration_interval_leaves_out_a_cluster_at_a_time() -> None:
    """The jackknife with the error computed anew without each cluster."""
    rng = np.random.default_rng(0)
    given_, clusters = rng.random(60), rng.integers(0, 7, 60).tolist()
    outcomes = (rng.random(60) < given_**2).astype(float)
    found = calibration_interval(given_, outcomes, clusters)
    assert found.mean == expected_calibration_error(given_, outcomes)
    without = [
        expected_calibration_error(
            given_[np.array(clusters) != one], outcomes[np.array(clusters) != one]
        )
        for one in dict.fromkeys(clusters)
    ]
    expected = jackknife_interval(found.mean, without, (0.0, 1.0))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert 0 < found.low < found.mean < found.high and found.n == 7


def test_discriminator_by_hand() -> None:
    """Of three good tokens and a bad one D 0.9 is right, 0.5 a tie, 0.2 and the bad 0.6 wrong.

    Of (good, bad) pairs the bad one's 0.6 outranks 0.2 and 0.5 of three.
    """
    found = discriminator_benchmark([0.9, 0.2, 0.5, 0.6], [1, 1, 1, 0], ["a", "a", "b", "b"])
    assert found["accuracy"]["mean"] == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert found["accuracy/majority"]["mean"] == 0.75
    assert found["auc"]["mean"] == pytest.approx(1 / 3)
    assert found["brier"]["mean"] == pytest.approx((0.01 + 0.64 + 0.25 + 0.36) / 4)
    assert found["ece"]["mean"] == pytest.approx((0.1 + 0.8 + 0.5 + 0.6) / 4)
    assert (found["num_tokens"], found["num_good"], found["num_prompts"]) == (4, 3, 2)
    with pytest.raises(ValueError, match="1 probabilities, 2 labels and 1 prompts"):
        discriminator_benchmark([0.5], [1, 0], ["a"])
