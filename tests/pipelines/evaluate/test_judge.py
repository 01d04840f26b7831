"""The judge against a real server: `transformers serve` with models made on the spot, and
endpoints that are slow, wrong or away.
"""

import ast
import base64
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from by_hand import unsealed
from processes import cpu_seconds, wait_while_it_goes_on
from text_models import write_constant_judge

from pipelines.errors import StageFailed, UserError
from pipelines.evaluate import endpoint as endpoint_module
from pipelines.evaluate.judge import EndpointJudge, judge_key
from pipelines.recipe.evaluation import OpenAIJudge
from pipelines.storage.store import RunStore

PROMPTS, OURS, THEIRS = ["How are you?", "Why?"], ["Fine.", "Because."], ["Go away.", ""]


def served(model: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*serve, str(model)],
            stdout=stream,
            stderr=stream,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{address}/health", timeout=2).is_success
        return False

    try:
        wait_while_it_goes_on(answers, lambda: round(cpu_seconds(process.pid)), 0.3)
    except BaseException:
        process.kill()
        raise
    return process, f"{address}/v1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server whose model always finds reply A better."""
    folder = tmp_path_factory.mktemp("judge")
    model = write_constant_judge(folder / "model", ["A", "is", "better:", "[[A]]"])
    process, address = served(model, folder / "log")
    yield address, str(model)
    process.kill()
    process.wait()


def judge(address: str, model: str, **more: object) -> OpenAIJudge:
    return OpenAIJudge.model_validate(
        {
            "base_url": address,
            "model": model,
            "max_tokens": 16,
            "timeout_seconds": 60,
            "max_tries": 2,
            **more,
        }
    )


@pytest.mark.slow
def test_a_judge_that_always_says_a_is_found_inconsistent(
    server: tuple[str, str], tmp_path: Path
) -> None:
    """Both orders answered [[A]]: ties, none consistent.

    Answers are kept: with the endpoint gone the same question is still answered.
    """
    store = RunStore(str(tmp_path))
    found = EndpointJudge(judge(*server), store).compare(PROMPTS, OURS, THEIRS, quiet=True)
    assert found == [{"verdict": "tie", "consistent": False}] * 2
    (name,) = store.names("verdicts")
    kept = unsealed(tmp_path / "verdicts" / name)
    assert len(kept) == 4 and set(kept.values()) == {"A is better: [[A]]"}
    gone = EndpointJudge(judge(*server), store)
    gone._endpoint._ask = None  # type: ignore[method-assign, assignment] - whoever asks now, fails
    assert gone.compare(PROMPTS, OURS, THEIRS, quiet=True) == found
    store.write_json(
        f"verdicts/{name}",
        {key: "[[B]]" if i == 0 else text for i, (key, text) in enumerate(kept.items())},
    )
    assert [
        f["consistent"]
        for f in EndpointJudge(judge(*server), store).compare(PROMPTS, OURS, THEIRS, quiet=True)
    ].count(True) == 1


@pytest.mark.slow
def test_nonsense_is_asked_again_and_then_failed(server: tuple[str, str], tmp_path: Path) -> None:
    """Cut before its verdict mark, the same judge says nothing that counts: no wins, and too
    many of those end the stage.
    """
    patient = EndpointJudge(
        judge(*server, max_tokens=2, max_failed_fraction=1.0), RunStore(str(tmp_path))
    )
    asked: list[float] = []
    endpoint = patient._endpoint
    ask = endpoint._ask
    endpoint._ask = lambda client, body: asked.append(body["temperature"]) or ask(client, body)  # type: ignore[method-assign, func-returns-value]
    assert patient.compare(PROMPTS[:1], OURS[:1], THEIRS[:1], quiet=True) == [
        {"verdict": "failed", "consistent": None}
    ]
    assert sorted(asked) == [0.0, 0.0, 0.5, 0.5], (
        "twice in each order, the second time not at temperature 0"
    )
    assert not RunStore(str(tmp_path)).exists("verdicts")
    with pytest.raises(
        StageFailed, match="2 of 2 questions to the judge .* stayed without a verdict"
    ):
        EndpointJudge(judge(*server, max_tokens=2, max_tries=1), RunStore(str(tmp_path))).compare(
            PROMPTS[:1], OURS[:1], THEIRS[:1], quiet=True
        )


@pytest.mark.slow
def test_an_unknown_model_and_a_missing_key_are_said_at_once(
    server: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((UserError, StageFailed), match="the judge /nowhere at http.*: 4"):
        EndpointJudge(judge(server[0], "/nowhere"), RunStore(str(tmp_path))).compare(
            PROMPTS[:1], OURS[:1], THEIRS[:1], quiet=True
        )
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="evaluate.judge.api_key_env = 'NO_SUCH_KEY'"):
        EndpointJudge(judge(*server, api_key_env="NO_SUCH_KEY"), RunStore(str(tmp_path)))


