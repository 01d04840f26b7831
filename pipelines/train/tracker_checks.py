"""Whether the trackers that a recipe names can be used, before anything is trained."""

import importlib.util
import os

from pipelines.cluster import cluster_address
from pipelines.errors import UserError
from pipelines.recipe import Recipe, RunPaths

# Tracker -> what to install; its module has the tracker's name.
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}


def check_trackers(recipe: Recipe) -> None:
    """UserError for a tracker that is not installed here, or that has nowhere to write.

    Machines of a cluster have variables of their own: MLFLOW_TRACKING_URI is looked for on this one
    alone where it is the one that trains.
    """
    for name in recipe.train.trackers:
        if name in _PACKAGES and importlib.util.find_spec(name) is None:
            raise not_installed(name)
    if (
        "mlflow" in recipe.train.trackers
        and cluster_address(recipe.ray) is None
        and not RunPaths.of(recipe).train.is_local
        and not os.environ.get("MLFLOW_TRACKING_URI")
    ):
        raise no_place_for_mlflow()


def not_installed(name: str) -> UserError:
    return UserError(
        f"train.trackers names {name}, which is not installed: pip install {_PACKAGES[name]}"
    )


def no_place_for_mlflow() -> UserError:
    return UserError(
        "train.trackers names mlflow, and run_dir is no local path: set MLFLOW_TRACKING_URI"
    )
