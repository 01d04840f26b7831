"""Publishing, stage records and sampling: pure of Ray."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pair_stores import write_pairs

from pipelines.commands.report import run_report
from pipelines.commands.status import run_status
from pipelines.errors import StageFailed, UserError
from pipelines.models.device import Placement
from pipelines.recipe.files import load_recipe
from pipelines.recipe.stage import StageRecord
from pipelines.storage.row_group_cache import RowGroupCache
from pipelines.storage.store import ROW_GROUP_BYTES, RunStore
from sparsepo import TokenizedPair
from sparsepo.batching.cutting import rank_share, token_budget_batches
from sparsepo.batching.sampling import Sampler


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    """A process that dies between writing and renaming leaves a temporary file only, and
    sweeping removes it.
    """
    code = (
        "import os, sys\nfrom pipelines.storage.store import RunStore\n"
        f"store = RunStore({str(tmp_path)!r})\n"
        "with store._publishing('a/file') as stream:\n    stream.write(b'half')\n    "
        "stream.flush()\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    store = RunStore(str(tmp_path))
    assert not store.exists("a/file")
    assert len(list((tmp_path / "a").iterdir())) == 1
    assert store.names("a") == []
    store.sweep_temporary("a")
    assert list((tmp_path / "a").iterdir()) == []
    store.write_bytes("a/file", b"whole")
    assert store.read_bytes("a/file") == b"whole"


def test_object_store_semantics(tmp_path: Path) -> None:
    """The same calls on a file system that is not the local one (pyarrow's sub-tree wrapper
    stands for a bucket).
    """
    store = RunStore(str(tmp_path))
    store._fs, store._path, store.is_local = (
        pa.fs.SubTreeFileSystem(str(tmp_path), pa.fs.LocalFileSystem()),
        "bucket",
        False,
    )
    (tmp_path / "bucket").mkdir()
    store.write_bytes("x", b"1")
    folder = store.staging_directory()
    (folder / "state.json").write_text("{}")
    (tmp_path / "bucket" / "ckpt" / "one").mkdir(
        parents=True
    )  # a bucket needs no directories, this stand-in does
    store.delete = lambda path: None if path == "ckpt/one" else RunStore.delete(store, path)  # type: ignore[method-assign]
    store.publish_directory(folder, "ckpt/one")
    assert store.read_json("ckpt/one/state.json") == {}
    with store.as_local_directory("ckpt/one") as local:
        assert (local / "state.json").read_text() == "{}"
    store.delete("x")
    assert store.names() == ["ckpt"]


def test_row_groups_stay_small(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    values = [os.urandom(300_000) for _ in range(40)] + [os.urandom(ROW_GROUP_BYTES + 100_000)]
    store.write_table(
        "t.parquet", pa.table({"x": pa.array(values, pa.large_binary())}), compression=None
    )
    with store.open_parquet("t.parquet") as file:
        sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        assert sum(s <= ROW_GROUP_BYTES * 1.01 for s in sizes) == len(sizes) - 1, (
            "only the one oversized row may exceed the limit"
        )
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)][-1] == 1
    assert store.read_table("t.parquet")["x"].to_pylist() == values


def test_a_flipped_bit_of_a_table_is_found_when_it_is_read(tmp_path: Path) -> None:
    """Among numbers of which any would do."""
    store = RunStore(str(tmp_path))
    store.write_table("t.parquet", pa.table({"x": range(4096)}), compression=None)
    raw = bytearray((tmp_path / "t.parquet").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "t.parquet").write_bytes(raw)
    with pytest.raises(OSError, match="CRC"):
        store.read_table("t.parquet")


def test_unwritable_places_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        RunStore(str(tmp_path / "file")).write_bytes("x/y", b"")
    RunStore(str(tmp_path / "not" / "yet")).check_writable()
    (tmp_path / "lost").symlink_to("nowhere")
    for name in ("file", "file/x", "lost", "lost/x"):
        with pytest.raises(UserError, match=f"cannot write {tmp_path / name}: Not a directory"):
            RunStore(str(tmp_path / name)).check_writable()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "lost"]


def record(root: Path, **settings: float) -> StageRecord:
    return StageRecord("train", RunStore(str(root)), settings, {"weights": "abc"})


def test_stage_record_skips_refuses_and_names_the_difference(tmp_path: Path) -> None:
    first = record(tmp_path, lr=1.0)
    assert not first.is_complete()
    first.begin()
    with pytest.raises(UserError, match="setting lr was 1.0, now it is 2.0"):
        record(tmp_path, lr=2.0).begin()
    first.finish({"steps": 3})
    assert record(tmp_path, lr=1.0).is_complete()
    with pytest.raises(UserError, match="setting lr was 1.0, now it is 2.0"):
        record(tmp_path, lr=2.0).is_complete()
    with pytest.raises(UserError, match='input weights was "abc", now it is "other"'):
        StageRecord(
            "train", RunStore(str(tmp_path)), {"lr": 1.0}, {"weights": "other"}
        ).is_complete()


def test_a_setting_that_is_gone_is_another_record(tmp_path: Path) -> None:
    """As is one that was not there."""
    record(tmp_path, lr=1.0, seed=3.0).begin()
    with pytest.raises(UserError, match="setting seed was 3.0, now it is absent"):
        record(tmp_path, lr=1.0).begin()
    with pytest.raises(UserError, match="setting decay was absent, now it is 0.5"):
        record(tmp_path, lr=1.0, seed=3.0, decay=0.5).begin()


def test_sampler_sees_every_pair_once_per_epoch_whatever_the_workers() -> None:
    sampler = Sampler(103, 16, seed=5)
    epoch = [sampler.pair_indices(s) for s in range(sampler.steps_per_epoch)]
    assert sorted(i for batch in epoch for i in batch) == list(range(103))
    assert [len(b) for b in epoch] == [16] * 6 + [7]
    assert sampler.pair_indices(0) != sampler.pair_indices(7), "another epoch, another order"
    lengths = [10 + (i * 37) % 90 for i in range(103)]
    for world in (1, 2, 3, 5):
        for batch in epoch:
            shares = [rank_share(batch, lengths, rank, world) for rank in range(world)]
            assert sorted(i for share in shares for i in share) == sorted(batch)
    loads = [sum(lengths[i] for i in rank_share(epoch[0], lengths, rank, 2)) for rank in range(2)]
    assert abs(loads[0] - loads[1]) <= max(lengths)
    assert Sampler(103, 16, 5).num_steps(1.5, None) == 11
    assert Sampler(103, 16, 5).num_steps(3, 4) == 4


def test_token_budget_is_kept_and_no_row_lost() -> None:
    widths = [5, 90, 30, 31, 7, 200, 12]
    batches = token_budget_batches(range(7), widths, 2, 128)
    assert sorted(i for b in batches for i in b) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or 2 * len(batch) * max(widths[i] for i in batch) <= 128


def test_precision_is_chosen_in_one_place() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert (
        Placement.choose("auto", cpu, 0, 1).weights
        == Placement.choose("auto", cpu, 0, 1).compute
        == torch.float32
    )
    mixed = Placement.choose("auto", gpu, 0, 1)
    assert (mixed.weights, mixed.compute, mixed.uses_autocast) == (
        torch.float32,
        torch.bfloat16,
        True,
    )
    assert not Placement.choose("auto", gpu, 0, 1, "fsdp").uses_autocast, (
        "FSDP2 casts what it gathers"
    )
    low = Placement.choose("bfloat16", cpu, 0, 1)
    assert (low.weights, low.compute, low.uses_autocast) == (torch.bfloat16, torch.bfloat16, False)


def test_a_place_that_no_folder_can_be_called_is_one_line(tmp_path: Path) -> None:
    for read in (run_status, lambda place: run_report([place])):
        with pytest.raises(UserError, match="a name in it has 300 bytes, at most 255 are possible"):
            read(f"{tmp_path}/{'x' * 300}")
    with pytest.raises(UserError, match="no such file, nor a packaged recipe"):
        load_recipe("x" * 300)


def test_another_command_that_tidies_up_ends_a_write_in_a_line(tmp_path: Path) -> None:
    """Two commands begin the same stage; one removes what it takes for leftovers."""
    store = RunStore(str(tmp_path))

    def taken_away() -> None:
        with store._publishing("started.json") as stream:
            stream.write(b"{}")
            store.sweep_temporary()

    with pytest.raises(StageFailed, match="started.json: .* if another command works on this run"):
        taken_away()
    assert store.names() == []


@pytest.mark.slow
def test_many_files_need_few_descriptors(tmp_path: Path) -> None:
    """Three hundred shards of pairs, and local copies of their row groups that are all in use, with
    room for eighty open files.
    """
    store = RunStore(str(tmp_path / "pairs"))
    ids = [TokenizedPair([1], [number], [2]) for number in range(300)]
    pairs = write_pairs(store, ids, shard_pairs=1)
    names = [name for name in store.names() if name.endswith(".parquet")]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 80, hard))
    try:
        found = [pair.chosen.tolist() for pair in pairs.pairs("train", range(300))]
        assert found == [[number] for number in range(300)]
        spool = RowGroupCache(store)
        groups = []
        for name in names:
            with store.open_parquet(name) as file:
                groups.append(spool.read(name, file.metadata, 0))
        assert [group.num_rows for group in groups] == [1] * 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