def test_a_judge_that_never_answers_times_out_and_never_wins(tmp_path: Path) -> None:
    """A listener that accepts and stays silent, and a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = judge(address, "m", timeout_seconds=0.3, max_tries=2, max_failed_fraction=1.0)
        started = time.monotonic()
        found = EndpointJudge(settings, RunStore(str(tmp_path))).compare(
            PROMPTS, OURS, THEIRS, quiet=True
        )
        assert [f["verdict"] for f in found] == ["failed", "failed"]
        assert time.monotonic() - started < 20, "two tries of 0.3 s, a second between them"
    settings = judge(address, "m", max_tries=1)
    with pytest.raises(StageFailed, match="4 of 4 questions .* ConnectError"):
        EndpointJudge(settings, RunStore(str(tmp_path))).compare(PROMPTS, OURS, THEIRS, quiet=True)


def test_the_key_reaches_the_endpoint_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read off the wire by a bare socket; the answer that it gives is kept, the key is not."""
    monkeypatch.setenv("JUDGE_KEY", "s3cret-key")
    heard: list[bytes] = []

    def answer(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            data = b""
            while b"\r\n\r\n" not in data or len(data.split(b"\r\n\r\n", 1)[1]) < int(
                data.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            ):
                data += connection.recv(65536)
            heard.append(data)
            body = json.dumps({"choices": [{"message": {"content": "[[C]]"}}]}).encode()
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        settings = judge(
            f"http://127.0.0.1:{listener.getsockname()[1]}/v1/",
            "m",
            api_key_env="JUDGE_KEY",
            num_threads=1,
        )
        found = EndpointJudge(settings, RunStore(str(tmp_path))).compare(
            PROMPTS[:1], OURS[:1], THEIRS[:1], quiet=True
        )
    assert found == [{"verdict": "tie", "consistent": True}]
    assert (
        all(
            b"POST /v1/chat/completions " in data
            and b"authorization: bearer s3cret-key" in data.lower()
            for data in heard
        )
        and len(heard) == 2
    )
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and "s3cret-key" in f.read_text()]


