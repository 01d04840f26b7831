"""The judge against a real server: `transformers serve` with models made on the spot, and
endpoints that are slow, wrong or away.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from text_models import write_constant_judge

from pipelines.errors import StageFailed, UserError
from pipelines.evaluate.judge import EndpointJudge
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
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{address}/health", timeout=2).is_success:
                return process, f"{address}/v1"
        except httpx.HTTPError:
            time.sleep(0.3)
    process.kill()
    raise AssertionError(log.read_text()[-3000:])


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
    kept = store.read_json(f"verdicts/{name}")
    assert len(kept) == 4 and set(kept.values()) == {"A is better: [[A]]"}
    gone = EndpointJudge(judge(*server), store)
    gone._ask = None  # type: ignore[method-assign, assignment] - whoever asks now, fails
    assert gone.compare(PROMPTS, OURS, THEIRS, quiet=True) == found
    store.write_json(
        f"verdicts/{name}",
        {key: "[[B]]" if i == 0 else text for i, (key, text) in enumerate(kept.items())},
    )
    assert [
        f["consistent"]
        for f in EndpointJudge(judge(*server), store).compare(PROMPTS, OURS, THEIRS, quiet=True)
    ].count(True) == 1


def test_nonsense_is_asked_again_and_then_failed(server: tuple[str, str], tmp_path: Path) -> None:
    """Cut before its verdict mark, the same judge says nothing that counts: no wins, and too
    many of those end the stage.
    """
    patient = EndpointJudge(
        judge(*server, max_tokens=2, max_failed_fraction=1.0), RunStore(str(tmp_path))
    )
    asked: list[float] = []
    ask = patient._ask
    patient._ask = lambda client, body: asked.append(body["temperature"]) or ask(client, body)  # type: ignore[method-assign, func-returns-value]
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
        found = EndpointJudge(settings, RunStore(str(tmp_path))).compare(
            PROMPTS, OURS, THEIRS, quiet=True
        )
        assert [f["verdict"] for f in found] == ["failed", "failed"]
    settings = judge(address, "m", max_tries=1)
    with pytest.raises(StageFailed, match="4 of 4 questions .* ConnectError"):
        EndpointJudge(settings, RunStore(str(tmp_path))).compare(PROMPTS, OURS, THEIRS, quiet=True)


def test_the_key_reaches_the_endpoint_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read off the wire by a bare socket; the answer that it gives is kept, the key is not."""
    monkeypatch.setenv("JUDGE_KEY", "s3cret-key")
    import threading

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
