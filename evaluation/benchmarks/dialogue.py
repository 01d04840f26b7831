"""dialogue: how often a judge prefers the policy's reply to the chosen response and to the
starting model's reply.
"""

from typing import Any

from evaluation.bootstrap import mean_interval

OPPONENTS = ("chosen", "start")
_POINTS = {"policy": 1.0, "tie": 0.5, "opponent": 0.0}


def dialogue_benchmark(
    records: list[dict[str, Any]], temperature: float, samples: int, seed: int
) -> dict[str, Any]:
    """Win rates with 95 % intervals over prompts.

    Args:
        records: per prompt: policy_text, and per opponent <opponent>_text and <opponent>_verdict
            ("policy", "opponent", "tie" or "failed"), <opponent>_consistent (whether both orders
            agreed; None without orders).
    Returns: per opponent win_rate (a tie counts one half; prompts without a verdict are left out
        and counted), wins, ties, losses and failures as fractions of all prompts, consistency, and
        how much longer the policy's reply is, in words.
    """
    if not records:
        raise ValueError("the dialogue benchmark needs at least one prompt")
    found: dict[str, Any] = {
        "num_prompts": len(records),
        "temperature": temperature,
        "empty_fraction/after": sum(not r["policy_text"].strip() for r in records) / len(records),
    }
    for opponent in OPPONENTS:
        verdicts = [r[f"{opponent}_verdict"] for r in records]
        judged = [_POINTS[v] for v in verdicts if v != "failed"]
        if judged:
            found[f"win_rate/{opponent}"] = mean_interval(judged, samples, seed).as_dict()
        for name, verdict in (
            ("win", "policy"),
            ("tie", "tie"),
            ("loss", "opponent"),
            ("failed", "failed"),
        ):
            found[f"{name}_fraction/{opponent}"] = verdicts.count(verdict) / len(verdicts)
        consistent = [
            float(r[f"{opponent}_consistent"])
            for r in records
            if r[f"{opponent}_consistent"] is not None
        ]
        if consistent:
            found[f"consistency/{opponent}"] = mean_interval(consistent, samples, seed).as_dict()
        longer = [
            float(len(r["policy_text"].split()) - len(r[f"{opponent}_text"].split()))
            for r in records
        ]
        found[f"extra_words/{opponent}"] = mean_interval(longer, samples, seed).as_dict()
    return found
