"""Forecasts of storage and cost, and disks that are full or closed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import ROOT
from matrices import members
from runs import MakeRecipe
from small_disk import needs_root, small_disk
from stores import store_files

from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.stages import REFERENCE
from pipelines.errors import UserError
from pipelines.pairs.table import open_pairs
from pipelines.recipe.run_paths import RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.actor import ShardScorer, ShardTask
from pipelines.reference.cost import settle_mode
from pipelines.reference.scoring import scoring_facts

pytestmark = pytest.mark.usefixtures("ray_cluster")
KL = ("objective.name=tdpo1",)
CPU = "cpu"


FORECASTS = {
    "logps": (),
    "kl": KL,
    "topk": (*KL, "reference.topk=32"),
    "mapo": ("objective.name=mapo", "mask.kind=activation"),
    "layers": ("objective.name=sparsepo", "mask.kind=learned", "reference.mode=stored"),
    "int8": (
        "objective.name=sparsepo",
        "mask.kind=learned",
        "reference.mode=stored",
        "reference.layers_dtype=int8",
    ),
    "rpo": ("objective.name=rpo", "objective.beta=1"),
}


@pytest.mark.parametrize("case", members(FORECASTS, ("mapo", "int8")))
def test_the_storage_forecast_is_within_five_percent(
    case: str, scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """The forecast of `plan` against the bytes of the files that the scoring actor (here, in
    this process) then writes.
    """
    recipe = recipe_in(
        tmp_path / "run", *FORECASTS[case], paths={"pairs": f"{scored.run_dir}/pairs"}
    )
    forecast = run_plan(recipe)["reference"]["storage_bytes"]
    features = tuple(sorted(recipe.stored_features()))
    scorer = ShardScorer(scoring_facts(Run(recipe), Run(recipe).record(REFERENCE), features))
    pairs = open_pairs(Run(recipe))
    for split in ("train", "test"):
        for number in range(pairs.num_shards(split)):
            assert scorer(ShardTask(split, number, features)).failed == {}
    written = sum(len(data) for data in store_files(recipe).values())
    print(case, forecast, written)
    assert forecast == pytest.approx(written, rel=0.05)


def test_auto_takes_the_cheaper_of_stored_and_online(recipe_in: MakeRecipe, tmp_path: Path) -> None:
    """States of all layers: one pass is cheapest online; repeated passes pay for the disk on a
    slow device, not on a fast one.
    """
    base = ("objective.name=sparsepo", "mask.kind=learned", "mask.architecture=simple_all")
    gpu = "cuda"
    once, often = (recipe_in(tmp_path, *base, f"train.epochs={epochs}") for epochs in (1, 50))
    assert settle_mode(once, CPU).reference.mode == "online"
    assert settle_mode(often, CPU).reference.mode == "stored"
    assert settle_mode(once, CPU, trials=50).reference.mode == "stored", (
        "a sweep scores once for all trials"
    )
    assert settle_mode(often, gpu).reference.mode == "online"
    assert (
        settle_mode(
            recipe_in(tmp_path, *base, "train.epochs=50", "reference.mode=online"), CPU
        ).reference.mode
        == "online"
    )
    assert settle_mode(recipe_in(tmp_path, *KL), CPU).reference_mode() == "stored"


@pytest.fixture
def on_a_small_disk(scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path) -> Iterator[Recipe]:
    """The same run on a disk of three quarters of its store."""
    size = int(0.75 * Run(scored).record(REFERENCE).manifest()["counts"]["bytes"])
    with small_disk(tmp_path / "disk", size) as disk:
        yield recipe_in(disk, *KL, paths={"pairs": f"{scored.run_dir}/pairs"})


def on_disk(recipe: Recipe, pattern: str) -> int:
    return len(list(Path(recipe.run_dir, "reference").rglob(pattern)))


@needs_root
def test_a_store_that_does_not_fit_is_refused_before_scoring(on_a_small_disk: Recipe) -> None:
    for act in (
        lambda: run_plan(on_a_small_disk),
        lambda: run_stages(on_a_small_disk, (REFERENCE,), print, quiet=True),
    ):
        with pytest.raises(UserError, match="the reference store needs 0.00 GiB more") as error:
            act()
        assert "\n" not in str(error.value)
    assert not RunPaths.of(on_a_small_disk).reference.exists("started.json")
    assert on_disk(on_a_small_disk, "shards/*/*.json") == on_disk(on_a_small_disk, ".tmp-*") == 0


@needs_root
def test_a_disk_that_fills_up_ends_in_one_line_and_keeps_what_was_written(
    on_a_small_disk: Recipe,
) -> None:
    """As the actor meets it, here in this process."""
    run = Run(on_a_small_disk)
    features = tuple(sorted(run.recipe.stored_features()))
    scorer = ShardScorer(scoring_facts(run, run.record(REFERENCE), features))
    pairs = open_pairs(run)
    shards = [(split, i) for split in ("train", "test") for i in range(pairs.num_shards(split))]

    def score_all() -> None:
        for split, number in shards:
            scorer(ShardTask(split, number, features))

    end = "No space left on device; what was published before is kept$"
    with pytest.raises(UserError, match=end) as error:
        score_all()
    assert "\n" not in str(error.value)
    assert 0 < on_disk(run.recipe, "shards/*/*.json") < len(features) * len(shards)
    assert on_disk(run.recipe, ".tmp-*") == 0


WRITE_AS_NOBODY = """
import os, sys
import pyarrow.fs  # while this user may still read it
from pipelines.errors import UserError
from pipelines.storage.store import RunStore
os.setgid(65534); os.setuid(65534)
try:
    RunStore(sys.argv[1]).write_bytes("file", b"x")
except UserError as error:
    print("refused:", error)
"""


@needs_root
def test_a_directory_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    locked = Path("/tmp") / f"sparsepo-locked-{os.getpid()}"
    locked.mkdir(mode=0o755)
    try:
        done = subprocess.run(
            [sys.executable, "-c", WRITE_AS_NOBODY, str(locked)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
        )
    finally:
        locked.rmdir()
    assert done.stdout == f"refused: cannot write {locked}/file: Permission denied\n", done.stderr
