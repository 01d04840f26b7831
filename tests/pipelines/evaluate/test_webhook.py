"""What a webhook is told, and who is not."""

import itertools
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_server import Answer, serving

import pipelines.evaluate.webhook as webhook
from pipelines.errors import UserError
from pipelines.recipe.schema import ScheduleSection

MESSAGE = {"run_dir": "runs/mine", "step": 4, "failures": []}
SECRET = "hook-s3cret-9d1c"


def told(address: str) -> str:
    """`tell` without its waits."""
    return webhook.tell(f"{address}/hook?token={SECRET}", MESSAGE, lambda seconds: None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_redirect_is_said_and_not_followed(status: int, host: str) -> None:
    """Neither message nor address arrives elsewhere, and the question is not repeated."""
    with serving({"*": (200, {}, b"")}) as elsewhere:
        to = {"Location": f"http://me:pw@{host}:{elsewhere.port}/x?again={SECRET}"}
        with serving({"*": (status, to, b"")}) as named:
            reason = told(f"http://127.0.0.1:{named.port}")
        assert elsewhere.heard == [] and len(named.heard) == 1
    assert reason == (
        f"the webhook at 127.0.0.1 was not told: it redirects to {host} ({status}), which is not "
        "followed; name that address"
    )


@pytest.mark.parametrize("location", ["", "http://[x/", "//", "http://h:port/"])
def test_a_redirect_to_nowhere_is_one_line(location: str) -> None:
    with serving({"*": (302, {"Location": location}, b"")}) as named:
        reason = told(f"http://127.0.0.1:{named.port}")
    assert reason.startswith("the webhook at 127.0.0.1 was not told: ") and "\n" not in reason


@pytest.mark.parametrize(("status", "times"), [(204, 1), (404, 1), (429, 3), (503, 3)])
def test_what_may_pass_is_tried_again(status: int, times: int) -> None:
    with serving({"*": (status, {}, b"")}) as named:
        reason = told(f"http://127.0.0.1:{named.port}")
    assert len(named.heard) == times
    assert json.dumps(MESSAGE) in named.heard[0]
    failed = f"the webhook at 127.0.0.1 was not told: status {status}"
    assert reason == ("" if status == 204 else failed)


def test_an_answer_without_end_is_not_read() -> None:
    def endless() -> Iterator[bytes]:
        for _ in itertools.count():
            time.sleep(0.01)
            yield b"x" * 1000

    with serving({"*": (200, {}, endless())}) as named:
        start = time.monotonic()
        assert told(f"http://127.0.0.1:{named.port}") == ""
        assert time.monotonic() - start < 5


def test_who_does_not_answer_is_waited_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "_TIMEOUT_SECONDS", 0.05)

    class Slow(dict[str, Answer]):
        def get(self, *_: object) -> None:
            time.sleep(0.5)

    with serving(Slow({"*": (200, {}, b"")})) as named:
        assert told(f"http://127.0.0.1:{named.port}").endswith("was not told: ReadTimeout")
    with serving({"*": (200, {}, b"")}) as gone:
        pass
    assert told(f"http://127.0.0.1:{gone.port}").endswith("was not told: ConnectError")


def test_no_header_is_taken_from_the_users_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A .netrc may name the host; the address stands in no log either."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password planted-7f3a9c\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    caplog.set_level(logging.DEBUG)
    with serving({"*": (200, {}, b"")}) as named:
        assert told(f"http://127.0.0.1:{named.port}") == ""
    assert "authorization" not in named.heard[0].lower()
    assert SECRET in named.heard[0] and SECRET not in caplog.text


@pytest.mark.parametrize(
    "address", ["hook", "http://", "ftp://host/x", "http://[x/", "http://host:99999/x", ""]
)
def test_what_is_no_address_is_refused_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", address)
    with pytest.raises(UserError, match=r"schedule.webhook_env = 'HOOK'(: this env| holds no add)"):
        webhook.webhook_address(ScheduleSection(webhook_env="HOOK"))
    if address.startswith("http://"):
        with pytest.raises(UserError, match="schedule.webhook holds no address: write https://"):
            webhook.webhook_address(ScheduleSection(webhook=address))
