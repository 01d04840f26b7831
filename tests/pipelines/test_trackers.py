"""The mirrors of the training log: what the libraries themselves read back equals our JSON lines."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.config import Recipe
from pipelines.errors import UserError
from pipelines.placement import Placement
from pipelines.run import run_stages
from pipelines.store import RunStore
from pipelines.train_metrics import read_metrics
from pipelines.trainer import Trainer

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeRecipe = Callable[..., Recipe]


def trained(recipe: Recipe) -> list[dict[str, float]]:
    run_stages(recipe, ("prepare", "reference"), lambda line: None)
    Trainer(recipe, Placement.choose("auto", torch.device("cpu"), 0, 1), 1).run(lambda metrics: None)
    return [r for r in read_metrics(RunStore(f"{recipe.run_dir}/train")) if "kind" not in r]


def test_mlflow_and_wandb_hold_what_the_log_holds(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both without a server: MLflow into a directory of the run, Weights & Biases offline."""
    import mlflow

    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    recipe = make_recipe("train.max_steps=3", "train.trackers=[tensorboard,wandb,mlflow]", "train.tracker_project=unit")
    records = trained(recipe)
    folder = Path(recipe.run_dir) / "train"
    client = mlflow.MlflowClient((folder / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("unit").experiment_id])
    assert [m.value for m in client.get_metric_history(run.info.run_id, "loss")] == [r["loss"] for r in records]
    assert run.info.status == "FINISHED"
    assert list(folder.glob("wandb/offline-run-*/*.wandb")), "the offline run can be uploaded later"
    assert list((folder / "tensorboard").iterdir())


@pytest.mark.parametrize(("tracker", "cure"), [("wandb", "pip install wandb"), ("mlflow", "pip install mlflow-skinny")])
def test_a_tracker_that_is_not_installed_is_named(
    tracker: str, cure: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(UserError, match=f"train.trackers names {tracker}, which is not installed: {cure}"):
        trained(make_recipe("train.max_steps=1", f"train.trackers=[{tracker}]"))


def test_a_tracker_that_is_none_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match=r"train.trackers.* = 'comet': input should be 'tensorboard', 'wandb' or 'mlflow'"):
        make_recipe("train.trackers=[comet]")
