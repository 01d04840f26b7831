"""Work on a machine that does not see the run, as one that joins after the run asked the others:
one line, and nothing written.
"""

from pathlib import Path

import pytest
from runs import MakeRecipe, run_here

from pipelines.cluster.shared_paths import local_paths
from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
from pipelines.errors import UserError
from pipelines.pairs import prepare as prepare
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference import scoring as reference
from pipelines.train import fit as train

LINE = (
    "run_dir = /not/mounted/here: the machine .* does not see it: put it on a disk that every "
    "machine mounts"
)


def unseen(recipe: Recipe) -> dict[str, str]:
    return {**local_paths(recipe), "run_dir": "/not/mounted/here"}


@pytest.mark.actors
@pytest.mark.slow
def test_workers_that_do_not_see_the_run_say_so_and_write_nothing(
    make_recipe: MakeRecipe, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(
        "objective.name=tdpo1", "train.max_steps=2", "train.max_failures=0", "train.num_workers=1"
    )
    run = Path(recipe.run_dir)
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "local_paths", unseen)
        with pytest.raises(UserError, match=LINE):
            PREPARE.run(Run(recipe), print, True)
    assert sorted(file.name for file in run.rglob("*") if file.is_file()) == ["started.json"]
    assert local_paths(recipe)["run_dir"] == str(run)
    PREPARE.run(Run(recipe), print, True)
    with monkeypatch.context() as patched:
        patched.setattr(reference, "local_paths", unseen)
        with pytest.raises(UserError, match=LINE):
            REFERENCE.run(Run(recipe), print, True)
    assert sorted(file.name for file in (run / "reference").rglob("*") if file.is_file()) == [
        "started.json"
    ]
    run_here(recipe, (REFERENCE,))
    with monkeypatch.context() as patched:
        patched.setattr(train, "local_paths", unseen)
        with pytest.raises(UserError, match=f"^{LINE}"):
            TRAIN.run(Run(recipe), print, True)
