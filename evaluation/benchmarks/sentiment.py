"""sentiment: reward of samples before and after, against how far the policy moved.

It is a point of the reward-KL frontier.
"""

from typing import Any

import numpy as np

from evaluation.intervals import mean_interval, rate_interval
from evaluation.kl import floor_of, sampled_kl_key
from evaluation.metrics.distinct_n import distinct_n_interval


def sentiment_benchmark(
    records: list[dict[str, Any]],
    temperature: float,
    top_p: float = 1.0,
    floor: list[float] | None = None,
    span: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Rewards of both models on the same prompts, their paired gain, and the sequence KL.

    Args:
        records: per sample: prompt, policy_text, start_text, policy_reward, start_reward,
            policy_tokens, start_tokens, kl_policy_reference = sum over the sample's tokens of
            KL(policy || reference), nats, full vocabulary.
        temperature, top_p: that the samples were drawn with; see `sampled_kl_key`.
        span: where rewards can lie, if that is known.
        floor: the same sums of the reference's own weights in the policy's place, of some samples.
    """
    if not records:
        raise ValueError("the sentiment benchmark needs at least one prompt")
    prompts = [r["prompt"] for r in records]

    def interval(values: list[float]) -> dict[str, float]:
        return mean_interval(values, prompts).as_dict()

    def rewards(values: list[float], ends: tuple[float, float] | None) -> dict[str, float]:
        return interval(values) if ends is None else rate_interval(values, prompts, ends).as_dict()

    start, policy = [r["start_text"] for r in records], [r["policy_text"] for r in records]
    kl = mean_interval([r["kl_policy_reference"] for r in records], prompts).at_least(0.0)
    key = sampled_kl_key(temperature, top_p)
    return {
        "num_prompts": len(set(prompts)),
        "num_samples": len(records),
        "temperature": temperature,
        "top_p": top_p,
        "reward/before": rewards([r["start_reward"] for r in records], span),
        "reward/after": rewards([r["policy_reward"] for r in records], span),
        "reward/gain": rewards(
            [r["policy_reward"] - r["start_reward"] for r in records],
            None if span is None else (span[0] - span[1], span[1] - span[0]),
        ),
        key: kl.as_dict(),
        **floor_of(key, floor),
        "distinct_2/before": distinct_n_interval(start, prompts, 2).as_dict(),
        "distinct_2/after": distinct_n_interval(policy, prompts, 2).as_dict(),
        "tokens/before": interval([float(r["start_tokens"]) for r in records]),
        "tokens/after": interval([float(r["policy_tokens"]) for r in records]),
        "reward_histogram": _histograms(records),
    }


def control_gain(
    first: list[dict[str, Any]],
    other: list[dict[str, Any]],
    span: tuple[float, float] | None = None,
) -> dict[str, float]:
    """How much more reward the policy gets behind one control than behind another; paired.

    Args:
        first, other: sample records of one model, prompts and numbers of samples in one order.
        span: where rewards can lie, if that is known.
    """
    prompts = [record["prompt"] for record in first]
    if prompts != [record["prompt"] for record in other]:
        raise ValueError("the samples behind both controls must answer the same prompts")
    gains = [a["policy_reward"] - b["policy_reward"] for a, b in zip(first, other, strict=True)]
    if span is None:
        return mean_interval(gains, prompts).as_dict()
    return rate_interval(gains, prompts, (span[0] - span[1], span[1] - span[0])).as_dict()


def _histograms(records: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Counts of rewards in ten equal bins of [-1, 1]."""
    edges = np.arange(-5, 6) / 5  # numpy's own are rounded: -0.2 would count as less
    return {
        who: np.histogram(np.clip([r[f"{who}_reward"] for r in records], -1, 1), edges)[0].tolist()
        for who in ("start", "policy")
    }
