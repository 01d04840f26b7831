"""What trainings of any objective and mask read, made once."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from feature_world import World, make_world
from runs import MakeRecipe


@pytest.fixture(scope="session")
def world(
    rows: list[dict[str, str]],
    model_dir: Path,
    recipe_in: MakeRecipe,
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    """Pairs with scores and weights, two scorers, and one store of every feature."""
    return make_world(tmp_path_factory.mktemp("world"), rows, model_dir, recipe_in)


@pytest.fixture(scope="session")
def another_machine(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], AbstractContextManager[None]]:
    """Nothing that torch compiled is known, but what its compiler made of the same source."""
    import compiled_code

    binaries = tmp_path_factory.mktemp("binaries")
    return lambda: compiled_code.another_machine(binaries)
