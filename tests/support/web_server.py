"""A web server in the tests' own process that keeps what it was asked."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Status, headers and body; parts of a body come one after the other, without a length.
Answer = tuple[int, dict[str, str], bytes | Iterable[bytes]]


class Server:
    """Answers each path with a (status, headers, body); wants the token if there is one."""

    def __init__(self, answers: dict[str, Answer], token: str, port: int):
        self.heard: list[str] = []  # every request whole: line, headers, body
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.heard.append(f"{self.requestline}\n{self.headers}\n{body!r}")
                status, headers, text = answers.get(self.path) or answers["*"]
                if token and self.headers.get("Authorization") != f"Bearer {token}":
                    status, headers, text = 401, {}, b""
                self.send_response(status)
                size = {"Content-Length": str(len(text))} if isinstance(text, bytes) else {}
                for name, value in {**headers, **size}.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):  # whoever asked has gone
                    for part in (text,) if isinstance(text, bytes) else text:
                        self.wfile.write(part)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@contextmanager
def serving(answers: dict[str, Answer], token: str = "", port: int = 0) -> Iterator[Server]:
    server = Server(answers, token, port)
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
