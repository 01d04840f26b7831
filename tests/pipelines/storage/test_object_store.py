"""Runs on an object store: a local S3 server (moto) in place of the disk, with failures put in
its way.
"""

import gc
import gzip
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from damage.damages import ANY, FOLDER
from damage.outcomes import damage_file
from object_store import ObjectStore
from pair_stores import TEXT, write_pairs

import pipelines.models.directories
import pipelines.storage.object_stores
from pipelines.errors import Failure, StageFailed, UserError
from pipelines.models.directories import resolve_model
from pipelines.models.fingerprints import weights_fingerprint
from pipelines.pairs.prepare import _run_task
from pipelines.pairs.sources import Chunk, chunks_of, left_out, read_chunk, source_fingerprint
from pipelines.pairs.tasks import ReadTask, result_of, rows_of
from pipelines.recipe.schema import DataSection, Recipe, Source
from pipelines.storage.records import read_record, write_record
from pipelines.storage.row_group_cache import RowGroupCache
from pipelines.storage.store import RunStore
from sparsepo import TokenizedPair


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


@pytest.mark.slow
def test_passing_errors_are_waited_out(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More failures in a row than pyarrow repeats on its own; with our repetition off, the same
    ones end the run.
    """
    monkeypatch.setattr(pipelines.storage.object_stores, "_REQUESTS", 2)
    store = RunStore("s3://bucket/patience")
    store.write_bytes("file", b"kept")
    object_store.fail(5)
    assert store.read_bytes("file") == b"kept"
    monkeypatch.setattr(pipelines.storage.object_stores, "_WAITS_SECONDS", ())
    object_store.fail(5)
    with pytest.raises(StageFailed, match="s3://bucket/patience/file: still failing after 1 tries"):
        store.read_bytes("file")
    object_store.fail(0)


def test_what_answers_with_pages_is_no_object_store(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login page for every request: no write is believed, nothing read is taken for a record."""
    monkeypatch.setattr(pipelines.storage.object_stores, "_REQUESTS", 1)
    store = RunStore("s3://bucket/behind")
    write_record(store, "manifest.json", {"counts": {}})
    monkeypatch.setattr(pipelines.storage.object_stores, "_WAITS_SECONDS", ())
    object_store.page = b"<!DOCTYPE html><html>Log in</html>"
    try:
        with pytest.raises(UserError, match="cannot write .*: what answers there is no object st"):
            store.check_writable()
        with pytest.raises(StageFailed, match="behind/file: .* 3 bytes were sent and are not the"):
            store.write_bytes("file", b"abc")
        with pytest.raises(UserError, match="manifest.json is damaged: it is a web page"):
            read_record(store, "manifest.json")
    finally:
        object_store.heal()
    assert store.names() == ["manifest.json"]
    assert read_record(store, "manifest.json") == {"counts": {}}


def test_answers_that_are_cut_off_are_no_content(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.storage.object_stores, "_REQUESTS", 1)
    store = RunStore("s3://bucket/short")
    store.write_bytes("file", b"x" * 1000)
    monkeypatch.setattr(pipelines.storage.object_stores, "_WAITS_SECONDS", ())
    object_store.fault = lambda number: "cut"
    try:
        with pytest.raises(StageFailed, match="s3://bucket/short/file: still failing after 1 tri"):
            store.read_bytes("file")
    finally:
        object_store.heal()
    assert store.read_bytes("file") == b"x" * 1000


def test_lasting_errors_are_one_line(object_store: ObjectStore) -> None:
    with pytest.raises(UserError, match="s3://nowhere/run/file: .*NO_SUCH_BUCKET"):
        RunStore("s3://nowhere/run").write_bytes("file", b"x")
    with pytest.raises(UserError, match="cannot write s3://nowhere/run: no bucket is called 'now"):
        RunStore("s3://nowhere/run").check_writable()
    RunStore("s3://bucket/of/nobody/yet").check_writable()
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


@pytest.mark.slow
def test_a_damaged_download_of_a_model_is_made_anew(
    object_store: ObjectStore,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Any file of it, and the list of its hashes, in every way; it says so, and is whole again."""
    monkeypatch.setattr(pipelines.models.directories, "CACHE", tmp_path)
    store = RunStore("s3://bucket/models/damaged")
    for file in model_dir.iterdir():
        store.write_bytes(file.name, file.read_bytes())
    found = resolve_model("s3://bucket/models/damaged")
    whole = {path.name: path.read_bytes() for path in found.iterdir()}
    for path in (found / "model.safetensors", found / "config.json", found.parent / "hashes.json"):
        for name in (*ANY, FOLDER):
            capfd.readouterr()
            damage_file(path, name, ANY)
            assert resolve_model("s3://bucket/models/damaged") == found
            assert {path.name: path.read_bytes() for path in found.iterdir()} == whole
            said = capfd.readouterr().err
            assert said.endswith(f"/{path.name} is damaged: downloaded again\n"), name
    shutil.rmtree(found.parent)
    found.parent.write_bytes(b"a file")
    assert resolve_model("s3://bucket/models/damaged") == found
    assert not list((tmp_path / "models").glob(".tmp-*"))


@pytest.mark.slow
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


def test_a_damaged_local_row_group_is_fetched_again(
    object_store: ObjectStore, scored: Recipe
) -> None:
    """In every way, a flipped bit among them: the disk of a worker has no checksums of its own."""
    store = RunStore("s3://bucket/damaged-groups")
    file = next((Path(scored.run_dir) / "reference").glob("reference_hidden/train-*.parquet"))
    store.write_bytes(file.name, file.read_bytes())
    footer = store.open_parquet(file.name).metadata
    spool = RowGroupCache(store)
    whole = spool.read(file.name, footer, 0)
    for name in (*ANY, FOLDER):
        (local,) = spool._folder.iterdir()
        damage_file(local, name, ANY)
        before = object_store.requests
        assert spool.read(file.name, footer, 0).equals(whole), name
        assert object_store.requests > before, name
    before = object_store.requests
    assert spool.read(file.name, footer, 0).equals(whole) and object_store.requests == before
    (local,) = spool._folder.iterdir()
    local.unlink()  # as another reader does who makes room
    assert spool.read(file.name, footer, 0).equals(whole)


@pytest.mark.slow
def test_pairs_with_long_texts_cost_what_their_token_ids_cost(object_store: ObjectStore) -> None:
    """Bytes are counted by the server, memory by arrow's allocator: 300 pairs of 20 KB of text that
    does not compress, and of 90 ids.
    """
    rng = random.Random(0)
    ids = [
        TokenizedPair(*([rng.randrange(50_000) for _ in range(30)] for _ in range(3)))
        for _ in range(300)
    ]
    texts = [rng.randbytes(10_000).hex() for _ in ids]
    pairs = write_pairs(RunStore("s3://bucket/long"), ids, shard_pairs=100, texts=texts)
    del texts
    gc.collect()
    start, before = object_store.sent, pa.total_allocated_bytes()
    requests = object_store.requests
    lengths = pairs.lengths("train")
    assert lengths.tolist() == [120] * 300
    assert pairs.pair_lengths("train", [299])[0].shared_width() == 90
    assert object_store.requests - requests <= 4, "one file, whatever the number of shards"
    assert object_store.sent - start < 20_000
    found = pairs.pairs("train", range(300))
    assert [list(pair.chosen) for pair in found] == [pair.chosen for pair in ids]
    names = pairs.values("train", range(300), ["pair_id", "chosen_score"])
    assert names[299] == (f"{299:024x}-0", None)
    every_id = 300 * 90 * 4
    assert object_store.sent - start < 1_000_000, "of 6,000,000 bytes of text"
    assert pa.total_allocated_bytes() - before < 3 * every_id
    requests = object_store.requests
    assert pairs.pairs("train", [150])[0].prompt.tolist() == ids[150].prompt
    assert pairs.values("train", [150], ["pair_id", "chosen_score"])
    assert object_store.requests == requests, "what was read is kept"
    (text,) = pairs.values("train", [150], ["prompt"])[0]
    assert len(text) == 20_000 and object_store.sent - start > 1_000_000, "the count counts"


def test_a_task_whose_store_stays_away_fails_as_a_stage(
    object_store: ObjectStore, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer's store is away while a chunk is read: no traceback, but Failure."""
    monkeypatch.setattr(pipelines.storage.object_stores, "_REQUESTS", 1)
    store = RunStore("s3://bucket/models/away")
    for file in model_dir.iterdir():
        store.write_bytes(file.name, file.read_bytes())
    monkeypatch.setattr(pipelines.storage.object_stores, "_WAITS_SECONDS", ())
    data = DataSection.model_validate({"sources": [{"path": "unused.jsonl"}]})
    task = ReadTask(0, TEXT, (Chunk("jsonl", "unused.jsonl", 0, 0, 0),))
    object_store.fail(40)
    batch = pa.Table.from_pylist([task.item()])
    found = rows_of(_run_task(batch, data, "s3://bucket/models/away", {}))
    object_store.fail(0)
    assert isinstance(found, Failure) and found.kind == "stage"
    with pytest.raises(StageFailed, match="s3://bucket/models/away.*still failing after 1 tries"):
        result_of(found)


@pytest.mark.slow
def test_sources_are_read_as_from_a_disk(object_store: ObjectStore, tmp_path: Path) -> None:
    """Compressed, by folder and by pattern, a saved data set, a snapshot's configs; what is left
    out is named. The same tree on the disk is the measure.
    """
    import datasets

    card = "---\nconfigs:\n- config_name: default\n  data_files: x/*.csv.gz\n---\n"
    files = {
        "set/a.jsonl": b'{"text": "0"}\n{"text": "1"}\n',
        "set/b/c.jsonl.gz": gzip.compress(b'{"text": "2"}\n' * 40),
        "set/d.json": b'[{"text": "3"}, {"text": "4"}]',
        "set/notes.txt": b"",
        "set/.git/config": b"",
        "card/README.md": card.encode(),
        "card/x/1.csv.gz": gzip.compress(b"text\n5\n6\n"),
        "card/2.csv": b"text\n7\n",
    }
    datasets.Dataset.from_dict({"text": ["8", "9"]}).save_to_disk(str(tmp_path / "saved"))
    files |= {f"saved/{file.name}": file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    store, local = RunStore("s3://bucket/sources"), RunStore(str(tmp_path))
    for name, content in files.items():
        store.write_bytes(name, content)
        local.write_bytes(name, content)
    for path in ("set", "set/*.json*", "set/**/*.jsonl.gz", "card", "saved", "set/d.json"):
        found = []
        for root in (store.root, str(tmp_path)):
            source = Source(path=f"{root}/{path}")
            source_fingerprint(source)
            rows = [row for chunk in chunks_of(source, 16) for row in read_chunk(chunk)]
            found.append((rows, [line.replace(root, "") for line in left_out([source])]))
        assert found[0] == found[1] and found[0][0], path
    assert store.read_bytes("set/b/c.jsonl.gz") == files["set/b/c.jsonl.gz"], "as it was written"
    assert "notes.txt (no format" in str(left_out([Source(path=f"{store.root}/set")]))
    with pytest.raises(UserError, match="s3://bucket/sources/none': no such file"):
        chunks_of(Source(path="s3://bucket/sources/none"), 10)
