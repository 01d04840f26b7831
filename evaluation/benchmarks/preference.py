"""preference: does the model prefer the held-out chosen responses, before and after?

It also tells by what margin.
"""

from typing import Any

import numpy as np

from evaluation.intervals import Interval, mean_interval, rate_interval
from evaluation.kl import REFERENCE_POLICY, floor_of
from evaluation.metrics.calibration import calibration_bins, expected_calibration_error
from evaluation.metrics.preference_accuracy import preference_hits


def preference_benchmark(
    records: list[dict[str, Any]], floor: list[float] | None = None
) -> dict[str, Any]:
    """Accuracies and margins of pairs, with 95 % intervals over prompts.

    The pairs of one prompt stay together.

    Three accuracies, because they answer different questions: `logps` ranks by sequence
    log-probability (defined before training too), `logps_per_token` the same per token,
    `implicit_reward` by the objective's own reward, for which the starting model is a tie (0.5) by
    construction. Calibration compares sigmoid(|reward margin|), the probability that the implicit
    reward gives to the response it favours, with how often that one was chosen.

    Args:
        records: per pair: prompt_hash (equal for pairs of one prompt), policy_chosen,
            policy_rejected, start_chosen, start_rejected (sequence log-probabilities, nats),
            num_chosen, num_rejected (tokens), reward_chosen, reward_rejected, kl_chosen,
            kl_rejected (KL(reference || policy), nats per response).
        floor: KL(reference || policy) of some responses with the reference's own weights in the
            policy's place.
    """
    if not records:
        raise ValueError("the preference benchmark needs at least one pair")

    def column(name: str) -> list[float]:
        return [float(r[name]) for r in records]

    def per_token(side: str, who: str) -> list[float]:
        return [r[f"{who}_{side}"] / r[f"num_{side}"] for r in records]

    before = preference_hits(column("start_chosen"), column("start_rejected"))
    after = preference_hits(column("policy_chosen"), column("policy_rejected"))
    before_token = preference_hits(per_token("chosen", "start"), per_token("rejected", "start"))
    after_token = preference_hits(per_token("chosen", "policy"), per_token("rejected", "policy"))
    margins = [r["reward_chosen"] - r["reward_rejected"] for r in records]
    # Bradley-Terry: the probability that the model gives to the recorded preference, folded so that
    # it is the one of the favoured response.
    stated = 1 / (1 + np.exp(-np.abs(np.asarray(margins, dtype=np.float64))))
    hits = preference_hits(column("reward_chosen"), column("reward_rejected"))

    prompts = [r["prompt_hash"] for r in records]

    def mean(values: list[float]) -> Interval:
        return mean_interval(values, prompts)

    def rate(values: list[float]) -> dict[str, float]:
        return rate_interval(values, prompts).as_dict()

    return {
        "num_pairs": len(records),
        "num_prompts": len(set(prompts)),
        "accuracy/logps/before": rate(before),
        "accuracy/logps/after": rate(after),
        "accuracy/logps/gain": rate_interval(
            [b - a for a, b in zip(before, after, strict=True)], prompts, (-1.0, 1.0)
        ).as_dict(),
        "accuracy/logps_per_token/before": rate(before_token),
        "accuracy/logps_per_token/after": rate(after_token),
        "accuracy/implicit_reward": rate(hits),
        "rewards/margins": mean(margins).as_dict(),
        "calibration/error": expected_calibration_error(stated, hits),
        "calibration/brier": rate(((stated - np.asarray(hits)) ** 2).tolist()),
        "calibration/bins": calibration_bins(stated, hits),
        REFERENCE_POLICY: mean([(r["kl_chosen"] + r["kl_rejected"]) / 2 for r in records])
        .at_least(0.0)
        .as_dict(),
        **floor_of(REFERENCE_POLICY, floor),
    }
