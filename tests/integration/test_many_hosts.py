"""Several hosts that share nothing but the network and an object store: jobs, tokens, dead hosts
and a dead driver, a sweep.

Hosts are namespaces of this machine where the tests run as root (tests/hosts.py).
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from feature_world import write_small_model
from hosts import ISOLATED, Hosts, hosts
from local_executor import LocalExecutor
from object_store import ADDRESS, ObjectStore
from processes import kill, wait_for, wait_for_end, wait_while_it_goes_on
from ranks import Ranks
from runs import MakeRecipe, run_here
from stores import files_below
from transformers import AutoModelForCausalLM

from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.quickstart_world import TRAIN_OPENINGS, continuation, opening
from pipelines.commands.stages import PREPARE, REFERENCE
from pipelines.commands.status import run_status
from pipelines.evaluate.history import read_history
from pipelines.evaluate.schedule import Scheduler
from pipelines.recipe.files import load_recipe, write_yaml
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.stage import check_reference
from pipelines.storage.store import RunStore

pytestmark = pytest.mark.slow
BUCKET = "s3://bucket"
SHARDS, STEPS = 36, 16
LOOKS_SECONDS = 0.2  # between questions to the object store, which is in this process


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    server = ObjectStore()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, object_store: ObjectStore) -> Iterator[Hosts]:
    """A head and two hosts of one CPU each, with tokens."""
    port = ADDRESS.rpartition(":")[2]
    environment = {
        "AWS_ENDPOINT_URL": f"http://GATEWAY:{port}",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody announces these deaths
    }
    with hosts(tmp_path_factory.mktemp("hosts"), 2, environment) as found:
        yield found


@pytest.fixture(scope="module")
def inputs(
    model_dir: Path, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """A small model and pairs on the object store."""
    store, rng = RunStore(BUCKET), random.Random(11)
    small = write_small_model(tmp_path_factory.mktemp("small") / "model", model_dir)
    for file in small.iterdir():
        store.write_bytes(f"model/{file.name}", file.read_bytes())
    rows = [
        {
            "prompt": opening(rng, TRAIN_OPENINGS),
            "chosen": continuation(rng),
            "rejected": continuation(rng),
        }
        for _ in range(SHARDS * 8)
    ]
    store.write_bytes("pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return {"model": f"{BUCKET}/model", "pairs": f"{BUCKET}/pairs.jsonl"}


def recipe_at(run_dir: str, recipe_in: MakeRecipe, inputs: dict[str, str]) -> Recipe:
    """Many small shards and a checkpoint per step, so that there are moments between them to die
    in.
    """
    return recipe_in(
        run_dir,
        f"model.name_or_path={inputs['model']}",
        f"data.sources=[{{path: '{inputs['pairs']}'}}]",
        "data.test_fraction=0.05",
        "data.shard_pairs=8",
        "objective.name=tdpo1",
        "reference.batch_tokens=48",
        "train.num_workers=2",
        "train.cpus_per_worker=1",
        "train.epochs=9",
        f"train.max_steps={STEPS}",
        "train.checkpoint_every=1",
        "train.max_failures=3",
        "evaluate.benchmarks=[preference]",
    )


def command_of(recipe: Recipe, folder: Path) -> list[str]:
    file = folder / "recipe.yaml"
    file.write_text(write_yaml(recipe))
    return ["run", str(file)]


def sparsepo(
    cluster: Hosts, object_store: ObjectStore, *arguments: str, **changed: str
) -> subprocess.CompletedProcess[str]:
    """The command line outside of all hosts, as a user has it on a laptop; waited for as long as
    anybody asks the object store for anything.
    """
    command = [sys.executable, "-m", "pipelines", *arguments]
    environment = {**cluster.environment, "AWS_ENDPOINT_URL": ADDRESS, **changed}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=error)
        try:
            code = wait_for_end(process, lambda: object_store.requests)
        finally:
            if process.poll() is None:
                kill(process)
        said = [stream.seek(0) or stream.read() for stream in (out, error)]
    return subprocess.CompletedProcess(command, code, *said)


def checkpoints(store: RunStore) -> int:
    names = store.names("train/checkpoints")
    return sum(store.exists(f"train/checkpoints/{name}/state.json") for name in names)


def host_of(cluster: Hosts, process_name: str) -> int:
    """A host in which a process of that name runs."""
    for process in psutil.process_iter(["pid", "cmdline"]):
        if process_name in "".join(process.info["cmdline"] or ()):
            number = cluster.host_of(process.info["pid"])
            if number:
                return number
    return 0


def test_wrong_and_missing_tokens_are_refused_in_one_line(
    cluster: Hosts, object_store: ObjectStore, tmp_path: Path
) -> None:
    submit = ("submit", "--address", cluster.address, "status", "/nowhere")
    for changed, message in (
        (
            {"RAY_AUTH_TOKEN_PATH": "", "HOME": str(tmp_path)},
            "wants a token: put the cluster's into ~/.ray/auth_token",
        ),
        ({"RAY_AUTH_TOKEN": "wrong"}, "refuses the token of RAY_AUTH_TOKEN (HTTP status 403)"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, "RAY_AUTH_TOKEN_PATH = "),
    ):
        refused = sparsepo(cluster, object_store, *submit, **changed)
        assert refused.returncode == 2
        assert message in refused.stderr
        assert refused.stderr.count("\n") == 1, refused.stderr


def test_a_run_survives_hosts_and_its_driver(
    cluster: Hosts,
    object_store: ObjectStore,
    inputs: dict[str, str],
    recipe_in: MakeRecipe,
    tmp_path: Path,
    ray_cluster: None,
    ranks: Ranks,
) -> None:
    """One host of two killed while scoring, then the driver; started again elsewhere as a job, one
    host cut off while training. Another comes for each that goes.

    Reference and weights are those of the same recipe on one machine with a disk, bit for bit.
    """
    recipe = recipe_at(f"{BUCKET}/run", recipe_in, inputs)
    store = RunStore(recipe.run_dir)
    (cluster.shared / "recipe.yaml").write_text(write_yaml(recipe))
    first = cluster.command(
        1,
        sys.executable,
        "-m",
        "pipelines",
        "run",
        str(cluster.shared / "recipe.yaml"),
        "ray.address=auto",
    )
    log = tmp_path / "log"
    with log.open("wb") as stream:
        driver = subprocess.Popen(first, env=cluster.environment, stdout=stream, stderr=stream)

    def shards() -> int:
        return len(store.names("reference/shards/reference_logps"))

    wait_for(shards, 4, driver, log, LOOKS_SECONDS)
    cluster.kill_host(2)
    cluster.start_host(3)
    killed_at = shards()
    assert killed_at < SHARDS
    object_store.fail(3)
    wait_for(shards, killed_at + 4, driver, log, LOOKS_SECONDS)
    (inner,) = [
        p for p in psutil.Process(driver.pid).children(recursive=True) if "pipelines" in p.cmdline()
    ] or [psutil.Process(driver.pid)]
    inner.send_signal(signal.SIGKILL)
    driver.wait()
    done_before = len(store.names("reference/shards/reference_logps"))
    assert done_before < SHARDS, "the driver died in the middle"
    cluster.complete(2)

    command = (
        "submit",
        "--address",
        cluster.address,
        "--name",
        "survivor",
        *command_of(recipe, tmp_path),
    )
    submitted = sparsepo(cluster, object_store, *command)
    assert submitted.returncode == 0, submitted.stderr
    assert "submit: survivor on" in submitted.stdout
    assert "survivor runs already" in sparsepo(cluster, object_store, *command).stdout
    wait_while_it_goes_on(lambda: checkpoints(store) >= 1, shards, LOOKS_SECONDS)
    training = host_of(cluster, "ray::RayTrainWorker")
    if ISOLATED:
        assert training in (1, 3)
    cluster.cut_off(training or 3)
    cluster.start_host(4)
    assert not store.exists("train/manifest.json"), "training was not over"
    followed = sparsepo(
        cluster, object_store, "job", "logs", "survivor", "--follow", "--address", cluster.address
    )
    cluster.kill_host(training or 3)
    assert followed.returncode == 0, followed.stdout[-3000:] + followed.stderr
    assert "report: s3://bucket/run/report/index.html" in followed.stdout
    assert "survivor: succeeded" in followed.stderr
    assert {row["state"] for row in run_status(recipe.run_dir)} == {"done"}
    assert check_reference(Run(recipe), quiet=True)[1] == []

    whole = recipe_at(str(tmp_path / "whole"), recipe_in, inputs)
    run_here(whole, (PREPARE, REFERENCE))
    ranks.train(whole)
    with store.as_local_directory("reference") as folder:
        assert files_below(folder, "*.parquet") == files_below(
            Path(whole.run_dir) / "reference", "*.parquet"
        )
    with store.as_local_directory("train/model") as folder:
        assert files_below(folder, "*.safetensors") == files_below(
            Path(whole.run_dir) / "train" / "model", "*.safetensors"
        )
        AutoModelForCausalLM.from_pretrained(folder)
    assert store.at("train").names("tensorboard"), "growing files arrive with the checkpoints"
    with executed_by(LocalExecutor()):
        scheduled = Scheduler(
            Run(load_recipe(f"{recipe.run_dir}/config.yaml")),
            lambda: None,
            lambda line: None,
            quiet=True,
        ).tick()
    assert scheduled.evaluated
    assert read_history(store.at("evaluation"))


@pytest.mark.skipif(not ISOLATED, reason="hosts share their disks without root")
def test_a_local_path_is_refused_with_the_host_that_does_not_see_it(
    cluster: Hosts,
    object_store: ObjectStore,
    inputs: dict[str, str],
    recipe_in: MakeRecipe,
    tmp_path: Path,
) -> None:
    recipe = recipe_at("/tmp/mine", recipe_in, inputs)
    submit = ("submit", "--address", cluster.address, "--follow")
    refused = sparsepo(cluster, object_store, *submit, *command_of(recipe, tmp_path))
    assert refused.returncode == 2
    assert "error: run_dir = /tmp/mine: the machine 10.77." in refused.stdout
    assert "does not see it: put it on a disk that every machine mounts" in refused.stdout
    assert "Traceback" not in refused.stdout


def test_a_sweep_on_two_hosts(
    cluster: Hosts,
    object_store: ObjectStore,
    inputs: dict[str, str],
    recipe_in: MakeRecipe,
    tmp_path: Path,
) -> None:
    """NSGA-II on reward and KL with an evaluation per trial, submitted: all trials end, two at a
    time.
    """
    cluster.complete(2)
    options = (
        "objective.name=mapo",
        "mask.kind=activation",
        "data.validation_fraction=0.2",
        "train.max_steps=2",
        "evaluate.benchmarks=[sentiment]",
    )
    base = tmp_path / "base.yaml"
    named = (
        f"model.name_or_path={inputs['model']}",
        f"data.sources=[{{path: '{inputs['pairs']}'}}]",
    )
    base.write_text(write_yaml(recipe_in("s3://bucket/unused", *options, *named)))
    reward, kl = "evaluation/sentiment/reward/after", "evaluation/sentiment/kl/policy_reference"
    sweep = {
        "run_dir": f"{BUCKET}/sweep",
        "recipe": str(base),
        "space": {
            "objective.beta": {"loguniform": [0.05, 2.0]},
            "mask.keep_fraction": {"uniform": [0.2, 1.0]},
        },
        "objectives": [{"metric": reward}, {"metric": kl, "mode": "min"}],
        "searcher": {"name": "nsga2", "population": 2},
        "num_samples": 2,
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(sweep))
    done = sparsepo(
        cluster, object_store, "submit", "--address", cluster.address, "tune", str(file), "--follow"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "tune: 2 trials, 2 at a time" in done.stdout
    store = RunStore(f"{BUCKET}/sweep")
    trials = store.read_json("trials.json")
    assert [trial["status"] for trial in trials] == ["finished"] * 2
    points = [(trial["metrics"][reward], trial["metrics"][kl]) for trial in trials]
    best = {
        i
        for i, (r, k) in enumerate(points)
        if not any(r2 >= r and k2 <= k and (r2, k2) != (r, k) for r2, k2 in points)
    }
    assert {row["trial"] for row in store.read_json("pareto.json")["front"]} == best
