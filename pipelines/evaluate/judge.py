"""Verdicts of a judge behind an OpenAI-compatible endpoint.

Both orders are asked, nonsense is asked again, and answers are kept.
"""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
from tqdm import tqdm

from evaluation.judging import joint_verdict, judge_messages, parse_verdict
from pipelines.errors import StageFailed, UserError
from pipelines.recipe import OpenAIJudge
from pipelines.storage import RunStore, digest

_ANSWERS, _KEPT_TOGETHER = "verdicts", 32
_WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
# What the endpoint says that no repetition will change: of any question, or of this one (too long,
# say).
_LASTING, _REFUSED = frozenset({401, 403, 404, 405}), frozenset({400, 413, 422})
Answer = Literal["a", "b", "tie"]


class _Refused(Exception):
    """The endpoint does not take this question."""


def request_headers(settings: OpenAIJudge) -> dict[str, str]:
    """What the endpoint is told with every question.

    UserError if the environment variable of the key is not set.
    """
    if settings.api_key_env is None:
        return {}
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise UserError(
            f"evaluate.judge.api_key_env = {settings.api_key_env!r}: this environment variable is "
            "not set"
        )
    return {"Authorization": f"Bearer {key}"}


class EndpointJudge:
    """Asks questions, several at once.

    Args:
        store: answers are kept in verdicts/, so that a question answered once is not asked again by
            a resumed evaluation.
    Raises: UserError if the environment variable of the key is not set.
    """

    def __init__(self, settings: OpenAIJudge, store: RunStore) -> None:
        self._settings, self._store = settings, store
        self._headers = request_headers(settings)
        self._known: dict[str, str] = {}
        for name in store.names(_ANSWERS):
            self._known |= store.read_json(f"{_ANSWERS}/{name}")
        self._fresh: dict[str, str] = {}
        self._reason = "answers had no verdict in them"
        self._lock = threading.Lock()

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
        try:
            with (
                httpx.Client(
                    base_url=self._settings.base_url.rstrip("/"),
                    headers=self._headers,
                    timeout=self._settings.timeout_seconds,
                ) as client,
                ThreadPoolExecutor(self._settings.num_threads) as pool,
            ):
                answers = list(
                    tqdm(
                        pool.map(lambda messages: self._answer(client, messages), questions),
                        total=len(questions),
                        desc="judge",
                        unit="question",
                        disable=quiet,
                    )
                )
        finally:
            self._keep()
        failed = answers.count(None)
        if failed > self._settings.max_failed_fraction * len(answers):
            raise StageFailed(
                f"{failed} of {len(answers)} questions to the judge {self._settings.model} at "
                f"{self._settings.base_url} stayed without a verdict: {self._reason} (allowed: a "
                "fraction of evaluate.judge.max_failed_fraction = "
                f"{self._settings.max_failed_fraction}); the others are kept"
            )
        pairs = zip(answers[::2], answers[1::2], strict=True)
        return [
            {"verdict": joint_verdict(a, b), "consistent": None if None in (a, b) else _same(a, b)}
            for a, b in pairs
        ]

    def _answer(self, client: httpx.Client, messages: list[dict[str, str]]) -> Answer | None:
        settings = self._settings
        body = {
            "model": settings.model,
            "messages": messages,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
        }
        key = digest([settings.base_url, body])
        if key in self._known:
            return parse_verdict(self._known[key])
        for attempt in range(settings.max_tries):
            if attempt:
                time.sleep(_WAITS_SECONDS[min(attempt, len(_WAITS_SECONDS)) - 1])
            try:
                text = self._ask(client, body)
            except _Refused as error:
                self._reason = str(error)
                return None
            verdict = None if text is None else parse_verdict(text)
            if text is not None and verdict is not None:
                with self._lock:
                    self._fresh[key] = text
                    full = len(self._fresh) >= _KEPT_TOGETHER
                if full:
                    self._keep()
                return verdict
            body = {
                **body,
                "temperature": max(settings.temperature, 0.5),
            }  # at 0 it would say the same again
        return None

    def _ask(self, client: httpx.Client, body: dict[str, Any]) -> str | None:
        """The judge's words; None if it could not be asked, or answered in another form."""
        try:
            response = client.post("/chat/completions", json=body)
        except httpx.HTTPError as error:
            self._reason = type(error).__name__
            return None
        if response.status_code in _LASTING:
            raise UserError(
                f"the judge {self._settings.model} at {self._settings.base_url} refuses: "
                f"{response.status_code} {response.text.strip()[:200]!r}"
            )
        if response.status_code in _REFUSED:
            raise _Refused(f"{response.status_code} {response.text.strip()[:200]!r}")
        try:
            return str(response.json()["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError):
            return None

    def _keep(self) -> None:
        """Publish new answers as a file of their own."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        if fresh:
            self._known |= fresh
            self._store.write_json(f"{_ANSWERS}/{digest(sorted(fresh))}.json", fresh)


def _same(policy_first: Answer | None, policy_second: Answer | None) -> bool:
    return (policy_first, policy_second) in (("a", "b"), ("b", "a"), ("tie", "tie"))
