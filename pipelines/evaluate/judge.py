"""Verdicts of a judge behind an OpenAI-compatible endpoint; both orders are asked."""

from collections.abc import Sequence
from typing import Any, Literal

from evaluation.judging import joint_verdict, judge_messages, parse_verdict, verdict_mark
from pipelines.evaluate.endpoint import ChatEndpoint, endpoint_key
from pipelines.recipe import OpenAIJudge
from pipelines.storage import RunStore

_SECTION, _ANSWERS = "evaluate.judge", "verdicts"
Answer = Literal["a", "b", "tie"]


def judge_key(settings: OpenAIJudge) -> str | None:
    """The endpoint's key, or None if it wants none. Raises: UserError as `endpoint_key`."""
    return endpoint_key(settings, _SECTION)


class EndpointJudge:
    """Asks questions, several at once.

    Args:
        store: answers are kept in verdicts/, so that a question answered once is not asked again by
            a resumed evaluation.
    Raises: UserError if the environment variable of the key is not set.
    """

    def __init__(self, settings: OpenAIJudge, store: RunStore) -> None:
        self._endpoint: ChatEndpoint[Answer] = ChatEndpoint(
            settings, _SECTION, "the judge", store, _ANSWERS, parse_verdict, _kept, "verdict"
        )

    def compare(
        self, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str], quiet: bool
    ) -> list[dict[str, Any]]:
        """Per prompt, verdict and consistent.

        verdict is "policy", "opponent", "tie" or "failed". consistent is True, False, or None for a
        failed one.

        Raises: UserError for what the endpoint refuses for good (a wrong key, an unknown model);
            StageFailed if more questions than evaluate.judge.max_failed_fraction stay without a
            verdict.
        """
        questions = []
        for prompt, our, their in zip(prompts, ours, theirs, strict=True):
            questions += [judge_messages(prompt, our, their), judge_messages(prompt, their, our)]
        answers = self._endpoint.ask_all(questions, quiet, "judge")
        pairs = zip(answers[::2], answers[1::2], strict=True)
        return [
            {"verdict": joint_verdict(a, b), "consistent": None if None in (a, b) else _same(a, b)}
            for a, b in pairs
        ]


def _kept(cut: str, verdict: Answer) -> str:
    """An answer as it may be kept; its mark alone if the key's traces go through that."""
    return cut if parse_verdict(cut) == verdict else verdict_mark(verdict)


def _same(policy_first: Answer | None, policy_second: Answer | None) -> bool:
    return (policy_first, policy_second) in (("a", "b"), ("b", "a"), ("tie", "tie"))
