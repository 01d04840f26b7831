"""The driver killed while it scores, and interrupted while it trains, then the same command: the
same bytes, the same weights.

kill -9 while training is in test_training_failures.py, of a sweep's driver in test_sweep_kills.py.
"""

import os
import shlex
import signal
import time
from pathlib import Path

import psutil
import pytest
from processes import kill, started, wait_for, wait_for_end
from runs import MakeRecipe, run_here, trainer_of
from safetensors.torch import load_file
from stores import files_below

from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
from pipelines.recipe.files import write_yaml
from pipelines.recipe.schema import Recipe

pytestmark = pytest.mark.slow
OPTIONS = (
    "objective.name=sparsepo",
    "mask.kind=learned",
    "mask.architecture=simple_last",
    "train.epochs=6",
    "train.max_steps=40",
    "train.checkpoint_every=1",
    "data.shard_pairs=8",
    "data.test_fraction=0",
    "ray.num_cpus=2",
    "train.cpus_per_worker=1",
)


@pytest.fixture(scope="module")
def whole(
    recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> Recipe:
    """Pairs and a store that nobody interrupted."""
    recipe = recipe_in(tmp_path_factory.mktemp("whole") / "run", *OPTIONS)
    run_here(recipe, (PREPARE, REFERENCE))
    return recipe


def written(recipe: Recipe, folder: Path) -> list[str]:
    """Arguments of a command for a recipe: its file, no bars."""
    file = folder / "recipe.yaml"
    file.write_text(write_yaml(recipe))
    return [str(file), "--quiet"]


def files(run_dir: str) -> dict[str, bytes]:
    return files_below(Path(run_dir) / "reference", "*.parquet")


def tensors(run_dir: str) -> dict[str, bytes]:
    found = {}
    for file in ("model/model.safetensors", "masks/masks.safetensors"):
        found |= {
            f"{file}:{k}": v.numpy().tobytes()
            for k, v in load_file(Path(run_dir) / "train" / file).items()
        }
    return found


def still_running(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that have not ended by then; one that only its parent has to look at has."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    limit = time.monotonic() + seconds
    while (left := [p for p in processes if runs(p)]) and time.monotonic() < limit:
        time.sleep(0.1)
    return left


def test_a_store_goes_on_after_its_driver_and_the_drivers_ray_have_died(
    whole: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """A Ray of its own dies with it: nothing is left that could still write (its agents look for it
    once in a minute); another process makes the rest.
    """
    paths = {"pairs": f"{whole.run_dir}/pairs"}
    recipe = recipe_in(tmp_path / "run", *OPTIONS, paths=paths)
    reference, log = tmp_path / "run" / "reference", tmp_path / "log"

    def shards() -> int:
        return len(list(reference.glob("shards/*/*.json")))

    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with started(["reference", *written(recipe, tmp_path)], log, own) as process:
        wait_for(shards, 9, process, log)  # of two features of fifteen shards
        found = psutil.Process(process.pid).children(recursive=True)
        rays = [p for p in found if not p.name().endswith("Agent")]
        assert any("MapWorker" in p.name() for p in rays), rays
        kill(process)
    assert still_running(rays, seconds=60) == [], "its Ray outlives it"
    assert not (reference / "manifest.json").exists()
    assert shards() < 30, "killed before the last shard"
    run_here(recipe, (REFERENCE,))
    assert files(recipe.run_dir) == files(whole.run_dir)


def test_an_interrupted_driver_ends_with_the_same_weights(
    whole: Recipe, recipe_in: MakeRecipe, tmp_path: Path, ray_environment: dict[str, str]
) -> None:
    """Ctrl-C, then who ends jobs: the run stays resumable, and the last line says how to go on."""
    paths = {"pairs": f"{whole.run_dir}/pairs", "reference": f"{whole.run_dir}/reference"}
    recipe = recipe_in(tmp_path / "run", *OPTIONS, paths=paths)
    train = tmp_path / "run" / "train"

    def newest() -> int:
        found = train.glob("checkpoints/step-*/state.json")
        return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)

    command = ["train", *written(recipe, tmp_path)]
    for ended, code, said in (
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
    ):
        log, before = tmp_path / said, newest()
        with started(command, log, ray_environment) as process:
            wait_for(newest, before + 3, process, log)
            os.kill(process.pid, ended)
            assert wait_for_end(process, newest) == code
        line = f"error: {said}; go on with: {shlex.join(['sparsepo', *command])}"
        assert log.read_text().rstrip().splitlines()[-1] == line
        assert "SIGTERM" not in log.read_text() and "Traceback" not in log.read_text()
        assert not (train / "manifest.json").exists()
    run_here(recipe, (TRAIN,))

    trainer_of(whole).run(lambda metrics: None)
    assert tensors(recipe.run_dir) == tensors(whole.run_dir)
