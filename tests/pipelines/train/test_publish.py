"""The end of a training: its last checkpoint and the published model, written together, and what a
death between them leaves.
"""

import hashlib
from pathlib import Path

import pytest
import torch
from matrices import members
from runs import MakeRecipe, run_here, train_here, trainer_of
from safetensors.torch import load_file
from small_disk import needs_root, small_disk

from pipelines.commands.stages import PREPARE
from pipelines.errors import Superseded, UserError
from pipelines.recipe.run_paths import ATTEMPT, PUBLISHED
from pipelines.recipe.schema import Recipe
from pipelines.storage.store import RunStore
from pipelines.train.checkpoint_contents import read_state, write_state
from pipelines.train.publish import Publication

SPARSE = (
    "objective.name=sparsepo", "mask.kind=learned", "mask.architecture=simple_last",
    "reference.mode=online", "train.checkpoint_every=2", "train.max_steps=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def paths(
    recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> dict[str, str]:
    root = tmp_path_factory.mktemp("pairs")
    found = {"pairs": f"{root}/pairs", "reference": f"{root}/reference"}
    run_here(recipe_in(root / "run", paths=found), (PREPARE,))
    return found


@pytest.fixture
def recipe(recipe_in: MakeRecipe, paths: dict[str, str], tmp_path: Path) -> Recipe:
    return recipe_in(tmp_path / "run", *SPARSE, paths=paths)


def stage(recipe: Recipe) -> Path:
    return Path(recipe.run_dir) / "train"


def shard(recipe: Recipe, step: int) -> dict[str, torch.Tensor]:
    (file,) = (stage(recipe) / "checkpoints" / f"step-{step:08d}").glob("shard-*")
    return load_file(file)


def published(recipe: Recipe) -> dict[str, bytes]:
    """Whose checksums the manifest holds: model, masks, and the metrics."""
    return {
        f"{file.parent.name}/{file.name}": file.read_bytes()
        for folder in ("model", "masks", "metrics")
        for file in sorted((stage(recipe) / folder).iterdir())
        if file.suffix in (".safetensors", ".json", ".jsonl")
    }


def without_metrics(files: dict[str, bytes]) -> dict[str, bytes]:
    """Metrics hold times."""
    return {name: data for name, data in files.items() if not name.startswith("metrics/")}


def test_the_last_checkpoint_has_no_moments_and_the_manifest_the_files_hashes(
    recipe: Recipe,
) -> None:
    """Both hold the same weights, bit for bit; checkpoints before hold two moments and a count."""
    manifest = train_here(recipe)
    files = published(recipe)
    assert {"model/model.safetensors", "model/tokenizer.json"} < files.keys()
    assert any(name.startswith("masks/") for name in files)
    assert manifest["outputs"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    kinds = {name.partition("/")[0] for name in shard(recipe, 3)}
    assert kinds == {"weights"}
    assert {name.partition("/")[0] for name in shard(recipe, 2)} == {
        "weights", "exp_avg", "exp_avg_sq", "step",
    }  # fmt: skip
    weights = load_file(stage(recipe) / "model" / "model.safetensors")
    last = shard(recipe, 3)
    assert all(torch.equal(last[f"weights/causal_lm.{k}"], weights[k]) for k in weights)
    assert not (stage(recipe) / PUBLISHED).exists()
    assert not list(stage(recipe).glob(".tmp-*"))


@pytest.mark.parametrize("left", members(("staged", "checksums", "model"), ("checksums",)))
def test_a_death_while_the_model_is_published_loses_nothing(
    recipe: Recipe,
    recipe_in: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: str,
) -> None:
    """It dies before the first, the second or the third of: checksums, model, masks. The same
    command again takes no step, and leaves the bytes of a run that was never stopped.
    """
    whole = recipe_in(tmp_path / "whole", *SPARSE, paths=recipe.paths.model_dump())
    train_here(whole)
    calls: list[str] = []

    def dies(name: str) -> None:
        calls.append(name)
        if len(calls) == ["staged", "checksums", "model"].index(left) + 1:
            raise InterruptedError

    with monkeypatch.context() as patched:
        write, move = RunStore.write_json, RunStore.publish_directory

        def write_json(self: RunStore, path: str, value: object) -> None:
            if path == PUBLISHED:
                dies(path)
            write(self, path, value)

        def publish_directory(self: RunStore, source: Path, path: str) -> None:
            dies(path)
            move(self, source, path)

        patched.setattr(RunStore, "write_json", write_json)
        patched.setattr(RunStore, "publish_directory", publish_directory)
        with pytest.raises(InterruptedError):
            train_here(recipe)
    assert not (stage(recipe) / "manifest.json").exists()
    trainer = trainer_of(recipe)
    assert trainer.step == 3
    trainer.close()
    manifest = train_here(recipe)
    assert without_metrics(published(recipe)) == without_metrics(published(whole))
    assert manifest["counts"]["steps"] == 3 and len(manifest["outputs"]) == len(published(recipe))


def test_nothing_is_published_before_the_last_checkpoint_is_complete(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another group takes the run over during the last step: its checkpoint does not count."""
    trainer = trainer_of(recipe)
    staged: list[str] = []
    stage_model = Publication.stage

    def stage_and_see(self: Publication, *given: object) -> None:
        stage_model(self, *given)  # type: ignore[arg-type]
        staged.extend(path.name for path in stage(recipe).glob(".tmp-*/model.safetensors"))

    monkeypatch.setattr(Publication, "stage", stage_and_see)

    def report(metrics: dict[str, object]) -> None:
        if metrics["step"] == 2:
            assert trainer.checkpoints.failure(wait=True) is None
            trainer.store.write_json(ATTEMPT, {"attempt": "another"})

    with pytest.raises(Superseded):
        trainer.run(report)
    trainer.close()
    assert staged == ["model.safetensors"], "it was written meanwhile"
    assert not (stage(recipe) / "model").exists() and not (stage(recipe) / PUBLISHED).exists()
    assert not list(stage(recipe).glob(".tmp-*")), "and taken away"


def test_more_steps_than_the_last_checkpoint_allows_are_one_line(recipe: Recipe) -> None:
    """Only a checkpoint that is not a run's last goes on."""
    trainer = trainer_of(recipe)
    trainer.run(lambda metrics: None)
    trainer.close()
    store = RunStore(str(stage(recipe)))
    state = read_state(store, 3)
    assert state["goes_on"] is False and read_state(store, 2)["goes_on"] is True
    longer = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"max_steps": 5})}, deep=True
    )
    with pytest.raises(UserError, match="step 3 was the last of its run .* 5 steps are asked for"):
        trainer_of(longer)
    write_state(store, 3, {**state, "goes_on": True})
    trainer_of(longer).close()


