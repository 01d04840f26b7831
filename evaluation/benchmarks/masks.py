"""masks: how sparse the token weights are, which tokens carry them, and whether they find known key tokens."""

import math
from collections import defaultdict
from typing import Any

import numpy as np

from evaluation.metrics.auc import auc


def masks_benchmark(records: list[dict[str, Any]], samples: int, seed: int, top: int = 20) -> dict[str, Any]:
    """Statistics over the scored tokens of held-out responses.

    Args:
        records: per response: tokens (strings), reward_mask, kl_mask, token_kl (per token), is_key (bool per token, or
            None when no key words are known).
        samples, seed: of the bootstrap over responses, and of the random mask.
    Returns: per mask mean, max and share of exact zeros, the tokens with the largest mean weight (seen at least five
        times) and, given key words, the AUC of each mask beside token KL, a random mask and the chance level.
    """
    if not records:
        raise ValueError("the masks benchmark needs at least one response")
    result: dict[str, Any] = {"num_responses": len(records), "num_tokens": sum(len(r["tokens"]) for r in records)}
    for name in ("reward_mask", "kl_mask"):
        weights = np.concatenate([np.asarray(r[name], dtype=np.float64) for r in records])
        result[f"{name}/mean"] = float(weights.mean())
        result[f"{name}/max"] = float(weights.max())
        result[f"{name}/zero_fraction"] = float((weights == 0).mean())
        result[f"{name}/top_tokens"] = _top_tokens(records, name, top)
    if records[0]["is_key"] is not None:
        result["key_token_fraction"] = float(np.mean(np.concatenate([r["is_key"] for r in records])))
        result["auc/chance"] = 0.5
        rng = np.random.default_rng(seed)
        for r in records:
            r["random_mask"] = rng.random(len(r["tokens"])).tolist()
        for name in ("reward_mask", "kl_mask", "token_kl", "random_mask"):
            result[f"auc/{name}"] = _auc_interval(records, name, min(samples, 200), seed)
    return result


def _top_tokens(records: list[dict[str, Any]], name: str, top: int) -> list[dict[str, Any]]:
    sums: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for token, weight in zip(record["tokens"], record[name], strict=True):
            sums[token].append(float(weight))
    means = {token: (sum(values) / len(values), len(values)) for token, values in sums.items() if len(values) >= 5}
    ranked = sorted(means.items(), key=lambda item: (-item[1][0], item[0]))[:top]
    return [{"token": token, "mean_weight": mean, "count": count} for token, (mean, count) in ranked]


def _auc_interval(records: list[dict[str, Any]], name: str, samples: int, seed: int) -> dict[str, float]:
    """AUC over all tokens with a bootstrap interval that resamples whole responses."""
    values = [np.asarray(r[name], dtype=np.float64) for r in records]
    labels = [np.asarray(r["is_key"], dtype=bool) for r in records]
    whole = auc(np.concatenate(values), np.concatenate(labels))
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(samples):
        picked = rng.integers(0, len(records), len(records))
        drawn = auc(np.concatenate([values[i] for i in picked]), np.concatenate([labels[i] for i in picked]))
        if not math.isnan(drawn):
            draws.append(drawn)
    low, high = np.percentile(draws, [2.5, 97.5]) if draws else (math.nan, math.nan)
    return {"mean": whole, "low": float(low), "high": float(high), "n": len(records)}
