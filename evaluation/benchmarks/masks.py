"""masks: how sparse the token weights are, and which tokens carry them.

It also tells whether they find known key tokens.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from evaluation.metrics.auc import auc_interval
from evaluation.metrics.rank_correlation import rank_correlation_interval

MASKS = ("reward_mask", "kl_mask")
_POSITION_BINS, _SEEN = 10, 5


def masks_benchmark(
    records: list[dict[str, Any]], samples: int, seed: int, top: int = 20
) -> dict[str, Any]:
    """Statistics over the scored tokens of held-out responses.

    It is `mask_totals` of `mask_sums`, with `mask_ranks`. Those are for responses that are not all
    in one place.

    Args:
        records: per response: prompt_hash (equal for responses to one prompt), tokens (strings),
            reward_mask, kl_mask, token_kl (per token), is_key (bool per token, or None when no key
            words are known).
        samples, seed: of the rank correlation's bootstrap over prompts; the seed is the random
            mask's too.
    Returns: per mask mean, max and share of exact zeros, the tokens with the largest mean weight
        (seen at least five times), tables by kind of token and by position, Spearman's correlation
        with token KL (unless either is constant) and, given key words, the AUC of each mask beside
        token KL, a random mask and the chance level.
    """
    return mask_totals([mask_sums(records)], top) | mask_ranks(records, samples, seed)


def mask_sums(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What `mask_totals` adds up of some responses: sums and counts, as JSON.

    Its size is bounded by the vocabulary, whatever the number of tokens.

    Args:
        records: as in `masks_benchmark`.
    """
    weights: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    tokens: dict[str, list[list[float]]] = defaultdict(lambda: [[], []])
    found = {"num_responses": 0, "num_tokens": 0, "num_key_tokens": 0}
    is_labelled = False
    for record in records:
        length = len(record["tokens"])
        found["num_responses"] += 1
        found["num_tokens"] += length
        if record["is_key"] is not None:
            is_labelled = True
            found["num_key_tokens"] += int(sum(record["is_key"]))
        for number, name in enumerate(MASKS):
            for i, (token, weight) in enumerate(zip(record["tokens"], record[name], strict=True)):
                value = float(weight)
                tokens[token][number].append(value)
                weights[name][f"class/{token_class(token)}"].append(value)
                weights[name][f"position/{i * _POSITION_BINS // length}"].append(value)
    return {
        **found,
        "is_labelled": is_labelled,
        "groups": {
            name: {group: _summed(values) for group, values in weights[name].items()}
            for name in MASKS
        },
        "tokens": {
            token: [len(by_mask[0]), *map(math.fsum, by_mask)] for token, by_mask in tokens.items()
        },
    }


def mask_totals(parts: Iterable[dict[str, Any]], top: int = 20) -> dict[str, Any]:
    """The benchmark's sums over all responses, from the `mask_sums` of each part.

    The parts are read once, one after the other.

    Raises: ValueError if they hold no response.
    """
    counts: dict[str, int] = defaultdict(int)
    groups: dict[str, dict[str, list[list[float]]]] = {name: {} for name in MASKS}
    tokens: dict[str, list[float]] = {}
    is_labelled = False
    for part in parts:
        for name in ("num_responses", "num_tokens", "num_key_tokens"):
            counts[name] += part[name]
        is_labelled |= part["is_labelled"]
        for name in MASKS:
            for group, summed in part["groups"][name].items():
                groups[name].setdefault(group, []).append(summed)
        for token, summed in part["tokens"].items():
            known = tokens.setdefault(token, [0, 0.0, 0.0])
            for i, value in enumerate(summed):
                known[i] += value
    if not counts["num_responses"]:
        raise ValueError("the masks benchmark needs at least one response")
    result: dict[str, Any] = {key: counts[key] for key in ("num_responses", "num_tokens")}
    for number, name in enumerate(MASKS):
        added = {group: _Sum.of(found) for group, found in groups[name].items()}
        by_class = _named(added, "class/")
        whole = _Sum.of([astuple(found) for found in by_class.values()])
        result |= {
            f"{name}/mean": whole.mean(),
            f"{name}/max": whole.largest,
            f"{name}/zero_fraction": whole.zero_fraction(),
            f"{name}/top_tokens": _top_tokens(tokens, 1 + number, top),
            f"{name}/by_class": _by_class(by_class, whole),
            f"{name}/by_position": _by_position(_named(added, "position/")),
        }
    if is_labelled:
        result["key_token_fraction"] = counts["num_key_tokens"] / counts["num_tokens"]
    return result


