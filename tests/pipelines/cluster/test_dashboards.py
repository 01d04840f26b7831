"""The cluster's token and a job's package go to the dashboard that was named, and to no other."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.cluster.jobs import Cluster, Job
from pipelines.errors import UserError

Answer = tuple[int, dict[str, str], bytes]
TOKEN = "c1u5ter-token-8d2f"
VERSION: Answer = (200, {}, json.dumps({"ray_version": "9.0.0"}).encode())
LOGIN = b"<!doctype html><title>Sign in</title>"


class Server:
    """Answers each path with a (status, headers, body); wants the token where `guarded`."""

    def __init__(self, answers: dict[str, Answer], guarded: bool):
        self.heard: list[str] = []  # every request whole: line, headers, body
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.heard.append(f"{self.requestline}\n{self.headers}\n{body!r}")
                status, headers, text = answers.get(self.path) or answers["*"]
                if guarded and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    status, headers, text = 401, {}, b""
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@contextmanager
def serving(answers: dict[str, Answer], guarded: bool = False) -> Iterator[Server]:
    server = Server(answers, guarded)
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    for name in ("RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")  # the client sets them: they are put back


def submit(address: str, package: Path) -> None:
    job = Job("a", "a", "PENDING", "run x", "0")
    Cluster(address, print).start(job, ["run"], package, {"MINE": "here"})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("when", ["without the token", "with the token", "first", "job"])
def test_no_redirect_is_followed(status: int, host: str, when: str, tmp_path: Path) -> None:
    """To another host or port of it: of either question, of the first one of Ray's client, and of
    the job. Nothing arrives there; not even the question without a token.
    """
    with serving({"*": (200, {}, b"[]")}) as elsewhere:
        away = (status, {"Location": f"http://me:pw@{host}:{elsewhere.port}/x"}, b"")
        answers: dict[str, Answer] = {"*": away}
        if when in ("first", "job"):
            answers["/api/jobs/"] = (200, {}, b"[]")
        if when == "job":
            answers["/api/version"] = VERSION
        with serving(answers, guarded=when != "without the token") as dashboard:
            address = f"http://127.0.0.1:{dashboard.port}"
            with pytest.raises(UserError, match="the token follows no redirect") as error:
                submit(address, tmp_path)
            assert f"redirects to {host}:{elsewhere.port}," in str(error.value)
        assert elsewhere.heard == []
        assert any(TOKEN in text for text in dashboard.heard) is (when != "without the token")


@pytest.mark.parametrize("page", [LOGIN, b"", b'{"login": "/"}', b"[1", b"\xff\xfe"])
def test_a_login_page_is_no_dashboard(page: bytes) -> None:
    """Nor is it one that lets everybody in; it does not get the token."""
    said: list[str] = []
    with serving({"*": (200, {}, page)}) as other:
        address = f"http://127.0.0.1:{other.port}"
        with pytest.raises(UserError, match="no Ray dashboard answers there .*a login page"):
            Cluster(address, said.append)
    assert said == [] and not any(TOKEN in text for text in other.heard)


def test_what_answers_the_token_with_a_page_is_no_dashboard() -> None:
    with (
        serving({"*": (200, {}, LOGIN)}, guarded=True) as other,
        pytest.raises(UserError, match="no Ray dashboard answers there"),
    ):
        Cluster(f"http://127.0.0.1:{other.port}", print)


def test_a_log_that_is_redirected_takes_no_token_along() -> None:
    """Following a log is a web socket, of another library."""
    import asyncio

    with serving({"*": (200, {}, b"[]")}) as elsewhere:
        answers: dict[str, Answer] = {
            "*": (302, {"Location": f"http://localhost:{elsewhere.port}/x"}, b""),
            "/api/jobs/": (200, {}, b"[]"),
            "/api/version": VERSION,
        }
        with serving(answers, guarded=True) as dashboard:
            cluster = Cluster(f"http://127.0.0.1:{dashboard.port}", print)

            async def read() -> None:
                async for _ in cluster._client.tail_job_logs("a"):
                    pass

            with pytest.raises(Exception, match="200"):  # aiohttp's: no web socket there
                asyncio.run(read())
        assert elsewhere.heard and not any(TOKEN in text for text in elsewhere.heard)
