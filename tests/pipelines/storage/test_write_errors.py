"""What keeps a file from being written is one line that names the place, whoever says it."""

import errno
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file
from small_disk import needs_root, small_disk
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from pipelines.errors import UserError
from pipelines.storage.write_errors import told_where


def write_bytes(folder: Path) -> None:
    (folder / "file").write_bytes(bytes(100_000))


def write_tensors(folder: Path) -> None:
    save_file({"weight": np.zeros(100_000)}, folder / "file")


def write_tokenizer(folder: Path) -> None:
    words = {f"word-{number}": number for number in range(10_000)}
    Tokenizer(WordLevel(words, "word-0")).save(str(folder / "file"))


def write_table(folder: Path) -> None:
    table = pa.table({"a": np.zeros(100_000)})
    with pa.OSFile(str(folder / "file"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)


@needs_root
@pytest.mark.parametrize("write", [write_bytes, write_tensors, write_tokenizer, write_table])
def test_a_full_disk_is_named(write: "object", tmp_path: Path) -> None:
    assert callable(write)
    with (
        small_disk(tmp_path / "disk", 20_000) as disk,
        pytest.raises(UserError) as error,
        told_where(disk / "file"),
    ):
        write(disk)
    assert str(error.value) == (
        f"cannot write {disk}/file: No space left on device; what was published before is kept"
    )


def test_a_path_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=f"^cannot write {tmp_path}/file/x: Not a directory$"),
        told_where(tmp_path / "file" / "x"),
    ):
        (tmp_path / "file" / "x").write_text("")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("os error 28"),
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/source.jsonl"),
        InterruptedError(errno.EINTR, "Interrupted"),
        UserError("a line of its own (os error 28)"),
    ],
)
def test_what_is_no_error_of_this_place_stays(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as found, told_where(tmp_path / "file"):
        raise error
    assert found.value is error
