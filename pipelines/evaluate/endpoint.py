"""Questions to an endpoint that speaks OpenAI's chat completions: several at once, nonsense asked
again, answers kept.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pipelines.cluster import Bar
from pipelines.errors import DamagedFile, StageFailed, UserError
from pipelines.evaluate.key_traces import KeyTraces
from pipelines.recipe import EndpointSection
from pipelines.storage import RunStore, digest, read_record, write_record

if TYPE_CHECKING:
    from openai import OpenAI

_KEPT_TOGETHER = 32
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
Answer = TypeVar("Answer")


class _Refused(Exception):
    """The endpoint does not take this question."""


def endpoint_key(settings: EndpointSection, section: str) -> str | None:
    """The endpoint's key, or None if it wants none.

    UserError if the environment variable of the key is not set, or holds what no header can.

    Args:
        section: of the recipe, which an error names.
    """
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env)
    named = f"{section}.api_key_env = {settings.api_key_env!r}: this environment variable"
    if not key:
        raise UserError(f"{named} is not set")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{named} holds a space, a line's end or another character of no key")
    return key


def endpoint_client(settings: EndpointSection, key: str | None) -> "OpenAI":
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


class ChatEndpoint(Generic[Answer]):
    """Asks an endpoint's model, and keeps what it says.

    Args:
        section: of the recipe, which errors name. who: what the model is here, "the judge" say.
        store, folder: answers are kept there, so that a question answered once is not asked again.
        accept: what an answer means, None for nonsense.
        stored: of an answer with the key's traces cut and what it meant, the text to keep.
        lacking: what nonsense lacks, for an error.
    Raises: UserError if the environment variable of the key is not set.
    """

    def __init__(
        self,
        settings: EndpointSection,
        section: str,
        who: str,
        store: RunStore,
        folder: str,
        accept: Callable[[str], Answer | None],
        stored: Callable[[str, Answer], str],
        lacking: str,
    ) -> None:
        self._settings, self._section, self._who = settings, section, who
        self._store, self._folder, self._accept, self._stored = store, folder, accept, stored
        self._lacking = lacking
        self._key = endpoint_key(settings, section)
        self._traces = KeyTraces(self._key)
        self._known: dict[str, str] = {}
        for name in store.names(folder):
            try:
                answers = read_record(store, f"{folder}/{name}")
            except DamagedFile as error:
                print(f"{error}: its questions are asked again", file=sys.stderr, flush=True)
                continue
            self._known |= {key: text for key, text in answers.items() if isinstance(text, str)}
        self._fresh: dict[str, str] = {}
        self._reason = f"answers had no {lacking} in them"
        self._lock = threading.Lock()

    def ask_all(
        self, questions: Sequence[list[dict[str, str]]], quiet: bool, label: str
    ) -> list[Answer | None]:
        """What every question's answer means, in order; None where there is none.

        Args:
            label: of the bar.
        Raises: UserError for what the endpoint refuses for good (a wrong key, an unknown model);
            StageFailed if more questions than max_failed_fraction stay without an answer.
        """
        try:
            with (
                endpoint_client(self._settings, self._key) as client,
                ThreadPoolExecutor(self._settings.num_threads) as pool,
            ):
                answers = list(
                    Bar(
                        pool.map(lambda messages: self._answer(client, messages), questions),
                        total=len(questions),
                        desc=label,
                        unit="question",
                        disable=quiet,
                    )
                )
        finally:
            self._keep()
        failed = answers.count(None)
        if failed > self._settings.max_failed_fraction * len(answers):
            raise StageFailed(
                f"{failed} of {len(answers)} questions to {self._who} {self._settings.model} at "
                f"{self._settings.base_url} stayed without a {self._lacking}: {self._reason} "
                f"(allowed: a fraction of {self._section}.max_failed_fraction = "
                f"{self._settings.max_failed_fraction}); the others are kept"
            )
        return answers

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
            return self._accept(self._known[key])
        for attempt in range(settings.max_tries):
            if attempt:
                time.sleep(_WAITS_SECONDS[min(attempt, len(_WAITS_SECONDS)) - 1])
            try:
                text = self._ask(client, body)
            except _Refused as error:
                self._reason = str(error)
                return None
            meant = None if text is None else self._accept(text)
            if text is not None and meant is not None:
                kept = self._stored(self._traces.cut(text), meant)
                with self._lock:
                    self._fresh[key] = kept
                    full = len(self._fresh) >= _KEPT_TOGETHER
                if full:
                    self._keep()
                return self._accept(kept)  # as it will be read again
            body = {
                **body,
                "temperature": max(settings.temperature, 0.5),
            }  # at 0 it would say the same again
        return None

    def _ask(self, client: "OpenAI", body: dict[str, Any]) -> str | None:
        """The model's words; None if it could not be asked, or answered in another form."""
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
        where = f"{self._who} {self._settings.model} at {self._settings.base_url}"
        if 300 <= status < 400:
            raise UserError(
                f"{where} redirects ({status}): set {self._section}.base_url to the address itself"
            )
        if status in _LASTING:
            raise UserError(f"{where} refuses: {status} {said!r}")
        self._reason = f"{status} {said!r}"
        if status in _REFUSED:
            raise _Refused(self._reason)

    def _keep(self) -> None:
        """Publish new answers as a file of their own."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        if fresh:
            self._known |= fresh
            write_record(self._store, f"{self._folder}/{digest(sorted(fresh))}.json", fresh)
