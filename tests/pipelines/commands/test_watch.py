"""The server of `watch`: who is let in, what is told, and that it is told once."""

import http.client
import json
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import ObjectStore
from runs import MakeRecipe

from pipelines.commands.cli import main
from pipelines.commands.watch import Pages
from pipelines.commands.watch_server import Address, serving
from pipelines.commands.watched import Pace, held_out
from pipelines.recipe.files import write_yaml
from pipelines.recipe.record import StageRecord
from pipelines.recipe.run_paths import METRICS
from pipelines.storage.presence import present
from pipelines.storage.store import RunStore
from pipelines.sweep.trial_record import Trial, write_trial
from pipelines.train.metrics import MetricsWriter

Get = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture(autouse=True)
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request looks; how often it would is a test of its own."""
    monkeypatch.setattr(Pace, "is_due", lambda self: True)


def begin(root: str, stage: str, **settings: Any) -> StageRecord:
    record = StageRecord(stage, RunStore(root), settings, {})
    record.begin()
    return record


def start_training(run: str, config: str) -> MetricsWriter:
    """What a run has once its training writes."""
    RunStore(run).write_bytes("config.yaml", config.encode())
    begin(f"{run}/train", "train")
    return MetricsWriter(RunStore(f"{run}/train"), 0, [], lambda: True)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def config(make_recipe: MakeRecipe) -> str:
    return write_yaml(make_recipe("train.epochs=5"))


@pytest.fixture
def address(run: str) -> Iterator[Address]:
    with serving(Pages(run).answer) as found:
        yield found


@pytest.fixture
def get(address: Address) -> Get:
    """GET of a path below the secret, or of a whole one; headers replace what is sent else."""

    def ask(
        path: str = "", whole: str | None = None, hosts: list[str] | None = None, host: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(host or "127.0.0.1", address.port, timeout=30)
        target = f"/{address.door.secret}/{path}" if whole is None else whole
        connection.putrequest("GET", target, skip_host=True)
        for value in [f"127.0.0.1:{address.port}"] if hosts is None else hosts:
            connection.putheader("Host", value)
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    return ask


def data(get: Get, query: str = "", place: str = "") -> dict[str, Any]:
    status, _, body = get(f"{place}data?{query}")
    assert status == 200
    told: dict[str, Any] = json.loads(body)
    return told


def test_the_secret_lets_in_and_nothing_else_does(get: Get, address: Address) -> None:
    secret = address.door.secret
    assert len(secret) >= 43, "256 bits"
    assert get()[0] == 200 and get("charts.js")[0] == 200
    assert get(whole=f"/{secret}")[:2][0] == 303
    for wrong in (
        "/", "", "/data", "//", "/[", f"/{secret[:-1]}/", f"/{secret}x/", f"/{secret.lower()}/",
        f"/x/{secret}/", f"/?token={secret}", f"/{secrets.token_urlsafe(32)}/data", "/%C3%A9/",
        f"http://127.0.0.1/{secret}/", "*",
    ):  # fmt: skip
        status, headers, body = get(whole=wrong)
        assert status == 403, wrong
        assert secret.encode() not in body and "Location" not in headers
    assert get("nothing")[0] == 404


@pytest.mark.parametrize(
    "hosts",
    [
        [], ["example.org"], ["127.0.0.1.example.org"], ["localhost.example.org:80"],
        ["127.0.0.1", "127.0.0.1"], ["127.0.0.1@example.org"], ["[::1].example.org"], [""],
        ["10.0.0.1"], ["[::2]"], ["127.0.0.1:80:80"], ["localhost/"],
    ],
)  # fmt: skip
def test_another_name_is_refused_even_with_the_secret(get: Get, hosts: list[str]) -> None:
    """A page of another site can make its own name lead here; the browser then sends that name."""
    status, _, body = get(hosts=hosts)
    assert status == 403 and b"<html" not in body


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_this_machine_by_any_of_its_names_and_through_a_tunnel(get: Get, name: str) -> None:
    assert get(hosts=[f"{name}:9999"])[0] == 200
    assert get(hosts=[name])[0] == 200


def listening(port: int) -> set[str]:
    """The addresses that listen at a port, as the kernel has them."""
    found = set()
    for table, size in (("tcp", 8), ("tcp6", 32)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            place, state = line.split()[1], line.split()[3]
            if state == "0A" and int(place.split(":")[1], 16) == port:
                words = bytes.fromhex(place[:size])
                parts = [words[at : at + 4][::-1] for at in range(0, len(words), 4)]
                family = socket.AF_INET if size == 8 else socket.AF_INET6
                found.add(socket.inet_ntop(family, b"".join(parts)))
    return found


def test_it_listens_on_loopback_alone(address: Address, get: Get) -> None:
    found = listening(address.port)
    assert found and found <= {"127.0.0.1", "::1"}
    if "::1" in found:
        assert get(host="::1", hosts=[f"[::1]:{address.port}"])[0] == 200


def test_a_ticket_opens_once(get: Get, address: Address) -> None:
    """Other users read the command line of a browser that is started."""
    ticket = address.opening().rpartition("/")[2]
    assert ticket != address.door.secret
    status, headers, _ = get(whole=f"/{ticket}")
    assert (status, headers["Location"]) == (303, f"/{address.door.secret}/")
    assert get(whole=f"/{ticket}")[0] == 403


def test_other_methods_are_not_taken_and_a_head_has_no_body(address: Address) -> None:
    for method, status in (("POST", 501), ("DELETE", 501), ("OPTIONS", 501), ("HEAD", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=30)
        connection.request(method, f"/{address.door.secret}/")
        answer = connection.getresponse()
        assert (answer.status, method != "HEAD" or answer.read() == b"") == (status, True)
        connection.close()


def test_what_is_sent_may_load_nothing_from_elsewhere(get: Get) -> None:
    _, headers, body = get()
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "http" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert b"http:" not in body and b"https:" not in body
    assert "Python" not in headers["Server"]


def test_a_run_that_is_not_there_is_waited_for(get: Get, run: str, config: str) -> None:
    told = data(get)
    assert told["state"]["headline"].startswith(f"Waiting: {run}: no run here")
    assert not told["state"]["is_there"] and told["rest"]["groups"] == []
    start_training(run, config).add({"step": 1, "loss": 0.7})
    assert data(get)["state"]["is_there"]


def test_what_is_new_is_told_and_no_more(get: Get, run: str, config: str) -> None:
    metrics = start_training(run, config)
    metrics.add_apart({"step": 0, "kind": "validation", "validation/loss": 0.7})
    for step in range(1, 4):
        metrics.add({"step": step, "loss": 1 / step, "grad_norm": 1.0})
    metrics.flush()
    first = data(get)
    assert first["curves"]["train"]["steps"] == [1, 2, 3]
    assert first["curves"]["train"]["values"]["loss"] == [1.0, 0.5, 0.333333]
    assert first["curves"]["validation"]["values"] == {"validation/loss": [0.7]}
    names = "&".join(f"{part}={first[part]['digest']}" for part in ("state", "rest"))
    query = f"epoch={first['epoch']}&train=3&validation=1&{names}"
    again = data(get, query)
    assert again["curves"]["train"]["steps"] == []
    assert not {"state", "rest"} & again.keys()
    metrics.add({"step": 4, "loss": 0.25})
    metrics.flush()
    news = data(get, query)
    assert (news["curves"]["train"]["from"], news["curves"]["train"]["to"]) == (3, 4)
    assert news["curves"]["train"]["values"] == {"loss": [0.25]}
    whole = data(get, f"epoch={first['epoch'] + 1}&train=3")
    assert whole["curves"]["train"]["steps"] == [1, 2, 3, 4], "of another epoch nothing is known"
    for strange in ("train=-1", "train=1e9", "train=99", f"train={'9' * 30}", "train=&&&=%00"):
        told = data(get, f"epoch={first['epoch']}&{strange}")["curves"]["train"]["steps"]
        assert told == [1, 2, 3, 4]


def test_a_damaged_part_is_one_line_and_a_run_that_ended_says_so(
    get: Get, run: str, config: str
) -> None:
    metrics = start_training(run, config)
    metrics.add({"step": 1, "loss": 1.0})
    metrics.checkpoint()
    metrics.add({"step": 2, "loss": 0.5})
    metrics.close()
    store = RunStore(f"{run}/train")
    (name, _) = store.names(METRICS)
    store.write_bytes(f"{METRICS}/{name}", b"{")
    with present(store, stage="train"):
        told = data(get)
    assert told["state"]["headline"].startswith("train: ")
    (line,) = told["state"]["damage"]
    assert name in line and told["curves"]["train"]["steps"] == [2]
    assert data(get)["state"]["headline"] == "train: stopped: no process works on it"


ASKED: dict[str, Any] = {
    "data": {"validation_fraction": 0.1},
    "train": {"validate_every": 5, "checkpoint_every": 50},
    "mask": {"kind": "learned"},
    "evaluate": {"benchmarks": ["sentiment", "masks"]},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"data": {}}, ["data.validation_fraction"]),
        ({"train": {"checkpoint_every": 50}}, ["train.validate_every"]),
        ({"mask": {"kind": "none"}}, ["mask.kind = none"]),
        ({"evaluate": {"benchmarks": ["masks"]}}, ["draws no samples: sentiment, dialogue"]),
        ({"evaluate": {"benchmarks": ["sentiment"]}}, ["keeps no token weights: preference"]),
    ],
)
def test_what_is_not_there_is_said_with_the_key_that_brings_it(
    tmp_path: Path, change: dict[str, Any], said: list[str]
) -> None:
    place = RunStore(str(tmp_path))
    begin(place.root, "evaluate").finish({})
    shown = held_out({**ASKED, **change}, "run/config.yaml", "x", place)
    assert len(shown["absent"]) == len(said)
    assert all(part in line for part, line in zip(said, shown["absent"], strict=True))
    (line,) = held_out(ASKED, "run/config.yaml", "", None)["absent"]
    assert "sparsepo schedule run/config.yaml --cron" in line and "= 50" in line


def test_samples_and_weights_of_the_newest_evaluation(
    get: Get, run: str, make_recipe: MakeRecipe
) -> None:
    """A checkpoint's until the published model is evaluated; a reward of NaN is null."""
    mask = ("objective.name=mapo", "mask.kind=activation")
    start_training(run, write_yaml(make_recipe(*mask)))
    for folder, text in (
        ("checkpoints/step-00000004", "of 4"), ("checkpoints/step-00000010", "of 10"), ("", "last"),
    ):  # fmt: skip
        store = RunStore(f"{run}/evaluation/{folder}".rstrip("/"))
        lines = [{"prompt": text, "start_reward": float("nan")}] * 30
        tokens = [{"side": "chosen", "tokens": ["<b>"], "reward_mask": [0.5]}]
        for path, found in (("samples/samples.jsonl", lines), ("samples/tokens.jsonl", tokens)):
            store.write_bytes(path, "".join(json.dumps(line) + "\n" for line in found).encode())
        begin(store.root, "evaluate").finish({"benchmarks": ["sentiment"]})
        shown = data(get)["rest"]["held_out"]
        assert shown["samples"][0] == {"prompt": text, "start_reward": None}
        assert len(shown["samples"]) == 8 and shown["responses"] == tokens
        assert shown["of"].endswith(text.split()[-1] if folder else "published model")


