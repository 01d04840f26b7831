"""A local S3 server (moto) in the tests' own process, with failures to order."""

import logging
import os
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any

ADDRESS = os.environ["AWS_ENDPOINT_URL"]  # as conftest.py has chosen it
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
FAULTS = ("unavailable", "slow down", "too many", "cut", "silent")


class ObjectStore:
    """The server, with one bucket called bucket; `fail(n)` lets its next n requests end in 503.

    It listens on every address, so that hosts with a network of their own reach it too.

    Attributes:
        requests: answered. sent: bytes of the answers, without their headers. page: what every
            request is answered with instead, as a proxy does. fault: what is wrong with the answer
            to the n-th request, one of FAULTS; all are right if it says nothing. delay: seconds
            before every answer. silence: seconds without a byte of an answer that is "silent".
    """

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server: Any = ThreadedMotoServer(
            ip_address="0.0.0.0", port=urllib.parse.urlsplit(ADDRESS).port, verbose=False
        )
        self._server.start()
        self._answer = self._server._server.app
        self._server._server.app = self._serve
        self._failures = self.requests = self.sent = 0
        self.heal()
        address = f"{ADDRESS}/bucket"
        urllib.request.urlopen(urllib.request.Request(address, method="PUT")).close()

    def heal(self) -> None:
        """Answer everything, and rightly."""
        self.page, self.delay, self.silence = b"", 0.0, 0.0
        self.fault: Callable[[int], str] = lambda number: ""

    def _serve(self, environment: Any, start: Any) -> Any:
        self.requests += 1
        fault = self.fault(self.requests)
        time.sleep(self.delay)
        if self._failures > 0:
            self._failures -= 1
            fault = "unavailable"
        if self.page:
            start("200 OK", [("Content-Length", str(len(self.page)))])
            return [self.page]
        if fault == "silent":
            return self._late(environment, start)
        if fault == "cut":
            return self._cut_off(environment, start)
        if fault:
            status = "429 Too Many Requests" if fault == "too many" else "503 Slow Down"
            start(status, [])
            return [SLOW_DOWN if fault == "slow down" else b""]
        return self._counted(self._answer(environment, start))

    def _counted(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        for part in parts:
            self.sent += len(part)
            yield part

    def _whole(self, environment: Any, start: Any) -> bytes:
        told: list[Any] = []
        content = b"".join(self._answer(environment, lambda *given: told.append(given)))
        start(*told[-1][:2])
        return content

    def _cut_off(self, environment: Any, start: Any) -> list[bytes]:
        """The headers of the right answer and half of its content."""
        content = self._whole(environment, start)
        return [content[: len(content) // 2]]

    def _late(self, environment: Any, start: Any) -> Iterator[bytes]:
        """The right answer, done at once and told after a silence."""
        content = self._whole(environment, start)
        time.sleep(self.silence)
        yield content

    def fail(self, requests: int) -> None:
        self._failures = requests

    def stop(self) -> None:
        self._server.stop()
