"""What the page shows of one run."""

import json
from dataclasses import dataclass, field
from typing import Any

from evaluation.kl import SampledKl, sampled_kls


@dataclass(frozen=True)
class RunView:
    """What the page shows of one run.

    Attributes:
        name: shown label. recipe: resolved configuration. recipe_yaml: the same as text. counts: of
            the train stage, None without one.
        data_counts: of prepare. metrics: training records in step order. results: benchmark name ->
            numbers.
        samples: of held-out prompts, both models. responses: tokens with weights, two per held-out
            pair.
        history: numbers of evaluated checkpoints, with step and passed (None without gates).
        timeline: where the time of the stages before went, as a table of text. method: what was
            trained, the same of runs that differ in their seed alone. seed: of the training.
        controlled: further samples, behind the second control and those after it.
        others: the run's evaluations that have a name, each with a recipe of its own.
        is_toy: whether the model comes from the quickstart's made-up world.
    """

    name: str
    recipe: dict[str, Any]
    recipe_yaml: str
    counts: dict[str, Any] | None
    data_counts: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    controlled: list[dict[str, Any]] = field(default_factory=list)
    responses: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    timeline: str = ""
    method: str = ""
    seed: int | None = None
    others: dict[str, "RunView"] = field(default_factory=dict)
    is_toy: bool = False

    @property
    def evaluated(self) -> str | None:
        """The model that was evaluated in place of a trained one, if any."""
        found: str | None = self.recipe["evaluate"].get("model")
        return found

    @property
    def is_compared(self) -> bool:
        """Whether before and after are two models."""
        return self.evaluated != self.recipe["model"]["name_or_path"]

    @property
    def masked_terms(self) -> list[str]:
        """The terms that this run's mask weighs, "reward" before "kl"; none without a mask."""
        mask, objective = self.recipe["mask"], self.recipe["objective"]
        if mask["kind"] == "none":
            return []
        if not objective.get("alpha", 1.0):  # a weighted objective without KL
            return ["reward"]
        terms = mask.get("terms", "both")
        return ["reward", "kl"] if terms == "both" else [terms]

    @property
    def first_samples(self) -> list[dict[str, Any]]:
        """The samples at the first temperature, which the tables' numbers are of."""
        return [s for s in self.samples if s.get("temperature_number", 0) == 0]

    @property
    def sampled_kls(self) -> list[SampledKl]:
        """KL(policy || reference) of the samples, the first temperature's first."""
        top_p = self.recipe["evaluate"].get("generation", {}).get("top_p", 1.0)
        return list(sampled_kls(self.results.get("sentiment", {}), top_p))

    def differing(self, other: "RunView") -> list[str]:
        """What another evaluation's settings say that this one's do not, as key = value."""
        mine = self.recipe["evaluate"]
        return [
            f"{key} = {json.dumps(value)}"
            for key, value in other.recipe["evaluate"].items()
            if key != "name" and value != mine.get(key)
        ]


MASK_LABELS = {"reward": "reward mask", "kl": "KL mask"}


def all_results(runs: list[RunView]) -> dict[str, Any]:
    """Every number of the page, run by run: what `results.json` holds."""
    return {
        run.name: {
            **run.results,
            "checkpoints": run.history,
            "evaluations": {name: other.results for name, other in run.others.items()},
        }
        for run in runs
    }
