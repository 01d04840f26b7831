"""What `run` refuses, `plan` refuses: every bad input of the suite (tests/support/bad_inputs), in
one line, with exit code 2, with nothing written and no Ray started.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import yaml
from bad_inputs import BAD, World
from matrices import members
from runs import MakeRecipe, tiny_recipe

from pipelines.commands.cli import main
from pipelines.errors import UserError

Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, model_dir: Path, pairs_file: Path, capfd: pytest.CaptureFixture[str]
) -> Refused:
    """refused(override, ...) -> what plan and run say of the tiny recipe with these overrides.

    A relative path of the recipe starts where the recipe lies.
    """
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run", model_dir, pairs_file)))

    def said(command: str, *overrides: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([command, str(file), *overrides])
        out, error = capfd.readouterr()
        assert (ended.value.code, out) == (2, ""), error
        line, *more = error.splitlines()
        assert line.startswith("error: ") and not more, error
        return line.removeprefix("error: ")

    def by_both(*overrides: str) -> str:
        before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
        was_there = ray.is_initialized()
        line = said("plan", *overrides)
        assert said("run", *overrides) == line
        assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert ray.is_initialized() == was_there
        return line

    return by_both


# They import the harness.
SLOW = {"no such task of the harness"}


@pytest.mark.parametrize("case", members(BAD, BAD.keys() - SLOW))
def test_plan_and_run_refuse_the_same(
    case: str, refused: Refused, tmp_path: Path, model_dir: Path
) -> None:
    options, *parts = BAD[case]
    if callable(options):
        options = options(World(tmp_path, model_dir))
    line = refused(*options)
    assert [part for part in parts if part not in line] == [], line


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed(
    tracker: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    part = f"train.trackers names {tracker}, which is not installed: pip install {tracker}"
    assert part in refused(f"train.trackers=[tensorboard,{tracker}]")


def test_a_stage_alone_asks_nothing_of_the_machines_of_others(make_recipe: MakeRecipe) -> None:
    """Pairs may be prepared where nothing could be trained."""
    from pipelines.commands.run import check_before
    from pipelines.commands.stages import PREPARE, TRAIN
    from pipelines.recipe.stage import Run

    recipe = make_recipe("train.num_workers=64", "ray.num_cpus=2")
    check_before(Run(recipe), (PREPARE,))
    with pytest.raises(UserError, match="train.num_workers = 64 x 1 CPUs: the cluster has 2"):
        check_before(Run(recipe), (TRAIN,))
