"""Which files of a source are read, in which order, and that each other one is named."""

import bz2
import gzip
import json
import lzma
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import MakeRecipe

from pipelines.commands.plan import run_plan
from pipelines.commands.stages import PREPARE
from pipelines.errors import UserError
from pipelines.pairs import sources
from pipelines.pairs.sources import chunks_of, read_chunk, source_fingerprint
from pipelines.recipe.schema import ColumnNames, Source


def lines(*names: str) -> bytes:
    return "".join(json.dumps({"text": name}) + "\n" for name in names).encode()


def put(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def zst(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zst,
}


def rows(path: Path | str, size: int = 10, **settings: Any) -> list[Any]:
    source = Source(path=str(path), **settings)
    source_fingerprint(source)
    found = [item for chunk in chunks_of(source, size) for item in read_chunk(chunk)]
    assert [number for number, _ in found] == list(range(len(found)))
    return [row and row["text"] for _, row in found]


def left_out(source: Source) -> str | None:
    lines = sources.left_out([source])
    assert len(lines) <= 1
    return lines[0] if lines else None


def refused(path: Path | str, **settings: Any) -> str:
    """What chunks and fingerprint say alike, in one line."""
    said = []
    for act in (lambda source: chunks_of(source, 10), source_fingerprint):
        with pytest.raises(UserError) as raised:
            act(Source(path=str(path), **settings))
        said.append(str(raised.value))
    assert said[0] == said[1] and "\n" not in said[0]
    return said[0]


def test_a_compressed_file_counts_like_a_plain_one(tmp_path: Path) -> None:
    """Case 3: 2 rows and 4 in .gz are 6; likewise below folders, in capitals, and by pattern."""
    put(tmp_path / "a.jsonl", lines("0", "1"))
    put(tmp_path / "b.jsonl.gz", gzip.compress(lines("2", "3", "4", "5")))
    put(tmp_path / "c" / "D.JSONL.XZ", lzma.compress(lines("6")))
    put(tmp_path / "c" / "e.ndjson.zstd", zst(lines("7")))
    assert rows(tmp_path) == list("01234567")
    assert rows(tmp_path, size=1) == list("01234567")
    assert rows(tmp_path / "*.gz") == list("2345")
    assert rows(tmp_path / "b.jsonl.gz") == list("2345")
    assert left_out(Source(path=str(tmp_path))) is None


def test_what_is_left_out_is_named_once(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Documents, archives, hidden files and what is no file; in the plan too."""
    row = json.dumps({"prompt": "a", "chosen": " b", "rejected": " c"}) + "\n"
    folder = tmp_path / "data"
    put(folder / "a.jsonl", row.encode() * 30)
    for name in ("README.md", "old.tar.gz", "deep/notes.txt", ".git/config", "._a.jsonl"):
        put(folder / name, b"{}")
    put(folder / "dataset_infos.json", b'{"a": 1}')
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "gone.jsonl").symlink_to("nowhere")
    line = left_out(Source(path=str(folder)))
    assert line == (
        f"data source '{folder}' leaves out ._a.jsonl, .git/ (hidden); gone.jsonl (a link that "
        "leads nowhere); pipe.jsonl (a FIFO); README.md, deep/notes.txt, old.tar.gz (no format "
        "that is read); dataset_infos.json (it describes a data set)"
    )
    plan = run_plan(make_recipe(f"data.sources=[{{path: {folder}}}]"))
    assert plan["data"]["left_out"] == [line]
    counts = {"pairs": dict.fromkeys(("train", "validation", "test"), 1), "rejected": {}}
    assert PREPARE.summary({**counts, "left_out": [line]}).endswith(f"\nwarning: {line}")
    assert left_out(Source(path=str(folder / "*.jsonl"))) == (
        f"data source '{folder}/*.jsonl' leaves out ._a.jsonl (hidden); gone.jsonl (a link that "
        "leads nowhere); pipe.jsonl (a FIFO)"
    )
    put(folder / "b.csv", b"text\n")
    said = str(left_out(Source(path=str(folder), format="jsonl")))
    assert "README.md, b.csv, deep/notes.txt, old.tar.gz (format is jsonl)" in said


def test_a_folder_without_anything_to_read_says_what_is_there(tmp_path: Path) -> None:
    put(tmp_path / "a" / "pairs.zip", b"")
    put(tmp_path / "a" / "pairs.tsv", b"")
    (tmp_path / "b").mkdir()
    said = refused(tmp_path / "a")
    assert "holds pairs.tsv, pairs.zip (no format that is read): nothing that is read" in said
    assert "is empty: nothing that is read (read are jsonl, json, csv" in refused(tmp_path / "b")
    assert "pairs.tsv (no format" in refused(tmp_path / "a" / "*.tsv")
    assert "format not recognised; set format to" in refused(tmp_path / "a" / "pairs.zip")
    put(tmp_path / "c" / "part-00000", lines("0"))
    put(tmp_path / "c" / "part-00001.gz", gzip.compress(lines("1")))
    assert rows(tmp_path / "c" / "*", format="jsonl") == ["0", "1"]


@pytest.mark.parametrize("form", ["folder", "**", "*"])
def test_links_are_followed_once(tmp_path: Path, form: str) -> None:
    """Case 11: a folder linked into itself; in a circle, to its parent, from two places, a file
    twice. Folders elsewhere are read where they are linked.
    """
    folder = tmp_path / "data"
    put(folder / "pairs.jsonl", lines(*(str(i) for i in range(120))))
    put(tmp_path / "elsewhere" / "more.jsonl", lines("more"))
    for name, target in (
        ("self", "."),
        ("a-parent", ".."),
        ("deep/circle", "../deep"),
        ("one", "../elsewhere"),
        ("two", "../elsewhere"),
        ("again.jsonl", "pairs.jsonl"),
    ):
        link = folder / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
    path = {"folder": folder, "**": folder / "**" / "*.jsonl", "*": folder / "*.jsonl"}[form]
    found = rows(path)
    assert found == ["more"] * (form != "*") + [str(i) for i in range(120)]
    said = str(left_out(Source(path=str(path))))
    assert f"again.jsonl (the same file as {folder}/pairs.jsonl)" in said
    if form == "folder":
        assert "self/, two/" in said and "a-parent/ (a link to a folder that holds" in said


def test_patterns_stay_in_a_folder_but_for_two_stars(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b/a.jsonl", "b/c/a.jsonl", "b/c/d.jsonl", "x[1].jsonl"):
        put(tmp_path / name, lines(name))
    assert rows(tmp_path / "*.jsonl") == ["a.jsonl", "x[1].jsonl"]
    assert rows(tmp_path / "**" / "a.jsonl") == ["a.jsonl", "b/a.jsonl", "b/c/a.jsonl"]
    assert rows(tmp_path / "b" / "**" / "?.jsonl") == ["b/a.jsonl", "b/c/a.jsonl", "b/c/d.jsonl"]
    assert rows(tmp_path / "*" / "c" / "[a-c].jsonl") == ["b/c/a.jsonl"]
    assert rows(tmp_path / "x[1].jsonl") == ["x[1].jsonl"], "a name before it is a pattern"
    assert "** stands between slashes" in refused(tmp_path / "b**.jsonl")
    assert "no such file" in refused(tmp_path / "z*.jsonl")


def test_what_is_no_file_and_what_no_file_can_be_called(tmp_path: Path) -> None:
    """Case 12, and a socket, links in a circle, a byte 0, a file in place of a folder."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "one.jsonl").symlink_to("two.jsonl")
    (tmp_path / "two.jsonl").symlink_to("one.jsonl")
    here = Path.cwd()
    os.chdir(tmp_path)  # a socket's name has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("s.jsonl")
    finally:
        os.chdir(here)
    assert "pipe.jsonl' is a FIFO: only files" in refused(tmp_path / "pipe.jsonl")
    assert "s.jsonl' is a socket: only files" in refused(tmp_path / "s.jsonl")
    assert "'/dev/zero' is a device: only files" in refused("/dev/zero", format="jsonl")
    assert "name too long" in refused(tmp_path / ("x" * 300 + ".jsonl"))
    assert "levels of symbolic links" in refused(tmp_path / "one.jsonl")
    assert "no file can be called so" in refused(f"{tmp_path}/a\0.jsonl")
    put(tmp_path / "file.jsonl", lines("0"))
    assert "no such file" in refused(tmp_path / "file.jsonl" / "more.jsonl")
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/data/\xff.jsonl")), lines("0"))
    put(tmp_path / "data" / "a.jsonl", lines("1"))
    assert rows(tmp_path / "data") == ["1"]
    assert "\ufffd.jsonl (its name is not UTF-8)" in str(
        left_out(Source(path=str(tmp_path / "data")))
    )


def save(folder: Path, **splits: int) -> Any:
    """A data set with splits, in shards of several batches, saved by the library."""
    import datasets

    def texts(name: str, count: int) -> Any:
        return [{"role": "user", "content": f"{name} {i}"} for i in range(count)]

    made = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {"text": [m["content"] for m in texts(name, n)], "turn": texts(name, n)}
            )
            for name, n in splits.items()
        }
    )
    made.save_to_disk(str(folder), num_shards=dict.fromkeys(splits, 2))
    return made


