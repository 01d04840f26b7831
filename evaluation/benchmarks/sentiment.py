"""sentiment: reward of samples before and after, against how far the policy moved.

It is a point of the reward-KL frontier.
"""

from typing import Any

import numpy as np

from evaluation.bootstrap import mean_interval
from evaluation.metrics.distinct_n import distinct_n


def sentiment_benchmark(
    records: list[dict[str, Any]], temperature: float, samples: int, seed: int
) -> dict[str, Any]:
    """Rewards of both models on the same prompts, their paired gain, and the sequence KL.

    Args:
        records: per prompt: prompt, policy_text, start_text, policy_reward, start_reward,
            policy_tokens, start_tokens, kl_policy_reference = sum over the sample's tokens of
            KL(policy || reference), nats, full vocabulary.
        temperature: that the samples were drawn at; the KL is the frontier's x-axis at 1.0 only.
    """
    if not records:
        raise ValueError("the sentiment benchmark needs at least one prompt")

    prompts = [r["prompt"] for r in records]

    def interval(values: list[float]) -> dict[str, float]:
        return mean_interval(values, samples, seed, prompts).as_dict()

    start, policy = [r["start_text"] for r in records], [r["policy_text"] for r in records]
    return {
        "num_prompts": len(records),
        "temperature": temperature,
        "reward/before": interval([r["start_reward"] for r in records]),
        "reward/after": interval([r["policy_reward"] for r in records]),
        "reward/gain": interval([r["policy_reward"] - r["start_reward"] for r in records]),
        "kl/policy_reference": interval([r["kl_policy_reference"] for r in records]),
        "distinct_2/before": distinct_n(start, 2),
        "distinct_2/after": distinct_n(policy, 2),
        "tokens/before": interval([float(r["start_tokens"]) for r in records]),
        "tokens/after": interval([float(r["policy_tokens"]) for r in records]),
        "reward_histogram": _histograms(records),
    }


def _histograms(records: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Counts of rewards in ten equal bins of [-1, 1]."""
    edges = np.arange(-5, 6) / 5  # numpy's own are rounded: -0.2 would count as less
    return {
        who: np.histogram(np.clip([r[f"{who}_reward"] for r in records], -1, 1), edges)[0].tolist()
        for who in ("start", "policy")
    }
