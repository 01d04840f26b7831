"""The cluster's token and a job's package go to the dashboard that was named, and to no other."""

import json
from pathlib import Path

import pytest
from web_server import Answer, serving

from pipelines.cluster.jobs import Cluster, Job
from pipelines.errors import UserError

TOKEN = "c1u5ter-token-8d2f"
VERSION: Answer = (200, {}, json.dumps({"ray_version": "9.0.0"}).encode())
LOGIN = b"<!doctype html><title>Sign in</title>"


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
        with serving(answers, token=TOKEN if when != "without the token" else "") as dashboard:
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
        serving({"*": (200, {}, LOGIN)}, token=TOKEN) as other,
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
        with serving(answers, token=TOKEN) as dashboard:
            cluster = Cluster(f"http://127.0.0.1:{dashboard.port}", print)

            async def read() -> None:
                async for _ in cluster._client.tail_job_logs("a"):
                    pass

            with pytest.raises(Exception, match="200"):  # aiohttp's: no web socket there
                asyncio.run(read())
        assert elsewhere.heard and not any(TOKEN in text for text in elsewhere.heard)


def test_a_netrc_takes_no_tokens_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file names every host; requests, which Ray's client uses, would send what it says."""
    (tmp_path / ".netrc").write_text("default login me password planted-7f3a9c\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    answers: dict[str, Answer] = {"*": (200, {}, b"[]"), "/api/version": VERSION}
    with serving(answers, token=TOKEN) as dashboard:
        assert Cluster(f"http://127.0.0.1:{dashboard.port}", print).jobs() == []
    for text in dashboard.heard[1:]:
        assert f"Authorization: Bearer {TOKEN}" in text and "Basic" not in text
    assert len(dashboard.heard) >= 3 and "Authorization" not in dashboard.heard[0]
    answers["/api/jobs/"] = (200, {}, b"[]")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(answers) as dashboard:
        Cluster(f"http://127.0.0.1:{dashboard.port}", print).jobs()
    assert not any("Authorization" in text for text in dashboard.heard)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a\x00b", "tokén".encode(), b"two\nlines"])
def test_a_damaged_file_of_the_token_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / "token").write_bytes(content)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with (
        serving({"*": (200, {}, b"[]")}) as dashboard,
        pytest.raises(UserError, match="token is damaged: it holds no token; put the cluster's"),
    ):
        Cluster(f"http://127.0.0.1:{dashboard.port}", print)
    assert dashboard.heard == []