def test_saved_data_sets_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    """A set of splits, and one split alone; chosen rows of a set, which the library writes out."""
    import datasets

    save(tmp_path / "both", train=2500, test=3)
    loaded = datasets.load_from_disk(str(tmp_path / "both"))
    source = Source(path=str(tmp_path / "both"), split="train")
    chunks = chunks_of(source, 700)
    assert len(chunks) == 4 and len({chunk.path for chunk in chunks}) == 2
    found = [item for chunk in chunks for item in read_chunk(chunk)]
    assert found == list(enumerate(loaded["train"].to_list()))
    assert rows(tmp_path / "both", split="test") == ["test 0", "test 1", "test 2"]
    assert len(rows(tmp_path / "both", split="all")) == 2503
    assert left_out(source) == (
        f"data source '{tmp_path / 'both'}' leaves out test/data-00000-of-00002.arrow and 1 more "
        "(of split 'test')"
    )
    assert "holds test (data-00000-of-00002.arrow), train" in refused(tmp_path / "both")
    assert "no split 'validation'" in refused(tmp_path / "both", split="validation")
    assert "subset = 'x' is of Hugging Face" in refused(tmp_path / "both", subset="x")
    loaded["train"].select([5, 3]).save_to_disk(str(tmp_path / "few"))
    for settings in ({}, {"split": "train"}, {"format": "huggingface"}):
        assert rows(tmp_path / "few", **settings) == ["train 5", "train 3"]
    before = source_fingerprint(source)
    (tmp_path / "both" / "train" / "data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow is missing" in refused(tmp_path / "both", split="train")
    assert source_fingerprint(Source(path=str(tmp_path / "few"))) != before


CARD = """---
license: mit
configs:
- config_name: clean
  data_files:
  - split: train
    path: data/clean-*.jsonl.gz
  - split: test
    path: [data/held.csv]
- config_name: all
  default: true
  data_files: "**/*.jsonl.gz"
- config_name: by_name
  data_dir: named
---
# A set
"""


def snapshot(folder: Path, card: str = CARD) -> Path:
    put(folder / "README.md", card.encode())
    for name in ("clean-0", "clean-1", "other"):
        put(folder / "data" / f"{name}.jsonl.gz", gzip.compress(lines(name)))
    put(folder / "data" / "held.csv", b"text\n4\n")
    put(folder / "named" / "train.jsonl", lines("named"))
    put(folder / "named" / "test.jsonl", lines("held"))
    return folder


def test_a_snapshots_configs_are_followed(tmp_path: Path) -> None:
    """As the hub's library reads it, but for the types that it guesses in CSV."""
    import datasets

    folder = snapshot(tmp_path / "set")
    clean = {"subset": "clean", "split": "train"}
    assert rows(folder, **clean) == ["clean-0", "clean-1"]
    assert rows(folder, subset="clean", split="test") == ["4"]
    assert rows(folder) == ["clean-0", "clean-1", "other"]
    one_kind = snapshot(tmp_path / "kind", CARD.replace("held.csv", "other.jsonl.gz"))
    for subset in ("clean", "all"):
        by_library = datasets.load_dataset(str(one_kind), subset, split="train")["text"]
        assert rows(one_kind, subset=subset, split="train") == list(by_library)
    assert rows(folder, subset="by_name", split="test") == ["held"]
    assert "out data/held.csv, named/test.jsonl, named/train.jsonl (not named by the README" in str(
        left_out(Source(path=str(folder)))
    )
    assert "leaves out data/held.csv (of split 'test'); data/other" in str(
        left_out(Source(path=str(folder), subset="clean", split="train"))
    )
    assert "say which with split" in refused(folder, subset="clean")
    assert "no subset 'dirty', its README.md has clean, all, by_name" in refused(
        folder, subset="dirty"
    )
    assert "no split 'x', it holds" in refused(folder, subset="clean", split="x")
    undecided = snapshot(tmp_path / "undecided", CARD.replace("  default: true\n", ""))
    assert "the subsets clean, all, by_name: say which with subset" in refused(undecided)


def test_the_hubs_library_leaves_csv_as_text(tmp_path: Path) -> None:
    put(tmp_path / "set" / "train.csv", b"text,other,score\n4,,4\n05,NA,5\n")
    source = Source(
        path=str(tmp_path / "set"), format="huggingface", columns=ColumnNames(chosen_score="score")
    )
    (chunk,) = chunks_of(source, 10)
    assert list(read_chunk(chunk)) == [
        (0, {"text": "4", "other": "", "score": 4}),
        (1, {"text": "05", "other": "NA", "score": 5}),
    ]


def test_parquet_of_a_folder_is_compressed_too(tmp_path: Path) -> None:
    for number, (suffix, compress) in enumerate(COMPRESS.items()):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": [suffix, "x"]}), sink, row_group_size=1)
        put(tmp_path / f"{number}.parquet.{suffix}", compress(sink.getvalue().to_pybytes()))
    assert rows(tmp_path) == [text for suffix in COMPRESS for text in (suffix, "x")]