def mask_ranks(records: Sequence[dict[str, Any]], samples: int, seed: int) -> dict[str, Any]:
    """The benchmark's numbers that compare every token with every other.

    Their ranks take all tokens at once, which is why no sums of parts replace them.

    Args:
        records: as in `masks_benchmark`; tokens are not needed, and weights may be arrays.
    """
    result: dict[str, Any] = {}
    prompts = [r["prompt_hash"] for r in records for _ in r["token_kl"]]
    kl = _flat(records, "token_kl")
    known: list[tuple[Any, dict[str, Any]]] = []
    for name in MASKS:
        weights = _flat(records, name)
        if np.ptp(weights) and np.ptp(kl):
            # One mask may weigh both; its thousands of draws are made once.
            same = next((told for seen, told in known if np.array_equal(seen, weights)), None)
            told = same or rank_correlation_interval(weights, kl, prompts, samples, seed).as_dict()
            known.append((weights, told))
            result[f"{name}/token_kl_correlation"] = told
    if records[0]["is_key"] is not None:
        result["auc/chance"] = 0.5
        rng = np.random.default_rng(seed)
        labelled = [{**r, "random_mask": rng.random(len(r["token_kl"]))} for r in records]
        is_key = _flat(records, "is_key")
        for name in (*MASKS, "token_kl", "random_mask"):
            result[f"auc/{name}"] = auc_interval(_flat(labelled, name), is_key, prompts).as_dict()
    return result


@dataclass(frozen=True)
class _Sum:
    """Weights of a group of tokens, added up: their sum, zeros, number and maximum."""

    total: float
    zeros: int
    count: int
    largest: float

    @classmethod
    def of(cls, parts: Sequence[Sequence[float]]) -> "_Sum":
        totals, zeros, counts, largest = zip(*parts, strict=True)
        return cls(math.fsum(totals), int(sum(zeros)), int(sum(counts)), max(largest))

    def mean(self) -> float:
        return self.total / self.count

    def zero_fraction(self) -> float:
        return self.zeros / self.count


def _summed(values: list[float]) -> list[float]:
    """In the order of `_Sum`."""
    return [math.fsum(values), values.count(0.0), len(values), max(values)]


def _named(sums: dict[str, _Sum], prefix: str) -> dict[str, _Sum]:
    return {
        name.removeprefix(prefix): found for name, found in sums.items() if name.startswith(prefix)
    }


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


def _by_class(sums: dict[str, _Sum], whole: _Sum) -> list[dict[str, Any]]:
    """Per class of tokens: mean weight, share of zeros, count, and share of the whole weight."""
    return [
        {
            "class": kind,
            "mean_weight": found.mean(),
            "zero_fraction": found.zero_fraction(),
            "count": found.count,
            "weight_fraction": found.total / (whole.total or 1.0),
        }
        for kind, found in sorted(sums.items(), key=lambda item: -item[1].count)
    ]


def _by_position(sums: dict[str, _Sum]) -> list[dict[str, float]]:
    """Mean weight and share of zeros over tenths of the response."""
    return [
        {
            "from_fraction": number / _POSITION_BINS,
            "mean_weight": found.mean(),
            "zero_fraction": found.zero_fraction(),
            "count": found.count,
        }
        for number, found in sorted((int(name), found) for name, found in sums.items())
    ]


def _flat(records: Sequence[dict[str, Any]], name: str) -> Any:
    """A number per token of all responses."""
    return np.concatenate([np.asarray(r[name], dtype=np.float64) for r in records])


def _top_tokens(tokens: dict[str, list[float]], column: int, top: int) -> list[dict[str, Any]]:
    means = {
        token: (sums[column] / sums[0], int(sums[0]))
        for token, sums in tokens.items()
        if sums[0] >= _SEEN
    }
    ranked = sorted(means.items(), key=lambda item: (-item[1][0], item[0]))[:top]
    return [
        {"token": token, "mean_weight": mean, "count": count} for token, (mean, count) in ranked
    ]
