"""The benchmark of masks from parts: numbers of all tokens at once, computed by other means."""

import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evaluation.benchmarks import mask_ranks, mask_sums, mask_totals, masks_benchmark

WORDS = [" good", "bad", ".", "</s>", "7", "\n", *(f" w{i}" for i in range(30))]


def responses(number: int, longest: int, is_labelled: bool = True) -> list[dict[str, Any]]:
    """Responses to number / 4 prompts: a sparse mask, one of few values with ties, and token KL."""
    rng, chooser = np.random.default_rng(0), random.Random(0)
    found = []
    for i in range(number):
        length = chooser.randint(1, longest)
        weights = {
            "reward_mask": np.maximum(0, rng.normal(size=length)),
            "kl_mask": np.round(rng.random(length), 1),
            "token_kl": np.abs(rng.normal(size=length)),
        }
        found.append(
            {
                "prompt_hash": f"p{i // 4}",
                "tokens": [chooser.choice(WORDS) for _ in range(length)],
                "is_key": [chooser.random() < 0.2 for _ in range(length)] if is_labelled else None,
                **{name: v.astype(np.float32).tolist() for name, v in weights.items()},
            }
        )
    return found


def numbers_of_all(records: list[dict[str, Any]]) -> dict[str, float]:
    """From the flat list of all tokens: means, shares, the heaviest token, rank statistics."""

    def flat(name: str) -> list[Any]:
        return [value for record in records for value in record[name]]

    tokens, is_key = flat("tokens"), np.array(flat("is_key"))
    places = [i * 10 // len(r["tokens"]) for r in records for i in range(len(r["tokens"]))]
    counts = Counter(tokens)
    found = {"num_tokens": len(tokens), "key_token_fraction": float(is_key.mean())}
    for name in ("reward_mask", "kl_mask"):
        weights = np.array(flat(name))
        means = {token: weights[[t == token for t in tokens]].mean() for token in set(tokens)}
        best = max(means, key=lambda token: (counts[token] >= 5, means[token]))
        found |= {
            f"{name}/mean": weights.mean(),
            f"{name}/max": weights.max(),
            f"{name}/zero_fraction": (weights == 0).mean(),
            f"{name}/top": means[best],
            f"{name}/words": weights[
                [any(map(str.isalpha, t)) and t != "</s>" for t in tokens]
            ].mean(),
            f"{name}/third": weights[[place == 3 for place in places]].mean(),
            f"{name}/token_kl_correlation": stats.spearmanr(weights, flat("token_kl")).statistic,
        }
    for name in ("reward_mask", "kl_mask", "token_kl"):
        values = np.array(flat(name))
        above = stats.mannwhitneyu(values[is_key], values[~is_key]).statistic
        found[f"auc/{name}"] = above / (is_key.sum() * (~is_key).sum())
    return found


def picked(result: dict[str, Any]) -> dict[str, float]:
    """The same numbers from a benchmark's result."""
    found = {key: result[key] for key in ("num_tokens", "key_token_fraction")}
    for name in ("reward_mask", "kl_mask"):
        for key in ("mean", "max", "zero_fraction"):
            found[f"{name}/{key}"] = result[f"{name}/{key}"]
        key = f"{name}/token_kl_correlation"
        found[key] = result[key]["mean"]
        found[f"{name}/top"] = result[f"{name}/top_tokens"][0]["mean_weight"]
        by_class = {row["class"]: row["mean_weight"] for row in result[f"{name}/by_class"]}
        found[f"{name}/words"] = by_class["word"]
        found[f"{name}/third"] = result[f"{name}/by_position"][3]["mean_weight"]
    return found | {
        f"auc/{name}": result[f"auc/{name}"]["mean"]
        for name in ("reward_mask", "kl_mask", "token_kl")
    }


@pytest.mark.parametrize("size", [300, 64, 7, 1])
def test_parts_of_any_size_add_up_to_the_numbers_of_all_tokens(size: int) -> None:
    """The parts travel as JSON; classes with as many tokens stay in the order of the whole."""
    records = responses(300, longest=40)
    parts = [mask_sums(records[i : i + size]) for i in range(0, 300, size)]
    totals = mask_totals(json.loads(json.dumps(part)) for part in parts)
    result = totals | mask_ranks(records, 100, 0)
    assert picked(result) == pytest.approx(numbers_of_all(records), rel=1e-12, abs=0)
    whole = masks_benchmark(records, 100, 0)
    for name in ("reward_mask", "kl_mask"):
        for table, key in (("by_class", "class"), ("top_tokens", "token")):
            rows = f"{name}/{table}"
            assert [row[key] for row in result[rows]] == [row[key] for row in whole[rows]]


def test_ranks_take_arrays_and_leave_records_alone() -> None:
    records = responses(40, longest=20)
    arrays = [
        {key: value if isinstance(value, str) else np.array(value) for key, value in r.items()}
        for r in records
    ]
    kept = json.dumps(records)
    assert mask_ranks(arrays, 100, 3) == mask_ranks(records, 100, 3)
    assert json.dumps(records) == kept


def test_sums_do_not_grow_with_tokens() -> None:
    """Four times the tokens of the same words: the same sums by size, within their digits."""
    short, long = (len(json.dumps(mask_sums(responses(200, longest=n)))) for n in (40, 160))
    assert long < 1.1 * short
    tokens = [len(json.dumps(responses(200, longest=n))) for n in (40, 160)]
    assert tokens[1] > 3 * tokens[0], "the negative control: the tokens themselves"


def test_no_key_words_no_labels_no_response() -> None:
    records = responses(12, longest=9, is_labelled=False)
    result = masks_benchmark(records, 100, 0)
    assert "key_token_fraction" not in result and not [key for key in result if "auc" in key]
    with pytest.raises(ValueError, match="at least one response"):
        mask_totals([mask_sums([])])
    with pytest.raises(ValueError, match="at least one response"):
        mask_totals([])
