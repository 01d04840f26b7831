"""Runs on an object store: a local S3 server (moto) in place of the disk, with failures put in
its way.
"""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from object_store import ObjectStore

import pipelines.models.directories
import pipelines.storage.store
from pipelines.errors import StageFailed, UserError
from pipelines.models.directories import resolve_model
from pipelines.models.fingerprints import weights_fingerprint
from pipelines.recipe.schema import Recipe
from pipelines.storage.row_group_cache import RowGroupCache
from pipelines.storage.store import RunStore

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
    assert (
        store.names("a") == ["one"] and store.size("a/one") == 2**20 and store.size("a/two") == -1
    )

    def stop_halfway() -> None:
        with store._publishing("a/two") as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop_halfway()
    assert not store.exists("a/two")
    store.delete("a/one")
    assert not store.exists("a/one")


def test_passing_errors_are_waited_out(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More failures in a row than pyarrow repeats on its own; with our repetition off, the same
    ones end the run.
    """
    store = RunStore("s3://bucket/patience")
    store.write_bytes("file", b"kept")
    object_store.fail(40)
    assert store.read_bytes("file") == b"kept"
    monkeypatch.setattr(pipelines.storage.store, "_WAITS_SECONDS", ())
    object_store.fail(40)
    with pytest.raises(StageFailed, match="s3://bucket/patience/file: still failing after 1 tries"):
        store.read_bytes("file")
    object_store.fail(0)


def test_lasting_errors_are_one_line(object_store: ObjectStore) -> None:
    with pytest.raises(UserError, match="s3://nowhere/run/file: .*NO_SUCH_BUCKET"):
        RunStore("s3://nowhere/run").write_bytes("file", b"x")
    with pytest.raises(
        UserError, match="options in a location are not read; set them in the environment"
    ):
        RunStore("s3://bucket/run?region=x")


def test_a_model_on_an_object_store_is_downloaded_once_per_content(
    object_store: ObjectStore, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, with the local fingerprint; again from the disk; other content at the same place is
    another copy.
    """
    monkeypatch.setattr(pipelines.models.directories, "CACHE", tmp_path)
    store = RunStore("s3://bucket/models/tiny")
    for file in model_dir.iterdir():
        store.write_bytes(file.name, file.read_bytes())
    found = resolve_model("s3://bucket/models/tiny/")
    assert weights_fingerprint(found) == weights_fingerprint(model_dir)
    before = object_store.requests
    assert resolve_model("s3://bucket/models/tiny") == found
    assert object_store.requests - before <= 2, "a listing, no download"
    store.write_bytes("config.json", store.read_bytes("config.json") + b"\n")
    assert resolve_model("s3://bucket/models/tiny") != found
    assert not list((tmp_path / "models").glob(".tmp-*"))
    with pytest.raises(UserError, match="model 's3://bucket/models/none': nothing lies there"):
        resolve_model("s3://bucket/models/none")


def test_row_groups_are_fetched_once_and_kept_within_the_limit(
    object_store: ObjectStore, scored: Recipe
) -> None:
    """The second reading asks the store for nothing; a spool with room for one group holds one."""
    store = RunStore("s3://bucket/spool")
    files = sorted((Path(scored.run_dir) / "reference").glob("reference_hidden/train-*.parquet"))
    for file in files:
        store.write_bytes(file.name, file.read_bytes())
    footers = {file.name: store.open_parquet(file.name).metadata for file in files}
    spool = RowGroupCache(store)
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
    assert (
        len(list(folder.iterdir())) == sum(footer.num_row_groups for footer in footers.values()) > 1
    )
    small = RowGroupCache(store, limit_bytes=1)
    for name, footer in footers.items():
        small.read(name, footer, 0)
    assert len(list(small._folder.iterdir())) == 1
    object_store.fail(2)
    assert small.read(files[0].name, footers[files[0].name], 0).num_rows > 0, (
        "an error that passes is repeated"
    )
    del spool
    gc.collect()
    assert not folder.exists()
