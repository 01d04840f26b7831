"""Scheduled evaluation: each checkpoint once across kills and overlapping schedulers; gates,
their exit code and the webhook.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from by_hand import unsealed
from processes import kill, started, wait_for, wait_for_end
from runs import MakeRecipe, run_here

from pipelines.commands.cli import main
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, TRAIN
from pipelines.errors import UserError
from pipelines.evaluate.history import read_history
from pipelines.evaluate.schedule import Scheduler
from pipelines.models.fingerprints import weights_fingerprint
from pipelines.recipe.files import load_recipe, validate_recipe
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.claims import Claims, ClaimTimes
from pipelines.storage.store import RunStore

STEPS = [2, 4, 6]
QUICK = ClaimTimes(renew=0.2, abandoned=3.0, settle=0.2)


@pytest.fixture(scope="module")
def trained(
    recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> Path:
    """A finished training with three checkpoints; tests work on copies."""
    folder = tmp_path_factory.mktemp("schedule") / "run"
    recipe = recipe_in(
        folder,
        "train.max_steps=6",
        "train.keep_checkpoints=10",
        "evaluate.benchmarks=[preference, sentiment]",
        "evaluate.num_prompts=8",
        "ray.num_cpus=2",
    )
    run_here(recipe, (PREPARE, REFERENCE, TRAIN))
    return folder


@pytest.fixture(scope="module")
def published(trained: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """The evaluation of the model that the training published."""
    run = copy_of(trained, tmp_path_factory.mktemp("published") / "run")
    run_here(recipe_of(run), (EVALUATE,))
    return run / "evaluation"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return copy_of(trained, tmp_path / "run")


def copy_of(run: Path, there: Path) -> Path:
    shutil.copytree(run, there)
    config = there / "config.yaml"
    config.write_text(config.read_text().replace(str(run), str(there)))
    return there


def recipe_of(run: Path, **schedule: Any) -> Recipe:
    mapping = yaml.safe_load((run / "config.yaml").read_text())
    return validate_recipe({**mapping, "schedule": {**mapping["schedule"], **schedule}})


def command(run: Path, *options: str) -> list[str]:
    return ["schedule", str(run / "config.yaml"), "--once", *options]


def events(run: Path) -> list[dict[str, Any]]:
    """Those that are there; another process may be writing the next one."""
    store = RunStore(str(run / "evaluation" / "schedule" / "events"))
    return [json.loads(store.read_bytes(name)) for name in store.names()]


def finished(run: Path) -> Counter[int]:
    return Counter(event["step"] for event in events(run) if event["event"] == "finished")


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook's address, and what it was told."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook?token=s3cret", told
        server.shutdown()


@pytest.mark.slow
def test_every_checkpoint_is_evaluated_once_across_a_kill_and_two_schedulers(
    run: Path, tmp_path: Path, ray_environment: dict[str, str]
) -> None:
    """One scheduler is killed in the middle of its second evaluation; then one goes on, and
    another, in this process, looks while it evaluates. Three checkpoints, three evaluations, three
    rows.
    """
    options = ("evaluate.benchmarks=[preference]", "ray.cpus_per_run=1")
    given = command(run, *options, "--quiet")
    logs = [tmp_path / name for name in ("first", "second")]

    def begun() -> int:
        return sum(event["event"] == "started" for event in events(run))

    with started(given, logs[0], ray_environment) as first:
        wait_for(begun, 2, first, logs[0])
        kill(first)
    assert finished(run) == {2: 1}
    assert (run / "evaluation" / "claims" / "step-00000004.json").is_file(), (
        "the dead one's claim is still there"
    )
    said: list[str] = []
    recipe = load_recipe(str(run / "config.yaml"), options)
    with started(given, logs[1], ray_environment) as one:
        wait_for(begun, 3, one, logs[1])
        other = Scheduler(Run(recipe), lambda: None, said.append, quiet=True).tick()
        assert wait_for_end(one, lambda: len(events(run))) == 0, logs[1].read_text()
    assert other.evaluated == [6], "the second checkpoint was being evaluated"
    assert finished(run) == {2: 1, 4: 1, 6: 1}
    assert [row["step"] for row in read_history(RunStore(str(run / "evaluation")))] == STEPS
    assert Counter(e["step"] for e in events(run) if e["event"] == "started") == {2: 1, 4: 2, 6: 1}
    assert not list((run / "evaluation" / "claims").glob("*.json"))
    said.clear()
    assert scheduler_of(run, said).tick().evaluated == [] and said == ["schedule: nothing new"]
    assert finished(run) == {2: 1, 4: 1, 6: 1}


@pytest.mark.slow
def test_a_planted_regression_trips_the_gate_and_the_webhook(
    run: Path,
    published: Path,
    receiver: tuple[str, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The release is this run with its numbers raised; every drop beyond the allowance fails: exit
    code 3, one call, the address in no output or file.
    """
    address, told = receiver
    for step in STEPS[:2]:
        shutil.rmtree(run / "train" / "checkpoints" / f"step-{step:08d}")
    release = run.parent / "release"
    shutil.copytree(published, release / "evaluation")
    manifest = unsealed(release / "evaluation" / "manifest.json")
    manifest["counts"]["results"]["preference"]["accuracy/implicit_reward"]["mean"] += 0.5
    (release / "evaluation" / "manifest.json").write_text(json.dumps(manifest))
    gates = [
        {"metric": "preference/accuracy/implicit_reward", "max_drop": 0.1},
        {"metric": "sentiment/kl/policy_reference", "max": 1e9},
    ]
    options = [
        f"schedule.release={release}",
        f"schedule.gates={json.dumps(gates)}",
        "schedule.webhook_env=HOOK",
    ]
    monkeypatch.setenv("HOOK", address)
    kept = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(command(run, *options))
    signal.signal(signal.SIGTERM, kept)
    out, error = capfd.readouterr()
    assert ended.value.code == 3, error[-3000:]
    assert "error: preference/accuracy/implicit_reward = " in error
    assert "below the release's" in error
    assert [body["step"] for body in told] == [6]
    assert told[0]["failures"][0]["metric"] == "preference/accuracy/implicit_reward"
    assert "s3cret" not in out + error
    assert not [f for f in run.rglob("*.json") if "s3cret" in f.read_text()]
    assert (
        json.loads(
            (run / "evaluation" / "checkpoints" / "step-00000006" / "gates.json").read_text()
        )["passed"]
        is False
    )


