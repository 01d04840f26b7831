"""Verdicts of a judge behind an OpenAI-compatible endpoint.

Both orders are asked, nonsense is asked again, and answers are kept.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from evaluation.judging import joint_verdict, judge_messages, parse_verdict, verdict_mark
from pipelines.cluster import Bar
from pipelines.errors import DamagedFile, StageFailed, UserError
from pipelines.evaluate.key_traces import KeyTraces
from pipelines.recipe import OpenAIJudge
from pipelines.storage import RunStore, digest, read_record, write_record

if TYPE_CHECKING:
    from openai import OpenAI

_ANSWERS, _KEPT_TOGETHER = "verdicts", 32
_WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
# What the endpoint says that no repetition will change: of any question, or of this one (too long,
# say).
_LASTING, _REFUSED = frozenset({401, 403, 404, 405}), frozenset({400, 413, 422})
# What a question needs. The client adds others: facts about this machine, OPENAI_CUSTOM_HEADERS.
_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "user-agent",
    }
)
Answer = Literal["a", "b", "tie"]


class _Refused(Exception):
    """The endpoint does not take this question."""


def judge_key(settings: OpenAIJudge) -> str | None:
    """The endpoint's key, or None if it wants none.

    UserError if the environment variable of the key is not set, or holds what no header can.
    """
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env)
    named = f"evaluate.judge.api_key_env = {settings.api_key_env!r}: this environment variable"
    if not key:
        raise UserError(f"{named} is not set")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{named} holds a space, a line's end or another character of no key")
    return key


def judge_client(settings: OpenAIJudge, key: str | None) -> "OpenAI":
    """A client of the endpoint that the recipe names, with the key that the recipe names.

    Nothing is taken from OPENAI_* variables, and no header tells about this machine. Redirects are
    not followed, so the key reaches no other host. Proxies are those of the environment.
    """
    from openai import DefaultHttpxClient, OpenAI

    def strip(request: Any) -> None:
        for name in set(request.headers) - _HEADERS:
            del request.headers[name]

    return OpenAI(
        api_key=key or "none",  # None would be OPENAI_API_KEY
        base_url=settings.base_url.rstrip("/"),
        timeout=settings.timeout_seconds,
        max_retries=0,  # a question is asked again here, at another temperature
        http_client=DefaultHttpxClient(
            timeout=settings.timeout_seconds,
            follow_redirects=False,
            event_hooks={"request": [strip]},
        ),
    )


class EndpointJudge:
    """Asks questions, several at once.

    Args:
        store: answers are kept in verdicts/, so that a question answered once is not asked again by
            a resumed evaluation.
    Raises: UserError if the environment variable of the key is not set.
    """

    def __init__(self, settings: OpenAIJudge, store: RunStore) -> None:
        self._settings, self._store = settings, store
        self._key = judge_key(settings)
        self._traces = KeyTraces(self._key)
        self._known: dict[str, str] = {}
        for name in store.names(_ANSWERS):
            try:
                answers = read_record(store, f"{_ANSWERS}/{name}")
            except DamagedFile as error:
                print(f"{error}: its questions are asked again", file=sys.stderr, flush=True)
                continue
            self._known |= {key: text for key, text in answers.items() if isinstance(text, str)}
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
                judge_client(self._settings, self._key) as client,
                ThreadPoolExecutor(self._settings.num_threads) as pool,
            ):
                answers = list(
                    Bar(
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

    def _answer(self, client: "OpenAI", messages: list[dict[str, str]]) -> Answer | None:
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
                    self._fresh[key] = self._kept(text, verdict)
                    full = len(self._fresh) >= _KEPT_TOGETHER
                if full:
                    self._keep()
                return verdict
            body = {
                **body,
                "temperature": max(settings.temperature, 0.5),
            }  # at 0 it would say the same again
        return None

    def _ask(self, client: "OpenAI", body: dict[str, Any]) -> str | None:
        """The judge's words; None if it could not be asked, or answered in another form."""
        from openai import APIConnectionError, APIError, APIStatusError, Omit

        # Said with every question, or left out: the client would fill in OPENAI_CUSTOM_HEADERS.
        authorization = {"Authorization": f"Bearer {self._key}" if self._key else Omit()}
        try:
            completion = client.chat.completions.create(**body, extra_headers=authorization)
        except APIStatusError as error:
            self._refused(error.response)
            return None
        except APIConnectionError as error:
            self._reason = type(error.__cause__ or error).__name__
            return None
        except (APIError, ValueError):
            return None
        try:
            return str(completion.choices[0].message.content)
        except (AttributeError, IndexError, TypeError):
            return None

    def _refused(self, response: Any) -> None:
        """Keep why the endpoint refused, and raise if it will do so again."""
        status, said = response.status_code, self._traces.cut(response.text.strip())[:200]
        where = f"the judge {self._settings.model} at {self._settings.base_url}"
        if 300 <= status < 400:
            raise UserError(
                f"{where} redirects ({status}): set evaluate.judge.base_url to the address itself"
            )
        if status in _LASTING:
            raise UserError(f"{where} refuses: {status} {said!r}")
        self._reason = f"{status} {said!r}"
        if status in _REFUSED:
            raise _Refused(self._reason)

    def _kept(self, text: str, verdict: Answer) -> str:
        """An answer as it may be kept; its mark alone if the key's traces go through that."""
        cut = self._traces.cut(text)
        return cut if parse_verdict(cut) == verdict else verdict_mark(verdict)

    def _keep(self) -> None:
        """Publish new answers as a file of their own."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        if fresh:
            self._known |= fresh
            write_record(self._store, f"{_ANSWERS}/{digest(sorted(fresh))}.json", fresh)


def _same(policy_first: Answer | None, policy_second: Answer | None) -> bool:
    return (policy_first, policy_second) in (("a", "b"), ("b", "a"), ("tie", "tie"))
