"""kill -9 while the reference is scored: of an actor, of a node.

The store is the one of an uninterrupted run, byte for byte.

The driver's death is in test_kill.py.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from processes import started_as, wait_for_end, wait_while_it_goes_on
from ray_tables import living_actors
from runs import MakeRecipe, run_here
from stores import files_below

from pipelines.commands.stages import PREPARE, REFERENCE
from pipelines.recipe.files import write_yaml
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
SHARDS = 15
# Many small shards and batches, so that there are moments between them to die in.
OPTIONS = (
    "objective.name=tdpo1",
    "data.shard_pairs=8",
    "data.test_fraction=0",
    "reference.batch_tokens=48",
    "reference.num_actors=2",
)


def files(recipe: Recipe) -> dict[str, bytes]:
    return files_below(Path(recipe.run_dir) / "reference", "*.parquet")


@pytest.fixture(scope="module")
def whole(
    recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> Recipe:
    recipe = recipe_in(tmp_path_factory.mktemp("whole") / "run", *OPTIONS)
    run_here(recipe, (PREPARE, REFERENCE))
    assert len(files(recipe)) == 2 * SHARDS
    return recipe


def scored(recipe: Recipe) -> int:
    """Shards that are complete in every feature."""
    return len(list((Path(recipe.run_dir) / "reference").glob("shards/reference_logps/*.json")))


def wait_for(recipe: Recipe, shards: int) -> None:
    wait_while_it_goes_on(lambda: scored(recipe) >= shards, lambda: scored(recipe), 0.01)


def test_killed_actors_change_nothing(whole: Recipe, recipe_in: MakeRecipe, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path / "run", *OPTIONS, paths={"pairs": f"{whole.run_dir}/pairs"})
    outcome: list[Any] = []
    thread = threading.Thread(
        target=lambda: outcome.append(REFERENCE.run(Run(recipe), print, True))
    )
    thread.start()
    for point in (1, 9):
        wait_for(recipe, point)
        alive = [a for a in living_actors() if "_Worker" in a.class_name and a.is_running]
        assert scored(recipe) < SHARDS, "the stage is still at work"
        os.kill(alive[0].pid, signal.SIGKILL)
    wait_while_it_goes_on(lambda: not thread.is_alive(), lambda: scored(recipe))
    assert outcome and outcome[0]["counts"]["failed"] == {}
    assert files(recipe) == files(whole)


NODES = """
import sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from pipelines.cluster.actor_pool import quieten_ray_data
from pipelines.recipe.files import load_recipe
from pipelines.recipe.stage import Run
from pipelines.reference.stage import REFERENCE

recipe = load_recipe(sys.argv[1])
markers = Path(recipe.run_dir) / "reference" / "shards" / "reference_logps"
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
node = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
outcome = []
thread = threading.Thread(target=lambda: outcome.append(REFERENCE.run(Run(recipe), print, True)))
thread.start()
while len(list(markers.glob("*.json"))) < int(sys.argv[2]):
    time.sleep(0.01)
cluster.remove_node(node, allow_graceful=False)
print("killed a node at", len(list(markers.glob("*.json"))), "shards", flush=True)
cluster.add_node(num_cpus=1)
thread.join()
print("failed rows:", outcome[0]["counts"]["failed"], flush=True)
ray.shutdown()
cluster.shutdown()
"""


def test_a_killed_node_changes_nothing(
    whole: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """Two nodes of one CPU and an actor each; the second dies and is replaced."""
    recipe = recipe_in(tmp_path / "run", *OPTIONS, paths={"pairs": f"{whole.run_dir}/pairs"})
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "RAY_API_SERVER"))
    } | {
        "RAY_TMPDIR": "/tmp/ray",
        "RAY_AUTH_MODE": "disabled",
    }
    command = [sys.executable, "-c", NODES, str(tmp_path / "recipe.yaml"), "4"]
    log = tmp_path / "log"
    with started_as(command, log, environment) as process:
        code = wait_for_end(process, lambda: scored(recipe))
    said = log.read_text()
    assert code == 0, said[-3000:]
    (point,) = [int(line.split()[4]) for line in said.splitlines() if line.startswith("killed")]
    assert point < SHARDS, said
    assert "failed rows: {}" in said
    assert files(recipe) == files(whole)
    assert Run(recipe).record(REFERENCE).is_complete()