def scheduler_of(run: Path, said: list[str], **schedule: Any) -> Scheduler:
    return Scheduler(
        Run(recipe_of(run, **schedule)), lambda: None, said.append, quiet=True, times=QUICK
    )


def test_missed_times_are_made_up_for_once(run: Path, published: Path, ray_cluster: None) -> None:
    """The last look was an hour ago and the times are every minute: one tick at once, not sixty; it
    ends because training has finished.
    The numbers of the last checkpoint are those of the published model.
    """
    (run / "evaluation" / "schedule").mkdir(parents=True)
    hour_ago = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - 3600))
    (run / "evaluation" / "schedule" / "state.json").write_text(json.dumps({"last_tick": hour_ago}))
    said: list[str] = []
    started = time.monotonic()
    outcome = scheduler_of(run, said, cron="* * * * *", timezone="Europe/Berlin").run(
        keeps_going=False, until_trained=True
    )
    assert outcome.evaluated == STEPS and not outcome.failures
    assert time.monotonic() - started < 58
    assert sum("made up for now" in line for line in said) == 1
    rows = read_history(RunStore(str(run / "evaluation")))
    (model,) = read_history(RunStore(str(published)))
    assert model["step"] is None
    for key in (
        "preference/accuracy/implicit_reward",
        "preference/kl/reference_policy",
        "sentiment/reward/after",
        "sentiment/kl/policy_reference",
    ):
        assert rows[-1][key] == pytest.approx(model[key], rel=1e-5), key
    assert len({row["preference/kl/reference_policy"] for row in rows}) == 3

    # Killed between an evaluation and its gates: the next look judges, and evaluates nothing again.
    fourth = run / "evaluation" / "checkpoints" / "step-00000004"
    (fourth / "gates.json").unlink()
    written = (fourth / "manifest.json").stat().st_mtime_ns
    outcome = scheduler_of(
        run, said, gates=[{"metric": "preference/accuracy/implicit_reward", "min": 2.0}]
    ).tick()
    assert outcome.evaluated == [4] and len(outcome.failures) == 1
    assert (fourth / "manifest.json").stat().st_mtime_ns == written


def test_without_a_missed_time_the_first_look_waits(run: Path) -> None:
    """Nothing is due before the next minute: a stop ends the wait at once and nothing was
    evaluated.
    """
    said: list[str] = []
    scheduler = scheduler_of(run, said, cron="0 0 1 1 *")
    threading.Timer(0.5, scheduler.stop).start()
    started = time.monotonic()
    assert scheduler.run(keeps_going=False, until_trained=False).evaluated == []
    assert time.monotonic() - started < 5 and not said


