"""An object store that is slow, silent, throttling, or answers with pages and halves of files.

Nothing is lost: what comes of a run beside such faults, and after a store that was away, are the
bytes of a run on a disk.
"""

import gzip
import hashlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matrices import members
from object_store import FAULTS, ObjectStore
from runs import MakeRecipe, run_here

import pipelines.storage.object_stores as object_stores
from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
from pipelines.errors import StageFailed, UserError
from pipelines.pairs.sources import chunks_of, read_chunk, source_fingerprint
from pipelines.recipe.schema import Source
from pipelines.storage.store import RunStore

OPTIONS = ("objective.name=tdpo1", "train.max_steps=4", "ray.num_cpus=2")
# Of all that the stages leave, what holds no time.
LASTING = (
    "pairs/*.parquet",
    "reference/*/*.parquet",
    "train/model/*.json",
    "train/*/*.safetensors",
)


@pytest.fixture
def faults(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The store, asked with little patience; healed afterwards."""
    monkeypatch.setattr(object_stores, "_REQUESTS", 1)
    monkeypatch.setattr(object_stores, "_REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(object_stores, "_WAITS_SECONDS", (0.01,) * 5)
    yield object_store
    object_store.heal()


def hashes(root: str) -> dict[str, str]:
    store = RunStore(root)
    return {
        name: hashlib.sha256(store.read_bytes(name)).hexdigest()
        for name, _, _ in store.files()
        if any(Path(name).match(pattern) for pattern in LASTING)
    }


@pytest.fixture(scope="module")
def measure(
    recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> dict[str, str]:
    """What a run on a disk leaves."""
    recipe = recipe_in(tmp_path_factory.mktemp("measure") / "run", *OPTIONS)
    run_here(recipe, (PREPARE, REFERENCE, TRAIN))
    found = hashes(recipe.run_dir)
    assert len(found) > 6
    return found


@pytest.mark.slow
def test_a_store_may_take_seconds_for_a_first_byte(object_store: ObjectStore) -> None:
    """More than the three that pyarrow alone gives it."""
    store = RunStore("s3://bucket/slow")
    store.write_bytes("file", b"kept")
    start, first = object_store.requests, time.monotonic()
    object_store.silence = 4.0
    object_store.fault = lambda number: "silent" if number == start + 2 else ""
    try:
        assert store.read_bytes("file") == b"kept"
    finally:
        object_store.heal()
    assert object_store.requests == start + 2 and time.monotonic() - first > 4


@pytest.mark.parametrize("fault", members(FAULTS, set(FAULTS) - {"silent"}))
def test_a_lasting_fault_is_one_line_in_bounded_time(faults: ObjectStore, fault: str) -> None:
    """It names the place and what to do; nothing is there that was not, nothing is gone."""
    store = RunStore(f"s3://bucket/{fault.replace(' ', '')}")
    store.write_bytes("old", b"kept" * 100)
    faults.silence = 3.0
    faults.fault = lambda number: fault
    first = time.monotonic()
    for ask in (lambda: store.read_bytes("old"), lambda: store.write_bytes("new", b"x" * 100)):
        with pytest.raises(
            StageFailed, match=f"{store.root}/(old|new): still failing after 6 tri"
        ) as error:
            ask()
        assert "give the same command again when the store answers" in str(error.value)
        assert "\n" not in str(error.value)
    assert time.monotonic() - first < 60
    faults.heal()
    assert store.read_bytes("old") == b"kept" * 100
    assert store.names() in (["old"], ["new", "old"])  # an answer may be lost on its way back
    assert "new" not in store.names() or store.read_bytes("new") == b"x" * 100


def test_a_silence_is_given_up_after_the_time_for_a_request(
    faults: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_stores, "_WAITS_SECONDS", ())
    store = RunStore("s3://bucket/silent")
    store.write_bytes("file", b"kept")
    faults.silence, faults.fault = 2.5, lambda number: "silent"
    first = time.monotonic()
    with pytest.raises(StageFailed, match="Less than 1 bytes/sec transferred the last 1 seconds"):
        store.read_bytes("file")
    assert time.monotonic() - first < 2.4


@pytest.mark.slow
def test_a_run_beside_faults_and_after_them_is_the_run_on_a_disk(
    faults: ObjectStore, recipe_in: MakeRecipe, measure: dict[str, str]
) -> None:
    """Every thirteenth request is answered wrongly, in turn. Within the reference and within the
    training the store goes away altogether, and a page answers in its place: both are one line, and
    the same command goes on.
    """
    recipe = recipe_in("s3://bucket/faults", *OPTIONS)
    faults.silence = 1.5

    def beside(number: int) -> str:
        return FAULTS[number // 13 % len(FAULTS)] if number % 13 == 0 else ""

    faults.fault = beside
    run_here(recipe, (PREPARE,))
    away_from = faults.requests + 25
    faults.fault = lambda number: "unavailable" if number > away_from else beside(number)
    with pytest.raises(StageFailed, match="s3://bucket/faults/.*: still failing after 6 tries"):
        run_here(recipe, (REFERENCE,))
    faults.page = b"<!DOCTYPE html><html>Log in</html>"
    with pytest.raises((UserError, StageFailed)) as error:
        run_here(recipe, (REFERENCE,))
    assert "\n" not in str(error.value) and "s3://bucket/faults/" in str(error.value)
    faults.page, faults.fault = b"", beside
    run_here(recipe, (REFERENCE,))
    away_from = faults.requests + 60
    faults.fault = lambda number: "unavailable" if number > away_from else beside(number)
    with pytest.raises(StageFailed, match="s3://bucket/faults/.*: still failing after 6 tries"):
        run_here(recipe, (TRAIN,))
    faults.fault = beside
    run_here(recipe, (TRAIN,))
    faults.heal()
    assert hashes(recipe.run_dir) == measure


@pytest.mark.slow
def test_sources_are_read_beside_faults(faults: ObjectStore) -> None:
    """Listed, fingerprinted and read, in every form; a store that is away is no damaged source."""
    rows = [{"text": str(number)} for number in range(200)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table, parquet, arrow = pa.Table.from_pylist(rows), io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet, row_group_size=50)
    with pa.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    store = RunStore("s3://bucket/beside")
    store.write_bytes("a/1.jsonl", lines)
    store.write_bytes("b/1.jsonl.gz", gzip.compress(lines))
    store.write_bytes("c/1.parquet", parquet.getvalue())
    store.write_bytes("d/1.csv", ("text\n" + "".join(f"{n}\n" for n in range(200))).encode())
    store.write_bytes(
        "e/state.json", json.dumps({"_data_files": [{"filename": "x.arrow"}]}).encode()
    )
    store.write_bytes("e/x.arrow", arrow.getvalue())
    first = True
    for folder in "abcde":
        source = Source(path=f"{store.root}/{folder}")
        for fault in FAULTS[:-1] if first else FAULTS[:1]:
            faults.fault = lambda number, fault=fault: fault if number % 3 == 0 else ""
            source_fingerprint(source)
            found = [row for chunk in chunks_of(source, 64) for row in read_chunk(chunk)]
            assert [str(row[1]["text"]) for row in found] == [row["text"] for row in rows], folder
        first = False
        faults.fault = lambda number: "unavailable"
        with pytest.raises(StageFailed, match=f"{store.root}/{folder}.*still failing after 6 tr"):
            chunks_of(source, 64)
        faults.heal()
