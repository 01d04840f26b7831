"""Finished runs that are exported; tests that change one work on a copy."""

from collections.abc import Callable
from pathlib import Path

import pytest
from runs import MakeRecipe, run_here

from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
from pipelines.export.export import Wanted, run_export
from pipelines.recipe.schema import Recipe

Export = Callable[..., Path]


@pytest.fixture(scope="session")
def activation_run(
    recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> Recipe:
    """MaPO, whose weights the reference stage has stored."""
    recipe = recipe_in(
        tmp_path_factory.mktemp("activation") / "run", "objective.name=mapo",
        "mask.kind=activation", "mask.hooks=mlp", "reference.mode=stored", "train.max_steps=2",
    )  # fmt: skip
    run_here(recipe, (PREPARE, REFERENCE, TRAIN))
    return recipe


@pytest.fixture
def exported(tmp_path: Path) -> Export:
    """exported(recipe, said, name="export", push=...) -> the directory of its export."""

    def make(
        recipe: Recipe, said: list[str] | None = None, name: str = "export", **more: object
    ) -> Path:
        wanted = Wanted(to=str(tmp_path / name), **more)  # type: ignore[arg-type]
        return Path(run_export(recipe.run_dir, wanted, (said if said is not None else []).append))

    return make
