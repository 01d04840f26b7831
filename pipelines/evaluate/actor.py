"""The evaluating actor: scores held-out pairs and draws samples.

The benchmarks' numbers are made of its results elsewhere.
"""

from typing import Any

from pipelines.evaluate.leaderboard import run_tasks_of
from pipelines.evaluate.pair_scoring import PairScorer
from pipelines.evaluate.response_drawing import ResponseDrawer
from pipelines.evaluate.tasks import (
    EvaluationTask,
    Records,
    RunLeaderboard,
    SamplePrompts,
    ScorePairs,
    WritePrograms,
)


class Evaluator(PairScorer, ResponseDrawer):
    """Actor: does any task of an evaluation with the models that it holds."""

    def __call__(self, task: EvaluationTask) -> dict[str, Any]:
        match task:
            case ScorePairs():
                return self._score_pairs(task)
            case SamplePrompts():
                return {"sample": self._sample(task), "warnings": self._job_sampler.warnings}
            case WritePrograms():
                return {"program": self._programs(task), "warnings": self._job_sampler.warnings}
            case RunLeaderboard():
                return {"leaderboard": self._leaderboard()}

    def _leaderboard(self) -> Records:
        section = self._settings.leaderboard
        assert section is not None
        models = {"start": self._start, "policy": self._policy.causal_lm}
        tokenizer = self._facts.training.chat.on(self._tokenizer)
        return [
            {
                "model": who,
                **run_tasks_of(section, model, tokenizer, self._ends, self._settings.seed),
            }
            for who, model in models.items()
        ]
