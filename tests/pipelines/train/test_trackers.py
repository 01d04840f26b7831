"""The mirrors of the training log: what the libraries themselves read back equals our JSON
lines.
"""

import os
import socket
import sys
import time
from pathlib import Path

import pytest
from checkout import ROOT
from processes import ended
from runs import MakeRecipe, trainer_of

from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, REFERENCE
from pipelines.errors import UserError
from pipelines.recipe.schema import Recipe
from pipelines.storage.store import RunStore
from pipelines.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("ray_cluster")


def trained(recipe: Recipe) -> list[dict[str, float]]:
    run_stages(recipe, (PREPARE, REFERENCE), lambda line: None)
    trainer_of(recipe).run(lambda metrics: None)
    return [r for r in read_metrics(RunStore(f"{recipe.run_dir}/train")) if "kind" not in r]


@pytest.mark.slow
def test_mlflow_and_wandb_hold_what_the_log_holds(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both without a server: MLflow into a directory of the run, Weights & Biases offline."""
    import mlflow

    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    recipe = make_recipe(
        "train.max_steps=3",
        "train.trackers=[tensorboard,wandb,mlflow]",
        "train.tracker_project=unit",
        "train.tracker_group=several",
    )
    records = trained(recipe)
    folder = Path(recipe.run_dir) / "train"
    client = mlflow.MlflowClient((folder / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("unit").experiment_id])
    assert [m.value for m in client.get_metric_history(run.info.run_id, "loss")] == [
        r["loss"] for r in records
    ]
    assert run.info.status == "FINISHED"
    assert run.data.tags["group"] == "several"
    (offline,) = folder.glob("wandb/offline-run-*/*.wandb")
    # The run's group, as in a sweep; it can be uploaded later. A process of wandb's own writes it.
    limit = time.monotonic() + 120
    while b"several" not in offline.read_bytes():
        assert time.monotonic() < limit, offline.read_bytes()[:100]
        time.sleep(0.1)
    assert list((folder / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("tracker", "cure"), [("wandb", "pip install wandb"), ("mlflow", "pip install mlflow-skinny")]
)
def test_a_tracker_that_is_not_installed_is_named(
    tracker: str, cure: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(
        UserError, match=f"train.trackers names {tracker}, which is not installed: {cure}"
    ):
        trained(make_recipe("train.max_steps=1", f"train.trackers=[{tracker}]"))


def test_a_tracker_that_is_none_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(
        UserError,
        match=r"train.trackers.* = 'comet': input should be 'tensorboard', 'wandb' or 'mlflow'",
    ):
        make_recipe("train.trackers=[comet]")


SCRAPE = """
import sys, time, urllib.request
import ray
from pipelines.recipe.files import validate_recipe
from pipelines.train.trackers import RayGauges
port = int(sys.argv[1])
options = {"log_to_driver": False, "include_dashboard": False}
ray.init("local", num_cpus=1, _metrics_export_port=port, **options)
model, data = {"name_or_path": "m"}, {"sources": [{"path": "p"}]}
recipe = validate_recipe({"run_dir": "runs/one", "model": model, "data": data})
gauges = RayGauges(recipe)
limit = time.monotonic() + 60
while time.monotonic() < limit:
    gauges.log(7, {"loss": 0.25, "rewards/margins": -1.5, "grad_norm": 3.0})
    time.sleep(1)
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    shown = [line for line in page.splitlines() if not line.startswith("#")]
    lines = [line for line in shown if "sparsepo_train" in line]
    if len(lines) >= 3:
        print("\\n".join(lines))
        break
"""


@pytest.mark.slow
def test_prometheus_finds_the_gauges() -> None:
    """A Ray of its own with metrics collection on, scraped over HTTP: step, loss and margin of
    the run; nothing that is no gauge.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "RAY_enable_metrics_collection": "1"
    }
    done = ended([sys.executable, "-c", SCRAPE, str(port)], environment, ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {
        line.split("{")[0].removeprefix("ray_"): (line, float(line.split()[-1]))
        for line in done.stdout.splitlines()
    }
    assert {name: value for name, (_, value) in found.items()} == {
        "sparsepo_train_step": 7.0,
        "sparsepo_train_loss": 0.25,
        "sparsepo_train_rewards_margins": -1.5,
    }
    assert all('runs/one"' in line for line, _ in found.values())
