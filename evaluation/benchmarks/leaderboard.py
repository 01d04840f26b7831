"""leaderboard: tasks of lm-evaluation-harness, both models on the same documents."""

from typing import Any

from evaluation.bootstrap import mean_interval


def leaderboard_benchmark(records: list[dict[str, Any]], samples: int, seed: int) -> dict[str, Any]:
    """Scores before and after with 95 % intervals over documents, and the gain paired by document.

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
            found[f"{task}/{metric}/before"] = mean_interval(before, samples, seed).as_dict()
            found[f"{task}/{metric}/after"] = mean_interval(after, samples, seed).as_dict()
            found[f"{task}/{metric}/gain"] = mean_interval(
                [a - b for a, b in zip(after, before, strict=True)], samples, seed
            ).as_dict()
    found["settings"] = records[0]["settings"]
    return found
