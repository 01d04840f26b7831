"""A local S3 server (moto) in the tests' own process, with failures to order."""

import logging
import os
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

ADDRESS = os.environ["AWS_ENDPOINT_URL"]  # as conftest.py has chosen it


class ObjectStore:
    """The server, with one bucket called bucket; `fail(n)` lets its next n requests end in 503.

    It listens on every address, so that hosts with a network of their own reach it too.

    Attributes:
        requests: answered. sent: bytes of the answers, without their headers. page: what every
            request is answered with instead, as a proxy does. cut: whether answers end in their
            middle.
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
        self.page, self.cut = b"", False
        address = f"{ADDRESS}/bucket"
        urllib.request.urlopen(urllib.request.Request(address, method="PUT")).close()

    def _serve(self, environment: Any, start: Any) -> Any:
        self.requests += 1
        if self._failures > 0:
            self._failures -= 1
            start("503 Slow Down", [])
            return [b""]
        if self.page:
            start("200 OK", [("Content-Length", str(len(self.page)))])
            return [self.page]
        if self.cut:
            return self._cut_off(environment, start)
        return self._counted(self._answer(environment, start))

    def _counted(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        for part in parts:
            self.sent += len(part)
            yield part

    def _cut_off(self, environment: Any, start: Any) -> list[bytes]:
        """The headers of the right answer and half of its content."""
        told: list[Any] = []
        content = b"".join(self._answer(environment, lambda *given: told.append(given)))
        start(*told[-1][:2])
        return [content[: len(content) // 2]]

    def fail(self, requests: int) -> None:
        self._failures = requests

    def stop(self) -> None:
        self._server.stop()
