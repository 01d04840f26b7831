"""The benchmarks' numbers, from what the tasks of an evaluation found."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from pipelines.evaluate.rewards import reward_span
from pipelines.evaluate.sample_scores import compare_scores
from pipelines.evaluate.tasks import (
    EvaluationTask,
    Records,
    RunLeaderboard,
    SamplePrompts,
    ScorePairs,
    WritePrograms,
)
from pipelines.recipe import EvaluateSection, OpenAIJudge


@dataclass
class Found:
    """What the tasks found: some numbers per pair, some texts per prompt, and nothing per token.

    Attributes:
        shown: the first responses, token by token. samples: in the order of controls,
            temperatures and prompts.
    """

    pairs: Records = field(default_factory=list)
    shown: Records = field(default_factory=list)
    samples: Records = field(default_factory=list)
    programs: Records = field(default_factory=list)
    leaderboard: Records = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, tasks: Sequence[EvaluationTask], results: Iterable[dict[str, Any]]) -> "Found":
        found = cls()
        for task, result in zip(tasks, results, strict=True):
            found.warnings += result.get("warnings", ())
            match task:
                case ScorePairs():
                    found.pairs += result["pair"]
                    found.shown += result["shown"]
                case SamplePrompts():
                    found.samples += result["sample"]
                case WritePrograms():
                    found.programs += result["program"]
                case RunLeaderboard():
                    found.leaderboard += result["leaderboard"]
        found.samples.sort(
            key=lambda s: (
                s.get("control_number", 0),
                s["temperature_number"],
                s["order"],
                s["sample"],
            )
        )
        return found

    def samples_of(self, control: int) -> Records:
        """Those of one of the controls, by its number; of the only one without any."""
        return [sample for sample in self.samples if sample.get("control_number", 0) == control]

    def by_programming_task(self) -> Records:
        """One record per programming task, with all samples of both models in order."""
        records: dict[str, dict[str, Any]] = {}
        for part in sorted(self.programs, key=lambda p: p["start"]):
            record = records.setdefault(
                part["task_id"], {"task_id": part["task_id"], "start_texts": [], "policy_texts": []}
            )
            for who in ("start", "policy"):
                record[f"{who}_texts"] += part[f"{who}_texts"]
        return list(records.values())


def benchmark_results(
    settings: EvaluateSection, found: Found, masks: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Benchmark -> its numbers.

    Args:
        masks: the numbers of that benchmark, which no record of a pair holds; empty without it.
    """
    from evaluation.benchmarks import (
        control_gain,
        dialogue_benchmark,
        labelled_benchmark,
        leaderboard_benchmark,
        preference_benchmark,
        sentiment_benchmark,
        summarization_benchmark,
    )

    span = reward_span(settings.reward)

    def sentiment(drawn: Records, temperature: float) -> dict[str, Any]:
        top_p = settings.sampling_top_p(temperature)
        return sentiment_benchmark(drawn, temperature, top_p, _floor(drawn), span)

    of_samples = {
        "sentiment": sentiment,
        "dialogue": dialogue_benchmark,
        "summarization": summarization_benchmark,
    }
    results: dict[str, dict[str, Any]] = {}
    if "preference" in settings.benchmarks:
        has_labels = any("desirable" in record for record in found.pairs)
        benchmark = labelled_benchmark if has_labels else preference_benchmark
        results["preference"] = benchmark(found.pairs, _floor(found.pairs))
    if "masks" in settings.benchmarks:
        results["masks"] = masks
    if "leaderboard" in settings.benchmarks:
        results["leaderboard"] = leaderboard_benchmark(found.leaderboard)
    for name in settings.sampled_benchmarks():
        results[name] = {}
        for c, t in product(
            range(max(1, len(settings.control))), range(len(settings.sampling_temperatures()))
        ):
            temperature = settings.sampling_temperatures()[t]
            first, drawn = (
                [s for s in found.samples_of(number) if s["temperature_number"] == t]
                for number in (0, c)
            )
            if name == "dialogue" and not isinstance(settings.judge, OpenAIJudge):
                compare_scores(drawn)
            numbers = of_samples[name](drawn, temperature)
            if settings.control:
                numbers = {"control": settings.control[c], **numbers}
            if name == "sentiment" and c:
                numbers["reward/first_control_gain"] = control_gain(first, drawn, span)
            # The first control and temperature have the plain names; the others say theirs.
            prefix = f"control={settings.control[c]}/" if c else ""
            prefix += f"temperature={temperature:g}/" if t else ""
            results[name] |= {f"{prefix}{key}": value for key, value in numbers.items()}
    return results


def _floor(records: Records) -> list[float]:
    return [record["kl_floor"] for record in records if "kl_floor" in record]
