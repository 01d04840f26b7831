"""Actors' work in the test's own process, unless a test is about actors; a finished reference store
that tests share.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_executor import LocalExecutor
from runs import MakeRecipe, run_here

from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, TRAIN
from pipelines.recipe.schema import Recipe

KL = ("objective.name=tdpo1",)
LEARNED = (
    "objective.name=sparsepo", "mask.kind=learned", "mask.architecture=simple_last",
    "reference.mode=online", "train.max_steps=3", "evaluate.benchmarks=[preference]",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _where_actors_work(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray's actors for a test with the mark `actors`; this process for all others."""
    if request.node.get_closest_marker("actors"):
        yield
        return
    with executed_by(LocalExecutor()):
        yield


@pytest.fixture(scope="session")
def scored(
    recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> Recipe:
    """A finished store with exact KL; tests that change files work on a copy."""
    recipe = recipe_in(tmp_path_factory.mktemp("scored") / "run", *KL)
    run_here(recipe, (PREPARE, REFERENCE))
    return recipe


@pytest.fixture
def copied(scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path) -> Recipe:
    shutil.copytree(scored.run_dir, tmp_path / "run")
    return recipe_in(tmp_path / "run", *KL)


@pytest.fixture(scope="session")
def learned_run(
    recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> Recipe:
    """Whole weights, learned masks and an evaluation."""
    recipe = recipe_in(tmp_path_factory.mktemp("learned") / "run", *LEARNED)
    run_here(recipe, (PREPARE, TRAIN, EVALUATE))
    return recipe


@pytest.fixture(scope="session")
def adapter_run(
    recipe_in: MakeRecipe, scored: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    """An adapter, on pairs and a reference that lie elsewhere."""
    paths = {"pairs": f"{scored.run_dir}/pairs", "reference": f"{scored.run_dir}/reference"}
    recipe = recipe_in(
        tmp_path_factory.mktemp("adapter") / "run", "objective.name=tdpo1", "train.max_steps=4",
        "train.learning_rate=0.02", "train.lora={rank: 4, target_modules: all-linear}", paths=paths,
    )  # fmt: skip
    run_here(recipe, (PREPARE, REFERENCE, TRAIN))
    return recipe
