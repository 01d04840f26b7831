"""masks: how sparse the token weights are, and which tokens carry them.

It also tells whether they find known key tokens.
"""

import math
from collections import defaultdict
from typing import Any

import numpy as np

from evaluation.bootstrap import cluster_members
from evaluation.metrics.auc import auc


def masks_benchmark(
    records: list[dict[str, Any]], samples: int, seed: int, top: int = 20
) -> dict[str, Any]:
    """Statistics over the scored tokens of held-out responses.

    Args:
        records: per response: prompt_hash (equal for responses to one prompt), tokens (strings),
            reward_mask, kl_mask, token_kl (per token), is_key (bool per token, or None when no key
            words are known).
        samples, seed: of the bootstrap over prompts, and of the random mask.
    Returns: per mask mean, max and share of exact zeros, the tokens with the largest mean weight
        (seen at least five times), tables by kind of token and by position, Spearman's correlation
        with token KL (unless either is constant) and, given key words, the AUC of each mask beside
        token KL, a random mask and the chance level.
    """
    if not records:
        raise ValueError("the masks benchmark needs at least one response")
    result: dict[str, Any] = {
        "num_responses": len(records),
        "num_tokens": sum(len(r["tokens"]) for r in records),
    }
    for name in ("reward_mask", "kl_mask"):
        weights = np.concatenate([np.asarray(r[name], dtype=np.float64) for r in records])
        result[f"{name}/mean"] = float(weights.mean())
        result[f"{name}/max"] = float(weights.max())
        result[f"{name}/zero_fraction"] = float((weights == 0).mean())
        result[f"{name}/top_tokens"] = _top_tokens(records, name, top)
        result[f"{name}/by_class"] = _by_class(records, name)
        result[f"{name}/by_position"] = _by_position(records, name)
        correlation = _kl_correlation(records, name)
        if correlation is not None:
            result[f"{name}/token_kl_correlation"] = correlation
    if records[0]["is_key"] is not None:
        result["key_token_fraction"] = float(
            np.mean(np.concatenate([r["is_key"] for r in records]))
        )
        result["auc/chance"] = 0.5
        rng = np.random.default_rng(seed)
        for r in records:
            r["random_mask"] = rng.random(len(r["tokens"])).tolist()
        for name in ("reward_mask", "kl_mask", "token_kl", "random_mask"):
            result[f"auc/{name}"] = _auc_interval(records, name, min(samples, 200), seed)
    return result


def token_class(token: str) -> str:
    """What a token is: word, number, punctuation, space or special.

    A word has a letter; special is an end mark such as </s>.
    """
    text = token.strip()
    if not text:
        return "space"
    if len(text) > 2 and text[0] + text[-1] in ("<>", "[]"):
        return "special"
    return (
        "word"
        if any(c.isalpha() for c in text)
        else "number"
        if any(c.isdigit() for c in text)
        else "punctuation"
    )


def _by_class(records: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Per class of tokens: mean weight, share of zeros, count, and share of the whole weight."""
    weights: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for token, weight in zip(record["tokens"], record[name], strict=True):
            weights[token_class(token)].append(float(weight))
    total = sum(sum(values) for values in weights.values()) or 1.0
    return [
        {
            "class": kind,
            "mean_weight": float(np.mean(values)),
            "zero_fraction": float(np.mean(np.asarray(values) == 0)),
            "count": len(values),
            "weight_fraction": float(sum(values) / total),
        }
        for kind, values in sorted(weights.items(), key=lambda item: -len(item[1]))
    ]


def _by_position(
    records: list[dict[str, Any]], name: str, num_bins: int = 10
) -> list[dict[str, float]]:
    """Mean weight and share of zeros over tenths of the response."""
    found: list[list[float]] = [[] for _ in range(num_bins)]
    for record in records:
        length = len(record[name])
        for i, weight in enumerate(record[name]):
            found[i * num_bins // length].append(float(weight))
    return [
        {
            "from_fraction": b / num_bins,
            "mean_weight": float(np.mean(values)),
            "zero_fraction": float(np.mean(np.asarray(values) == 0)),
            "count": len(values),
        }
        for b, values in enumerate(found)
        if values
    ]


def _kl_correlation(records: list[dict[str, Any]], name: str) -> float | None:
    """Spearman's rank correlation of weight and token KL over all tokens.

    It is None where either is constant.
    """
    from scipy.stats import spearmanr

    weights = np.concatenate([np.asarray(r[name], dtype=np.float64) for r in records])
    kl = np.concatenate([np.asarray(r["token_kl"], dtype=np.float64) for r in records])
    if np.ptp(weights) == 0 or np.ptp(kl) == 0:
        return None
    return float(spearmanr(weights, kl).statistic)


def _top_tokens(records: list[dict[str, Any]], name: str, top: int) -> list[dict[str, Any]]:
    sums: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for token, weight in zip(record["tokens"], record[name], strict=True):
            sums[token].append(float(weight))
    means = {
        token: (sum(values) / len(values), len(values))
        for token, values in sums.items()
        if len(values) >= 5
    }
    ranked = sorted(means.items(), key=lambda item: (-item[1][0], item[0]))[:top]
    return [
        {"token": token, "mean_weight": mean, "count": count} for token, (mean, count) in ranked
    ]


def _auc_interval(
    records: list[dict[str, Any]], name: str, samples: int, seed: int
) -> dict[str, float]:
    """AUC over all tokens with a bootstrap interval.

    The bootstrap resamples prompts with all responses to them.
    """
    values = [np.asarray(r[name], dtype=np.float64) for r in records]
    labels = [np.asarray(r["is_key"], dtype=bool) for r in records]
    whole = auc(np.concatenate(values), np.concatenate(labels))
    members = cluster_members([r["prompt_hash"] for r in records])
    # Not scipy's bootstrap: a draw without key tokens has no AUC and would make the interval nan.
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(samples):
        picked = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        drawn = auc(
            np.concatenate([values[i] for i in picked]), np.concatenate([labels[i] for i in picked])
        )
        if not math.isnan(drawn):
            draws.append(drawn)
    known = draws and not math.isnan(whole)
    low, high = np.percentile(draws, [2.5, 97.5]) if known else (math.nan, math.nan)
    return {"mean": whole, "low": float(low), "high": float(high), "n": len(members)}
