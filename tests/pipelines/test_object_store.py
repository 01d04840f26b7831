"""Runs on an object store: a local S3 server (moto) in place of the disk, with failures put in its way."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from object_store import ObjectStore
from stores import silent, store_files
from transformers import AutoModelForCausalLM

import pipelines.store
from pipelines.config import Recipe
from pipelines.errors import StageFailed, UserError
from pipelines.evaluate import read_history
from pipelines.group_spool import GroupSpool
from pipelines.recipe import load_recipe
from pipelines.reference_check import check_reference
from pipelines.run import run_stages
from pipelines.schedule import Scheduler
from pipelines.status import run_status
from pipelines.store import RunStore

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    server = ObjectStore()
    yield server
    server.stop()


def test_files_are_whole_or_absent(object_store: ObjectStore) -> None:
    store = RunStore("s3://bucket/files")
    store.write_bytes("a/one", b"x" * 2**20)
    assert store.read_bytes("a/one") == b"x" * 2**20
    assert store.names("a") == ["one"] and store.size("a/one") == 2**20 and store.size("a/two") == -1

    def stop_halfway() -> None:
        with store._publishing("a/two") as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop_halfway()
    assert not store.exists("a/two")
    store.delete("a/one")
    assert not store.exists("a/one")


def test_passing_errors_are_waited_out(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """More failures in a row than pyarrow repeats on its own; with our repetition off, the same ones end the run."""
    store = RunStore("s3://bucket/patience")
    store.write_bytes("file", b"kept")
    object_store.fail(40)
    assert store.read_bytes("file") == b"kept"
    monkeypatch.setattr(pipelines.store, "_WAITS_SECONDS", ())
    object_store.fail(40)
    with pytest.raises(StageFailed, match="s3://bucket/patience/file: still failing after 1 tries"):
        store.read_bytes("file")
    object_store.fail(0)


def test_lasting_errors_are_one_line(object_store: ObjectStore) -> None:
    with pytest.raises(UserError, match="s3://nowhere/run/file: .*NO_SUCH_BUCKET"):
        RunStore("s3://nowhere/run").write_bytes("file", b"x")
    with pytest.raises(UserError, match="options in a location are not read; set them in the environment"):
        RunStore("s3://bucket/run?region=x")


@pytest.mark.slow
def test_a_whole_run_lives_on_the_object_store(object_store: ObjectStore, recipe_in: MakeRecipe, ray_cluster: None, tmp_path: Path) -> None:
    """Every stage; the feature files are those of a run on disk, byte for byte; some requests fail on the way."""
    options = ("objective.name=tdpo1", "train.max_steps=2")
    local, remote = recipe_in(tmp_path / "run", *options), recipe_in("s3://bucket/run", *options)
    stages = ("prepare", "reference", "train", "evaluate", "report")
    run_stages(local, ("prepare", "reference"), silent)
    object_store.fail(3)
    run_stages(remote, stages, silent, quiet=True)
    copied = tmp_path / "copy"
    with RunStore("s3://bucket/run").as_local_directory("reference") as folder:
        found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted([*folder.rglob("*.parquet"), *folder.glob("*.safetensors")])}
    expected = store_files(local)
    assert {name: data for name, data in found.items() if name.startswith("lm_head")} == {
        name: data for name, data in expected.items() if name.startswith("lm_head")
    }
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert check_reference(remote, quiet=True)[1] == []
    assert run_stages(remote, stages[:4], silent) == dict.fromkeys(stages[:4], "skipped")
    assert {row["state"] for row in run_status("s3://bucket/run")} == {"done"}
    with RunStore("s3://bucket/run/train").as_local_directory("model") as folder:
        model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) > 0
    assert RunStore("s3://bucket/run/train").names("tensorboard"), "growing files arrive with the checkpoints"
    assert not copied.exists()
    scheduled = Scheduler(load_recipe("s3://bucket/run/config.yaml"), lambda: None, silent, quiet=True).tick()
    assert scheduled.evaluated == [2]
    assert [row["step"] for row in read_history(RunStore("s3://bucket/run/evaluation"))] == [2, None]
    torch.set_num_threads(1)


def test_row_groups_are_fetched_once_and_kept_within_the_limit(object_store: ObjectStore, scored: Recipe) -> None:
    """The second reading asks the store for nothing; a spool with room for one group holds one."""
    store = RunStore("s3://bucket/spool")
    files = sorted((Path(scored.run_dir) / "reference").glob("reference_hidden/train-*.parquet"))
    for file in files:
        store.write_bytes(file.name, file.read_bytes())
    footers = {file.name: store.open_parquet(file.name).metadata for file in files}
    spool = GroupSpool(store)
    local = RunStore(str(files[0].parent))
    for name, footer in footers.items():
        for group in range(footer.num_row_groups):
            spool.fetch(name, footer, group)
    for _ in range(2):
        for name, footer in footers.items():
            for group in range(footer.num_row_groups):
                with local.open_parquet(name) as file:
                    assert spool.read(name, footer, group).equals(file.read_row_group(group))
        before = object_store.requests
    assert object_store.requests == before, "the second reading came from the disk"
    folder = spool._folder
    assert len(list(folder.iterdir())) == sum(footer.num_row_groups for footer in footers.values()) > 1
    small = GroupSpool(store, limit_bytes=1)
    for name, footer in footers.items():
        small.read(name, footer, 0)
    assert len(list(small._folder.iterdir())) == 1
    object_store.fail(2)
    assert small.read(files[0].name, footers[files[0].name], 0).num_rows > 0, "an error that passes is repeated"
    del spool
    gc.collect()
    assert not folder.exists()
