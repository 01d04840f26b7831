"""A web server for one reader on this machine: on loopback alone, with a secret in its address.

Whoever may open a connection to the port is told nothing without the secret: other users of the
machine, and pages of other sites in the reader's own browser. A name that such a site makes lead to
this machine is refused by the Host header, whatever follows.
"""

import contextlib
import re
import secrets
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from pipelines.errors import UserError

_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*)(:[0-9]*)?")
_LOOPBACK, _LOOPBACK_6 = "127.0.0.1", "::1"
_TRIES = 20  # ports that are free on the one loopback and taken on the other
_IDLE_SECONDS = 60  # after which a connection is closed
_SECRET_BYTES = 32
# The page takes what this server sends and nothing from elsewhere. Plotly sets styles of its own,
# and makes pictures to save.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Answer:
    """What is sent: bytes with their type, or the place to go to instead."""

    content: bytes = b""
    type: str = "text/plain; charset=utf-8"
    status: int = HTTPStatus.OK
    location: str = ""
    is_kept: bool = False  # by the browser, for as long as the address lives


# Path below the secret, without a leading "/", and the query; None where there is nothing.
Answering = Callable[[str, Mapping[str, str]], Answer | None]


class Door:
    """Who is let in: the secret of the address, and tickets that each open once."""

    def __init__(self) -> None:
        self.secret = secrets.token_urlsafe(_SECRET_BYTES)
        self._tickets: set[str] = set()

    def ticket(self) -> str:
        """A path that leads to the page once; what a browser is started with, others can read."""
        found = secrets.token_urlsafe(_SECRET_BYTES)
        self._tickets.add(found)
        return found

    def opens(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.secret.encode())

    def takes(self, given: str) -> bool:
        """Whether this was a ticket; it is none any more."""
        if given in self._tickets:
            self._tickets.remove(given)
            return True
        return False


class _Handler(BaseHTTPRequestHandler):
    door: ClassVar[Door]
    answering: ClassVar[Answering]
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        self._send(self._answer())

    do_HEAD = do_GET

    def _answer(self) -> Answer:
        if not is_here(self.headers.get_all("Host") or []):
            return _refused("this server answers under 127.0.0.1, localhost and ::1 alone")
        try:
            url = urlsplit(self.path)
        except ValueError:
            return _refused("this is no address")
        given, sign, path = url.path.removeprefix("/").partition("/")
        if not url.netloc and url.path.startswith("/"):
            if self.door.takes(given):
                return Answer(status=HTTPStatus.SEE_OTHER, location=f"/{self.door.secret}/")
            if self.door.opens(given):
                if not sign:
                    return Answer(status=HTTPStatus.SEE_OTHER, location=f"/{given}/")
                found = type(self).answering(path, dict(parse_qsl(url.query)))
                return found or Answer(b"not found\n", status=HTTPStatus.NOT_FOUND)
        return _refused("the address that `sparsepo watch` has printed opens this page")

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {
            "Content-Type": answer.type,
            "Content-Length": str(len(answer.content)),
            "Content-Security-Policy": _POLICY,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, max-age=86400" if answer.is_kept else "no-store",
            **({"Location": answer.location} if answer.location else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)

    def version_string(self) -> str:
        return "sparsepo"

    def log_message(self, *_: object) -> None:
        """Say nothing: the address of a request holds the secret."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # An ended server's port is free for the next at once; nobody else may listen there meanwhile.
    allow_reuse_address = True
    allow_reuse_port = False

    def server_bind(self) -> None:
        """Bind without asking anybody for this machine's name, as HTTPServer does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = _LOOPBACK, int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):  # the reader has gone
            super().handle_error(request, client_address)


class _Server6(_Server):
    address_family = socket.AF_INET6


def is_here(hosts: list[str]) -> bool:
    """Whether a request's Host headers name this machine's loopback; of a tunnel, at any port."""
    match = _HOST.fullmatch(hosts[0].strip()) if len(hosts) == 1 else None
    return match is not None and match[1].lower() in _HOSTS


def _refused(why: str) -> Answer:
    return Answer(f"{why}\n".encode(), status=HTTPStatus.FORBIDDEN)


@dataclass(frozen=True)
class Address:
    """Where a server answers."""

    port: int
    door: Door

    @property
    def url(self) -> str:
        return f"http://{_LOOPBACK}:{self.port}/{self.door.secret}/"

    def opening(self) -> str:
        """An address for a browser's command line, which opens once."""
        return f"http://{_LOOPBACK}:{self.port}/{self.door.ticket()}"


@contextlib.contextmanager
def serving(answering: Answering, port: int | None = None) -> Iterator[Address]:
    """Serve during the block, on 127.0.0.1 and, where this machine has it, ::1.

    Args:
        port: None for one that is free.
    Raises: UserError for a port that is taken, or that this user may not listen on.
    """
    door = Door()
    handler = type("Handler", (_Handler,), {"door": door, "answering": staticmethod(answering)})
    servers = _bound(handler, port)
    threads = [
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        for server in servers
    ]
    for thread in threads:
        thread.start()
    try:
        yield Address(servers[0].server_port, door)
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def _bound(handler: type[_Handler], port: int | None) -> list[_Server]:
    """A server for each loopback, at one port."""
    for _ in range(_TRIES):
        try:
            first = _Server((_LOOPBACK, port or 0), handler)
        except OSError as error:
            raise _no_port(port, error) from error
        if not _has_loopback_6():
            return [first]
        try:
            return [first, _Server6((_LOOPBACK_6, first.server_port), handler)]
        except OSError as error:
            first.server_close()
            if port is not None:
                raise _no_port(port, error) from error
    raise UserError(f"no port is free on both {_LOOPBACK} and {_LOOPBACK_6}: name one with --port")


def _no_port(port: int | None, error: OSError) -> UserError:
    named = "a port" if port is None else f"--port {port}"
    why = (error.strerror or str(error)).lower()
    return UserError(f"{named}: cannot listen there ({why}); leave --port out to take a free one")


def _has_loopback_6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((_LOOPBACK_6, 0))
    except OSError:
        return False
    return True
