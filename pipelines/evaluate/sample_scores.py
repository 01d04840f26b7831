"""What the sampled benchmarks need of each sample besides its text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.cluster import Pool, run_tasks
from pipelines.evaluate.tasks import Records, ScoreTexts, text_tasks
from pipelines.recipe import EvaluateSection, OpenAIJudge
from pipelines.storage import TaskResults

# The judge's client and the text models' libraries are heavy.
if TYPE_CHECKING:
    from pipelines.evaluate.judge import EndpointJudge


def scored(
    samples: Records, settings: EvaluateSection, parts: TaskResults, pool: Pool, quiet: bool
) -> Records:
    """Add what the sampled benchmarks need of each text; in actors where it takes a model."""
    from pipelines.evaluate.rewards import needs_model
    from pipelines.evaluate.text_scorer import TextScorer

    scorers = _scorers(settings)
    if not scorers or not samples:
        return samples
    if scorers == ["reward"] and not needs_model(settings.reward):
        return TextScorer(settings)(ScoreTexts(0, ("reward",), samples))
    tasks = text_tasks(samples, scorers)
    todo = parts.missing(tasks)
    parts.add(todo, run_tasks(todo, TextScorer, settings, pool, quiet))
    return [record for found in parts.results(tasks) for record in found]


def ask(judge: "EndpointJudge", samples: Records, quiet: bool) -> None:
    """Add the endpoint's verdicts on the policy's reply against each opponent's."""
    from evaluation.benchmarks.dialogue import OPPONENTS

    for opponent in OPPONENTS:
        prompts, ours, theirs = (
            [s[key] for s in samples] for key in ("prompt", "policy_text", f"{opponent}_text")
        )
        for sample, found in zip(samples, judge.compare(prompts, ours, theirs, quiet), strict=True):
            sample |= {f"{opponent}_{key}": value for key, value in found.items()}


def compare_scores(samples: Records) -> None:
    """Add the verdicts of a reward model: the higher score wins. One without a score has failed."""
    from evaluation.benchmarks.dialogue import OPPONENTS

    for sample in samples:
        for opponent in OPPONENTS:
            ours, theirs = sample["policy_judge_score"], sample[f"{opponent}_judge_score"]
            verdict = "failed"
            if ours is not None and theirs is not None:
                difference = ours - theirs
                verdict = "policy" if difference > 0 else "opponent" if difference < 0 else "tie"
            sample[f"{opponent}_verdict"] = verdict
            sample[f"{opponent}_consistent"] = None


def _scorers(settings: EvaluateSection) -> Sequence[str]:
    """Names of what a `TextScorer` has to add."""
    wanted = {
        "reward": "sentiment" in settings.benchmarks,
        "judge": "dialogue" in settings.benchmarks and not isinstance(settings.judge, OpenAIJudge),
        "bert_score": "summarization" in settings.benchmarks
        and settings.summarization.bert_score_model is not None,
        "entailment": "summarization" in settings.benchmarks
        and settings.summarization.entailment_model is not None,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]