def test_the_model_is_written_from_the_copies_of_the_last_save(recipe: Recipe) -> None:
    """Every parameter of a rank alone, of that step only; others' memory than the policy's own."""
    trainer = trainer_of(recipe)
    trainer._checkpoint({}, is_last=True)
    copies, own = trainer.checkpoints.copies(0), dict(trainer.model.named_parameters())
    assert copies.keys() == own.keys()
    assert all(torch.equal(copies[name], own[name]) for name in own)
    assert all(copies[name].data_ptr() != own[name].data_ptr() for name in own)
    assert trainer.checkpoints.copies(1) == {}
    trainer.close()


@needs_root
def test_a_disk_that_a_checkpoint_fills_is_named(
    recipe_in: MakeRecipe, paths: dict[str, str], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 2_000_000) as disk:
        recipe = recipe_in(disk / "run", *SPARSE, paths=paths)
        with pytest.raises(UserError) as error:
            train_here(recipe)
        (line,) = str(error.value).splitlines()
        assert line.startswith(f"cannot write {stage(recipe)}/checkpoints/step-00000002/shard-")
        assert line.endswith("No space left on device; what was published before is kept")
        assert not list(stage(recipe).rglob(".tmp-*"))


@needs_root
@pytest.mark.parametrize("size", [100_000, 400_000])  # of the masks, of the model
def test_a_disk_that_the_model_fills_is_named(recipe: Recipe, tmp_path: Path, size: int) -> None:
    trainer = trainer_of(recipe)
    with small_disk(tmp_path / "disk", size) as disk:
        publication = Publication(RunStore(str(disk)))
        with pytest.raises(UserError, match=rf"^cannot write {disk}/model: No space left on d"):
            publication.stage(trainer.facts, trainer.model, trainer.strategy, {})
        publication.discard()
        assert not list(disk.iterdir())
    trainer.close()
