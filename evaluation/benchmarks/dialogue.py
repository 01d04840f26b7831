"""dialogue: how often a judge prefers the policy's reply.

Its rivals are the chosen response and the starting model's reply.
"""

from typing import Any

from evaluation.intervals import mean_interval, rate_interval

OPPONENTS = ("chosen", "start")
_POINTS = {"policy": 1.0, "tie": 0.5, "opponent": 0.0}


def dialogue_benchmark(records: list[dict[str, Any]], temperature: float) -> dict[str, Any]:
    """Win rates with 95 % intervals over prompts.

    Args:
        records: per sample: prompt, policy_text, and per opponent <opponent>_text and
            <opponent>_verdict ("policy", "opponent", "tie" or "failed"), <opponent>_consistent
            (whether both orders agreed; None without orders).
    Returns: per opponent win_rate (a tie counts one half; samples without a verdict are left out
        and counted), wins, ties, losses and failures as fractions of all samples, consistency, and
        how much longer the policy's reply is, in words.
    """
    if not records:
        raise ValueError("the dialogue benchmark needs at least one prompt")

    def rate(values: list[float], of: list[dict[str, Any]]) -> dict[str, float]:
        return rate_interval(values, [r["prompt"] for r in of]).as_dict()

    prompts = [r["prompt"] for r in records]
    found: dict[str, Any] = {
        "num_prompts": len(set(prompts)),
        "num_samples": len(records),
        "temperature": temperature,
        "empty_fraction/after": sum(not r["policy_text"].strip() for r in records) / len(records),
    }
    for opponent in OPPONENTS:
        verdicts = [r[f"{opponent}_verdict"] for r in records]
        judged = [r for r in records if r[f"{opponent}_verdict"] != "failed"]
        if judged:
            found[f"win_rate/{opponent}"] = rate(
                [_POINTS[r[f"{opponent}_verdict"]] for r in judged], judged
            )
        for name, verdict in (
            ("win", "policy"),
            ("tie", "tie"),
            ("loss", "opponent"),
            ("failed", "failed"),
        ):
            found[f"{name}_fraction/{opponent}"] = verdicts.count(verdict) / len(verdicts)
        ordered = [r for r in records if r[f"{opponent}_consistent"] is not None]
        if ordered:
            found[f"consistency/{opponent}"] = rate(
                [float(r[f"{opponent}_consistent"]) for r in ordered], ordered
            )
        longer = [
            float(len(r["policy_text"].split()) - len(r[f"{opponent}_text"].split()))
            for r in records
        ]
        found[f"extra_words/{opponent}"] = mean_interval(longer, prompts).as_dict()
    return found