@pytest.fixture
def sweep(tmp_path: Path, run: str, config: str) -> dict[str, MetricsWriter]:
    """A sweep of a beta in place of the run: one trial ended, one trains, one has two seeds."""
    begin(run, "tune", space={"objective.beta": {"grid": [0.1, 0.5]}, "recipe": {}})
    writers = {}
    for path in ("0000-aa", "0001-bb", "0002-cc/seed-0", "0002-cc/seed-1"):
        writers[path] = start_training(f"{run}/trials/{path}", config)
        writers[path].add({"step": 1, "loss": 1.0 + len(writers)})
        writers[path].flush()
    ended = RunStore(f"{run}/trials/0000-aa")
    trial = Trial(number=0, point={"objective.beta": 0.5}, run_dir=ended.root, status="finished")
    write_trial(ended, trial)
    return writers


def test_a_sweep_tells_what_changed_of_its_trials(
    get: Get, sweep: dict[str, MetricsWriter]
) -> None:
    told = data(get, "metric=loss")
    assert told["kind"] == "sweep"
    rows = {row["number"]: row for row in told["rows"]}
    assert [rows[n]["state"] for n in range(3)] == ["finished", "stopped", "stopped"]
    assert rows[0]["point"] == {"objective.beta": "0.5"} and rows[1]["point"] == {
        "objective.beta": "0.1",
        "recipe": "(dpo)",
    }, "of one that runs by its own recipe"
    assert rows[2]["runs"] == ["trials/0002-cc/seed-0", "trials/0002-cc/seed-1"]
    curves = {curve["label"]: curve for curve in told["curves"]}
    assert curves.keys() == {"trial 0", "trial 1", "trial 2, seed 0", "trial 2, seed 1"}
    assert (curves["trial 1"]["x"], curves["trial 1"]["y"]) == ([1], [3.0])
    query = f"metric=loss&since={told['version']}&rest={told['rest']}"
    assert data(get, query)["curves"] == [] and "rows" not in data(get, query)
    sweep["0001-bb"].add({"step": 2, "loss": 0.5})
    sweep["0001-bb"].flush()
    (changed,) = data(get, query)["curves"]
    assert (changed["label"], changed["y"]) == ("trial 1", [3.0, 0.5])
    assert data(get, "metric=grad_norm")["curves"][0]["y"] == []


