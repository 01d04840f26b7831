"""Mirrors of the training metrics.

They are TensorBoard, Weights & Biases, MLflow, and Ray's gauges for Prometheus. Our own JSON lines
(metrics.py) are the record; these are views of it.
"""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.recipe import BOARD
from pipelines.storage import RunStore, digest
from pipelines.train.facts import TrainingFacts
from pipelines.train.tracker_checks import no_place_for_mlflow, not_installed

_GAUGES = {
    "loss": "Training loss of the last step",
    "rewards/margins": "Implicit reward margin of the last step",
    "rewards/accuracies": "Share of pairs whose chosen response has the higher implicit reward",
    "kl/reference_policy": "KL(reference || policy) per response, nats",
    "tokens_per_second": "Training throughput of all workers",
    "mfu": "Model FLOP utilisation of all workers",
    "memory_gib": "Peak memory of rank 0, GiB",
    "step": "Optimizer steps done",
}


class Tracker(ABC):
    """One mirror; used by rank 0 alone."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step."""

    @abstractmethod
    def close(self) -> None:
        """Flush what is pending."""

    def save(self) -> None:  # noqa: B027 - most keep everything as it comes
        """Make what was logged so far outlive this process; called with every checkpoint."""


class TensorBoard(Tracker):
    """Event files in RUN/train/tensorboard.

    An object store gets them with every checkpoint, since they grow.
    """

    def __init__(self, store: RunStore, resume_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._store = store
        self._folder = (
            store.local_path(BOARD)
            if store.is_local
            else Path(tempfile.mkdtemp(prefix="sparsepo-board-"))
        )
        self._board = SummaryWriter(str(self._folder), purge_step=resume_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._board.add_scalar(key, value, step)

    def save(self) -> None:
        if not self._store.is_local:
            self._board.flush()
            for file in self._folder.iterdir():
                self._store.write_bytes(f"{BOARD}/{file.name}", file.read_bytes())

    def close(self) -> None:
        self._board.close()
        self.save()


class WeightsAndBiases(Tracker):
    """One run per run directory, resumed under the same id.

    Offline unless the environment says otherwise and holds a key.
    """

    def __init__(self, facts: TrainingFacts, store: RunStore) -> None:
        try:
            import wandb
        except ImportError as error:
            raise not_installed("wandb") from error
        if not os.environ.get("WANDB_MODE") and not os.environ.get("WANDB_API_KEY"):
            os.environ["WANDB_MODE"] = "offline"
        try:
            self._run: Any = wandb.init(
                project=facts.train.tracker_project,
                group=facts.train.tracker_group,
                name=facts.run_dir.rstrip("/").rsplit("/", 1)[-1],
                id=digest(facts.run_dir)[:12],
                resume="allow",
                config=facts.settings,
                dir=str(store.local_path()) if store.is_local else None,
                settings=wandb.Settings(silent=True),
            )
        except (wandb.errors.Error, OSError) as error:
            raise UserError(
                f"train.trackers names wandb, which refuses: {str(error).splitlines()[0]}; "
                "WANDB_MODE=offline needs no login"
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow(Tracker):
    """One run per run directory, found again by its tag.

    It is in RUN/train/mlruns unless MLFLOW_TRACKING_URI names a server.
    """

    def __init__(self, facts: TrainingFacts, store: RunStore) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise not_installed("mlflow") from error
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            if not store.is_local:
                raise no_place_for_mlflow()
            # A plain directory needs no server and no database; MLflow wants to be told that this
            # is meant.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = store.local_path("mlruns").as_uri()
        self._mlflow: Any = mlflow
        try:
            mlflow.set_tracking_uri(uri)
            mlflow.set_experiment(facts.train.tracker_project)
            tag = digest(facts.run_dir)[:12]
            group = {"group": facts.train.tracker_group} if facts.train.tracker_group else {}
            found = mlflow.search_runs(
                filter_string=f"tags.sparsepo_run = '{tag}'", output_format="list"
            )
            if found:
                mlflow.start_run(run_id=found[0].info.run_id)
            else:
                mlflow.start_run(
                    run_name=facts.run_dir.rstrip("/").rsplit("/", 1)[-1],
                    tags={"sparsepo_run": tag, **group},
                )
                mlflow.log_dict(facts.settings, "recipe.json")
        except (mlflow.exceptions.MlflowException, OSError) as error:
            raise UserError(
                f"train.trackers names mlflow at {uri}, which refuses: {str(error).splitlines()[0]}"
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class RayGauges(Tracker):
    """Gauges sparsepo_train_* with the tag run.

    Ray exports them to Prometheus when its metrics collection is on.
    """

    def __init__(self, facts: TrainingFacts) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {
            key: Gauge(
                f"sparsepo_train_{key.replace('/', '_')}", description=text, tag_keys=("run",)
            )
            for key, text in _GAUGES.items()
        }
        self._tags = {"run": facts.run_dir}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, gauge in self._gauges.items():
            value = step if key == "step" else values.get(key)
            if value is not None:
                gauge.set(value, tags=self._tags)

    def close(self) -> None:
        pass


def build_trackers(facts: TrainingFacts, store: RunStore, resume_step: int) -> list[Tracker]:
    """The trackers that are asked for, and Ray's gauges inside a Ray worker.

    UserError for one that is not installed or refuses.
    """
    import ray

    found: list[Tracker] = []
    for name in dict.fromkeys(facts.train.trackers):
        if name == "tensorboard":
            found.append(TensorBoard(store, resume_step))
        elif name == "wandb":
            found.append(WeightsAndBiases(facts, store))
        elif name == "mlflow":
            found.append(MLflow(facts, store))
    if ray.is_initialized():
        found.append(RayGauges(facts))
    return found
