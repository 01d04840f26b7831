"""preference, of responses with labels: does the model tell the desirable ones from the others?"""

from typing import Any

import numpy as np

from evaluation.intervals import mean_interval, rate_interval
from evaluation.kl import REFERENCE_POLICY, floor_of
from evaluation.metrics.auc import auc_interval


def labelled_benchmark(
    records: list[dict[str, Any]], floor: list[float] | None = None
) -> dict[str, Any]:
    """Accuracy and ranks of rows with labels; intervals of 95 % are over prompts.

    `accuracy/implicit_reward` and `rewards/margins` compare a row's implicit reward with that of
    responses to other prompts: their mean over all rows, at least 0, as KTO's loss has it. A margin
    is how far a reward is on its label's side; a tie counts one half. `auc/*` is the share of
    (desirable, undesirable) pairs of rows that a score ranks rightly: sequence log-probability, the
    same per token (both defined before training too), implicit reward. Where rows of one label
    alone were held out there is none.

    Args:
        records: as of preference_benchmark, with desirable (bool); chosen is the row's own
            response, rejected one to another prompt. floor: as there.
    """
    if not records:
        raise ValueError("the preference benchmark needs at least one row")
    labels = np.array([bool(r["desirable"]) for r in records])
    prompts = [r["prompt_hash"] for r in records]

    def column(name: str) -> Any:
        return np.array([float(r[name]) for r in records])

    rewards, lengths = column("reward_chosen"), column("num_chosen")
    distances = rewards - max(0.0, float(column("reward_rejected").mean()))
    margins = np.where(labels, distances, -distances)
    ranks = {
        "logps/before": column("start_chosen"),
        "logps/after": column("policy_chosen"),
        "logps_per_token/before": column("start_chosen") / lengths,
        "logps_per_token/after": column("policy_chosen") / lengths,
        "implicit_reward": rewards,
    }
    return {
        "num_rows": len(records),
        "num_desirable": int(labels.sum()),
        "num_prompts": len(set(prompts)),
        "accuracy/implicit_reward": rate_interval(
            (margins > 0) + 0.5 * (margins == 0), prompts
        ).as_dict(),
        "rewards/margins": mean_interval(margins, prompts).as_dict(),
        REFERENCE_POLICY: mean_interval(column("kl_chosen"), prompts).at_least(0.0).as_dict(),
        **floor_of(REFERENCE_POLICY, floor),
        **{
            f"auc/{name}": auc_interval(scores, labels, prompts).as_dict()
            for name, scores in ranks.items()
            if labels.any() and not labels.all()
        },
    }