@pytest.mark.slow
def test_each_trial_has_its_page_and_no_other_folder_has(
    get: Get, sweep: dict[str, MetricsWriter], run: str, config: str
) -> None:
    assert data(get, place="run/trials/0002-cc/seed-1/")["kind"] == "run"
    assert b"live.js" in get("run/trials/0001-bb/")[2]
    start_training(f"{Path(run).parent}/other", config)
    for path in ("../other", "trials", "trials/../../other", "/etc", "trials/0009-zz", ""):
        assert get(f"run/{path}/data")[0] == get(f"run/{path}/")[0] == 404, path


def test_what_is_there_decides_which_page_is_shown(get: Get, run: str, config: str) -> None:
    assert data(get)["kind"] == "run" and b"live.js" in get()[2]
    begin(run, "tune", space={})
    assert data(get)["kind"] == "sweep" and b"live_sweep.js" in get()[2]


def test_a_damaged_start_of_a_sweep_is_a_line(get: Get, run: str) -> None:
    RunStore(run).write_bytes("started.json", b"{")
    assert "started.json is damaged" in data(get)["state"]["headline"]


def test_a_port_that_is_taken_is_one_line(
    run: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["watch", run, "--port", str(port)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --port {port}: cannot listen there (address already in use")


def test_the_port_that_was_asked_for_is_taken(run: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(Pages(run).answer, port) as found:
        assert found.port == port and f":{port}/" in found.url
    with serving(Pages(run).answer, port) as again:
        assert again.door.secret != found.door.secret


@pytest.mark.parametrize("place", ["s3://bucket/x?region=y", "x" * 300])
def test_a_place_that_can_hold_no_run_is_one_line(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["watch", place])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    server = ObjectStore()
    yield server
    server.stop()


@pytest.mark.slow
def test_a_run_on_an_object_store_is_read_once(object_store: ObjectStore, config: str) -> None:
    """Twelve parts; a look without news asks for the list of parts and for nothing of them."""
    from pipelines.train.follow import MetricsFollower

    metrics = start_training("s3://bucket/watched", config)
    for step in range(1, 13):
        metrics.add({"step": step, "loss": 1 / step})
        metrics.checkpoint()
    pages = Pages("s3://bucket/watched")
    answer = pages.answer("data", {})
    assert answer is not None
    assert len(json.loads(answer.content)["curves"]["train"]["steps"]) == 12
    follower = MetricsFollower(RunStore("s3://bucket/watched/train"))
    before = object_store.requests
    follower.look()
    first = object_store.requests - before
    follower.look()
    assert object_store.requests - before - first < 8 < 12 <= first
    metrics.add({"step": 13, "loss": 0.0})
    metrics.close()
    assert follower.look().curves["train"].last_step == 13


@pytest.mark.parametrize(
    ("root", "waits"), [("s3://bucket/run", [1.0, 30.0, 60.0]), ("run", [1.0, 2.0, 2.0])]
)
def test_a_look_that_takes_long_is_rarer(
    monkeypatch: pytest.MonkeyPatch, root: str, waits: list[float]
) -> None:
    """A tenth of the time is spent looking, between a second and a minute; a local disk that is
    slow is a machine that is busy, and is looked at every two seconds.
    """
    monkeypatch.undo()
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    pace = Pace(RunStore(root))
    assert pace.is_due()
    for took, wait in zip((0.01, 3.0, 90.0), waits, strict=True):
        with pace.looking():
            clock[0] += took
        assert pace.seconds == pytest.approx(wait)
        clock[0] += wait - 0.01
        assert not pace.is_due()
        clock[0] += 0.02
        assert pace.is_due()
