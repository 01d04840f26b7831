"""What keeps a file from being read without the file's fault is no damage: nobody is told to remove
it, and nothing that is there is taken away.
"""

import errno
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import StageFailed
from pipelines.models.device import Placement
from pipelines.models.tensors import tensor_shapes
from pipelines.pairs.sources import chunks_of
from pipelines.recipe.schema import Source
from pipelines.storage.read_errors import told_why
from pipelines.storage.records import read_lines, read_list, read_parquet, read_record, write_record
from pipelines.storage.store import RunStore
from pipelines.train.checkpoint_contents import newest_intact, write_state
from pipelines.train.steps import completed_steps, step_folder

ALONE = Placement(torch.device("cpu"), torch.float32, torch.float32, 0, 1)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Nothing can be opened any more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    found = RunStore(str(tmp_path))
    write_record(found, "record.json", {"a": 1})
    found.write_bytes("list.json", b"[1]")
    found.write_bytes("lines.jsonl", b'{"a": 1}\n')
    found.write_table("table.parquet", pa.table({"a": [1]}))
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    return found


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("record.json", lambda store, name: read_record(store, name)),
        ("list.json", lambda store, name: read_list(store, name)),
        ("lines.jsonl", lambda store, name: read_lines(store, name)),
        ("table.parquet", lambda store, name: read_parquet(store, name)),
        ("table.parquet", lambda store, name: store.checksum(name)),
        ("a.safetensors", lambda store, name: tensor_shapes(store.local_path(name))),
        ("lines.jsonl", lambda store, name: chunks_of(Source(path=f"{store.root}/{name}"), 4)),
    ],
)  # fmt: skip
def test_too_many_open_files_are_no_damage(
    store: RunStore, name: str, read: Callable[[RunStore, str], object]
) -> None:
    read(store, name)  # whatever is imported is imported now
    with (
        pytest.raises(StageFailed, match=f"cannot read .*{name}: Too many open files; raise the"),
        no_descriptor_left(),
    ):
        read(store, name)
    read(store, name)


def test_no_memory_is_no_damage() -> None:
    message = "cannot read x: Cannot allocate memory; this machine has no memory left"
    with pytest.raises(StageFailed, match=message), told_why("x"):
        raise OSError(errno.ENOMEM, "what a library says")
    with pytest.raises(FileNotFoundError), told_why("x"):
        raise FileNotFoundError(errno.ENOENT, "it is not there")


def test_a_checkpoint_that_cannot_be_opened_now_stays_one(tmp_path: Path) -> None:
    """Training takes back those that are damaged: this one is not."""
    store = RunStore(str(tmp_path))
    for step in (2, 4):
        store.write_bytes(f"{step_folder(step)}/shard", b"weights")
        known = {"bytes": 7, "sha256": store.checksum(f"{step_folder(step)}/shard")}
        write_state(store, step, {"files": {"shard": known}})
    before = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert newest_intact(store, (2, 4), ALONE) == (4, [])
    with pytest.raises(StageFailed, match="Too many open files"), no_descriptor_left():
        newest_intact(store, (2, 4), ALONE)
    assert completed_steps(store) == [2, 4]
    after = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_a_file_of_another_user_is_no_damage() -> None:
    """Root may read everything, so that another reads for a moment."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = RunStore(folder)
        write_record(store, "record.json", {"a": 1})
        Path(folder, "record.json").chmod(0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(StageFailed, match=r"record.json: Permission denied; ask its owner"):
                read_record(store, "record.json")
        finally:
            os.seteuid(0)
        assert read_record(store, "record.json") == {"a": 1}