def test_a_checkpoint_removed_midway_is_left_out(
    run: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    """Step 4's weights vanish while its evaluation begins: said and left out, the others are
    evaluated, no row for it.
    """
    said: list[str] = []
    scheduler = scheduler_of(run, said)
    event = scheduler._event

    def removing(step: int, what: str) -> None:
        event(step, what)
        if (step, what) == (4, "started"):
            shutil.rmtree(run / "train" / "checkpoints" / "step-00000004")

    monkeypatch.setattr(scheduler, "_event", removing)
    assert scheduler.tick().evaluated == [2, 6]
    assert any("step 4: its checkpoint was removed" in line for line in said)
    assert [row["step"] for row in read_history(RunStore(str(run / "evaluation")))] == [2, 6]
    assert not (run / "evaluation" / "checkpoints" / "step-00000004").exists()


def test_what_is_damaged_is_left_out_or_refused(run: Path) -> None:
    """Before Ray starts: a checkpoint by the scheduler, the published model, its configuration
    and who starts from it.
    """
    said: list[str] = []
    for step in STEPS:
        folder = run / "train" / "checkpoints" / f"step-{step:08d}"
        flip(folder / "state.json" if step == 6 else next(folder.glob("shard-*")))
    scheduler = scheduler_of(run, said)
    assert scheduler.tick().evaluated == [] and scheduler.is_finished()
    assert [line.split(":")[0] for line in said[:3]] == ["step 2", "step 4", "step 6"]
    assert all("is damaged" in line and line.endswith("; left out") for line in said[:3])
    recipe = recipe_of(run)
    for name in ("model.safetensors", "config.json"):
        flip(run / "train" / "model" / name)
        with pytest.raises(
            UserError,
            match=f"train/model/{name} is missing or damaged: it is not what training published; "
            "remove",
        ):
            EVALUATE.run(Run(recipe), print, False)
        if name == "model.safetensors":
            with pytest.raises(
                UserError,
                match="train/model: model.safetensors is damaged: it is not what training "
                "published",
            ):
                weights_fingerprint(run / "train" / "model")
        flip(run / "train" / "model" / name)
    assert weights_fingerprint(run / "train" / "model")


def flip(path: Path) -> None:
    """One bit in the middle."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


@pytest.mark.slow
def test_claims_are_had_by_one_and_pass_on_when_abandoned(tmp_path: Path) -> None:
    """Eight at once: one holds.

    A fresh claim of another machine is respected, one not renewed for long is taken over; a dead
    process's at once.
    """
    store = RunStore(str(tmp_path))
    held: list[int] = []
    barrier = threading.Barrier(8)

    def try_it(number: int) -> None:
        claims = Claims(store, QUICK)
        barrier.wait()
        with claims.holding("x") as is_mine:
            if is_mine:
                held.append(number)
                time.sleep(1.0)

    threads = [threading.Thread(target=try_it, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    elsewhere = {
        "holder": "z",
        "host": "another-machine",
        "pid": 1,
        "boot": "1",
        "time": time.time(),
    }
    store.write_json("claims/y.json", elsewhere)
    with Claims(store, QUICK).holding("y") as is_mine:
        assert not is_mine
    os.utime(store.local_path("claims/y.json"), (time.time() - 10,) * 2)
    with Claims(store, QUICK).holding("y") as is_mine:
        assert is_mine
        assert store.read_json("claims/y.json")["holder"] != "z"
    assert not store.exists("claims/y.json")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = Claims(store, QUICK)
    store.write_json(
        "claims/w.json", {**mine.me, "holder": "d", "pid": dead.pid, "time": time.time()}
    )
    with mine.holding("w") as is_mine:
        assert is_mine


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"cron": "61 * * * *"}, "schedule.cron = '61 \\* \\* \\* \\*'"),
        (
            {"cron": "* * * * *", "timezone": "Mars/Base"},
            "schedule.timezone = 'Mars/Base': no such time zone",
        ),
        ({"release": "/nowhere"}, "schedule.release = '/nowhere': holds no finished evaluation"),
        ({"webhook_env": "NO_SUCH_VARIABLE"}, "schedule.webhook_env = 'NO_SUCH_VARIABLE'"),
    ],
)
def test_settings_are_checked_before_anything_is_evaluated(
    run: Path, schedule: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        scheduler_of(run, [], **schedule)
