"""leaderboard: tasks of lm-evaluation-harness, both models on the same documents."""

from typing import Any

from evaluation.intervals import Interval, mean_interval, rate_interval


def leaderboard_benchmark(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores before and after with 95 % intervals over documents, and the gain paired by document.

    Scores that are all 0 or 1 are rates.

    Args:
        records: per model (model "start" or "policy"): values, task -> metric -> one number per
            document in order; settings, how the harness was run (versions, shots, template, batch
            size).
    """
    values = {record["model"]: record["values"] for record in records}
    found: dict[str, Any] = {}
    for task, metrics in values["policy"].items():
        for metric, after in metrics.items():
            before = values["start"][task][metric]
            gains = [a - b for a, b in zip(after, before, strict=True)]
            is_rate = {*before, *after} <= {0.0, 1.0}
            intervals: dict[str, Interval] = {
                "before": rate_interval(before) if is_rate else mean_interval(before),
                "after": rate_interval(after) if is_rate else mean_interval(after),
                "gain": rate_interval(gains, None, (-1.0, 1.0))
                if is_rate
                else mean_interval(gains),
            }
            found |= {f"{task}/{metric}/{name}": x.as_dict() for name, x in intervals.items()}
    found["settings"] = records[0]["settings"]
    return found