@pytest.fixture
def endpoint() -> Iterator[Callable[..., tuple[str, list[tuple[str, dict[str, str], Any]]]]]:
    """Makes servers that answer each question with (status, headers, body) of a function.

    A server is its address, and what it was told: path, headers in lower case, body.
    """
    servers = []

    def start(answer: Callable[[dict[str, str], int], tuple[int, dict[str, str], str]]) -> Any:
        told: list[tuple[str, dict[str, str], Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = json.loads(self.rfile.read(int(headers["content-length"])))
                told.append((self.path, headers, body))
                status, more, text = answer(headers, len(told))
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(text.encode())),
                    **more,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1", told

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def said(text: str) -> str:
    return json.dumps({"choices": [{"message": {"content": text}}]})


def ask(folder: Path, address: str, **more: object) -> list[dict[str, Any]]:
    """One prompt, both orders, no wait between tries."""
    settings = judge(address, "m", num_threads=1, **more)
    return EndpointJudge(settings, RunStore(str(folder))).compare(
        PROMPTS[:1], OURS[:1], THEIRS[:1], quiet=True
    )


@pytest.mark.parametrize("has_key", [True, False])
def test_the_recipe_alone_says_what_reaches_the_endpoint(
    endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_key: bool
) -> None:
    """Every variable that the client library reads is planted, and none of it arrives."""
    elsewhere, told_elsewhere = endpoint(lambda headers, count: (200, {}, said("[[A]]")))
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", "planted-7f3a9c")
    monkeypatch.setenv("OPENAI_BASE_URL", elsewhere)
    monkeypatch.setenv(
        "OPENAI_CUSTOM_HEADERS", "Authorization: Bearer planted-7f3a9c\nX-Own: planted-7f3a9c"
    )
    monkeypatch.setenv("JUDGE_KEY", "s3cret-key")
    address, told = endpoint(lambda headers, count: (200, {}, said("[[C]]")))
    ask(tmp_path, address, api_key_env="JUDGE_KEY" if has_key else None)
    assert not told_elsewhere and len(told) == 2
    for path, headers, body in told:
        assert path == "/v1/chat/completions"
        assert "planted" not in str(headers)
        assert headers.get("authorization") == ("Bearer s3cret-key" if has_key else None)
        assert headers.keys() - {"authorization"} == {
            "accept", "accept-encoding", "connection", "content-length", "content-type", "host",
            "user-agent",
        }  # fmt: skip
        assert body.keys() == {"model", "messages", "max_tokens", "temperature"}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_key_follows_no_redirect(
    endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret-key")
    elsewhere, told_elsewhere = endpoint(lambda headers, count: (200, {}, said("[[A]]")))
    to = {"Location": f"{elsewhere}/chat/completions"}
    address, told = endpoint(lambda headers, count: (status, to, ""))
    with pytest.raises(UserError, match=rf"the judge m at {address} redirects \({status}\): set "):
        ask(tmp_path, address, api_key_env="JUDGE_KEY")
    assert not told_elsewhere and told


@pytest.mark.parametrize("key", ["s3cret-key", "pw9-x", "[[A]]-[[B]]"])
@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_what_an_endpoint_repeats_of_the_key_is_kept_nowhere(
    endpoint: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    status: int,
    key: str,
) -> None:
    """It answers with the header that it was sent, and that in base64: as a verdict, and as an
    error. A verdict is read before the key is cut.
    """
    monkeypatch.setenv("JUDGE_KEY", key)
    caplog.set_level(logging.DEBUG)

    def repeated(headers: dict[str, str]) -> str:
        sent = headers["authorization"]
        return f"{sent} {base64.b64encode(sent.split()[1].encode()).decode()} [[A]]"

    address, told = endpoint(lambda headers, count: (status, {}, said(repeated(headers))))
    message = ""
    try:
        found = ask(tmp_path, address, api_key_env="JUDGE_KEY", max_tries=1)
        assert status == 200 and found == [{"verdict": "tie", "consistent": False}]
    except (UserError, StageFailed) as error:
        message = str(error)
        assert f"{status} " in message and "***" in message
    assert key in str(told)
    files = [f.read_text() for f in tmp_path.rglob("*") if f.is_file()]
    assert (status == 200) == bool(files)
    everything = "".join([message, caplog.text, *capfd.readouterr(), *files])
    assert key not in everything
    assert base64.b64encode(key.encode()).decode().rstrip("=") not in everything


@pytest.mark.slow
def test_a_question_is_asked_as_often_as_the_recipe_says(
    endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in each order, whatever the server says about repeating; the second try may differ.

    Then: too busy at first, and no JSON; both are asked again and answered.
    """
    monkeypatch.setattr(endpoint_module, "_WAITS_SECONDS", (0.0,))
    again = {"Retry-After": "60", "x-should-retry": "true"}
    address, told = endpoint(lambda headers, count: (503, again, "busy"))
    with pytest.raises(StageFailed, match="2 of 2 questions .* without a verdict: 503 'busy'"):
        ask(tmp_path, address)
    assert [body["temperature"] for _, _, body in told] == [0.0, 0.5, 0.0, 0.5]
    for bad in ((429, {}, "{}"), (200, {}, "<html>"), (200, {"Content-Type": "text/html"}, "x"),
                (200, {}, "[]"), (200, {}, '{"choices": []}'), (200, {}, "null")):  # fmt: skip
        address, told = endpoint(
            lambda headers, count, bad=bad: bad if count % 2 else (200, {}, said("[[C]]"))
        )
        assert ask(tmp_path, address) == [{"verdict": "tie", "consistent": True}], bad
        assert len(told) == 4


def test_proxies_are_those_of_the_environment(
    endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    proxy, told = endpoint(lambda headers, count: (200, {}, said("[[C]]")))
    monkeypatch.setenv("HTTP_PROXY", proxy.removesuffix("/v1"))
    assert ask(tmp_path, "http://judge.invalid/v1") == [{"verdict": "tie", "consistent": True}]
    assert [path for path, _, _ in told] == ["http://judge.invalid/v1/chat/completions"] * 2


@pytest.mark.parametrize("key", ["s3cret-key\n", "s3cret key", "s3cret\u2026key"])
def test_what_is_no_key_is_said_without_saying_it(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(UserError, match="api_key_env = 'JUDGE_KEY': .* holds a space") as error:
        judge_key(judge("http://x", "m", api_key_env="JUDGE_KEY"))
    assert "s3cret" not in str(error.value)


@pytest.mark.slow
def test_the_client_library_is_imported_by_a_judge_alone() -> None:
    """No module imports it at its head, outside of what type checkers read."""
    root = Path(endpoint_module.__file__).parents[2]
    heads = {
        name
        for package in ("sparsepo", "evaluation", "pipelines")
        for file in (root / package).rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or node.names[0].name]
    }
    assert "tqdm" in heads and not {name for name in heads if name.split(".")[0] == "openai"}
