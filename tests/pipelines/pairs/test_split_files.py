"""split, subset and data_dir of local data: followed where the files say what they are, refused
where they cannot be.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import MakeRecipe

from pipelines.commands.plan import run_plan
from pipelines.commands.stages import PREPARE
from pipelines.errors import UserError
from pipelines.pairs.sources import chunks_of, left_out, read_chunk, source_fingerprint
from pipelines.recipe.schema import Source
from pipelines.recipe.stage import Run


def write(folder: Path, *names: str) -> Path:
    """A file per name, of one row that says the name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"text": [name]}), path)
        else:
            path.write_text(json.dumps({"text": name}) + "\n")
    return folder


def read(path: Path, **settings: Any) -> set[str]:
    found = {
        row["text"]
        for chunk in chunks_of(Source(path=str(path), **settings), 10)
        for _, row in read_chunk(chunk)
        if row
    }
    assert source_fingerprint(Source(path=str(path), **settings)).count("+") == len(found) - 1, (
        "its content is that of these files"
    )
    return found


HUB = (
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/test-00000-of-00001.parquet",
)
PREFS = (
    "data/train_prefs-00000-of-00001.parquet",
    "data/train_sft-00000-of-00001.parquet",
    "data/test_prefs-00000-of-00001.parquet",
)


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (("train.jsonl", "test.jsonl"), "train", {"train.jsonl"}),
        (("train.jsonl", "test.jsonl"), "test", {"test.jsonl"}),
        (("train.jsonl", "test.jsonl"), "all", {"train.jsonl", "test.jsonl"}),
        (("a/train/0.jsonl", "a/dev/0.jsonl"), "validation", {"a/dev/0.jsonl"}),
        (("a/train/0.jsonl", "a/dev/0.jsonl"), "dev", {"a/dev/0.jsonl"}),
        (("eval/train.jsonl", "eval/test.jsonl"), "train", {"eval/train.jsonl"}),
        (("hh_training.jsonl", "hh_eval.jsonl", "notes.jsonl"), "test", {"hh_eval.jsonl"}),
        (HUB, "train", set(HUB[:2])),
        (PREFS, "train_prefs", {PREFS[0]}),
        (("part-0.jsonl", "part-1.jsonl"), "train", {"part-0.jsonl", "part-1.jsonl"}),
        (("part-0.jsonl", "part-1.jsonl"), None, {"part-0.jsonl", "part-1.jsonl"}),
        (("test-0.jsonl", "test-1.jsonl"), None, {"test-0.jsonl", "test-1.jsonl"}),
        (("contest.jsonl", "latest.jsonl"), None, {"contest.jsonl", "latest.jsonl"}),
    ],
)
def test_a_directory_or_pattern_is_read_by_its_split(
    tmp_path: Path, names: tuple[str, ...], split: str | None, expected: set[str]
) -> None:
    folder = write(tmp_path / "test_data", *names)
    assert read(folder, split=split) == expected
    if all("/" not in name for name in names):
        assert read(folder / "*", split=split) == expected


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (
            ("train.jsonl", "test.jsonl"),
            None,
            r"holds test \(test.jsonl\), train \(train.jsonl\): say which with split, or split: "
            r"all",
        ),
        (HUB, None, "holds test .*, train .*: say which with split"),
        (
            ("train.jsonl", "extra.jsonl"),
            None,
            r"train \(train.jsonl\), files of no split \(extra.jsonl\): say which",
        ),
        (
            ("train.jsonl", "test.jsonl"),
            "validation",
            "no split 'validation', it holds test .*, train",
        ),
        (("train.jsonl", "test.jsonl"), "train[:10%]", r"no split 'train\[:10%\]'"),
        (PREFS, "train", r"no split 'train', it holds test_prefs .*, train_prefs .*, train_sft"),
        (("part-0.jsonl", "part-1.jsonl"), "test", "split = 'test', but no file's name there says"),
    ],
)
def test_files_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, names: tuple[str, ...], split: str | None, message: str
) -> None:
    folder = write(tmp_path / "data", *names)
    for act in (lambda source: chunks_of(source, 10), source_fingerprint):
        with pytest.raises(UserError, match=message):
            act(Source(path=str(folder), split=split))


def test_other_splits_are_named_unless_another_source_reads_them(tmp_path: Path) -> None:
    """By words in names, by folders, and files of no split; one file of each, and how many."""
    names = (
        "train-0.jsonl",
        "test-0.jsonl",
        "test-1.jsonl",
        "eval/a.jsonl",
        "dev/b.jsonl",
        "c.csv",
    )
    folder = write(tmp_path / "data", *names)

    def of(split: str) -> Source:
        return Source(path=str(folder), split=split)

    (line,) = left_out([of("train")])
    assert line == (
        f"data source '{folder}' leaves out c.csv (of no split); dev/b.jsonl (of split "
        "'validation'); eval/a.jsonl and 2 more (of split 'test')"
    )
    both = left_out([of("train"), of("test")])
    assert both == [
        f"data source '{folder}' leaves out c.csv (of no split); dev/b.jsonl (of split "
        "'validation')"
    ]
    assert left_out([of("train"), of("all")]) == left_out([of("all")]) == []
    (pattern,) = left_out([Source(path=f"{folder}/*.jsonl", split="test")])
    assert pattern.endswith("leaves out train-0.jsonl (of split 'train')")


def test_a_single_file_is_what_it_is_called(tmp_path: Path) -> None:
    write(tmp_path, "test.jsonl", "pairs.jsonl", "data/test-00000-of-00001.parquet")
    assert read(tmp_path / "test.jsonl") == {"test.jsonl"}
    assert read(tmp_path / "test.jsonl", split="test") == {"test.jsonl"}
    assert read(tmp_path / "pairs.jsonl", split="train") == {"pairs.jsonl"}
    for name, split in (
        ("test.jsonl", "train"),
        ("data/test-00000-of-00001.parquet", "train"),
        ("pairs.jsonl", "test"),
    ):
        with pytest.raises(UserError, match=f"split.* '{split}'"):
            chunks_of(Source(path=str(tmp_path / name), split=split), 10)


def test_subset_and_data_dir_are_followed_or_refused(tmp_path: Path) -> None:
    """A directory has folders, files and patterns have not, and none has subsets; through the
    hub's library both are its business.
    """
    folder = write(
        tmp_path / "hh", "helpful/train.jsonl", "helpful/test.jsonl", "harmless/train.jsonl"
    )
    assert read(folder, data_dir="helpful", split="train") == {"helpful/train.jsonl"}
    with pytest.raises(UserError, match="no such file, directory"):
        chunks_of(Source(path=str(folder), data_dir="honest", split="train"), 10)
    for path, settings in (
        (folder, {"subset": "helpful"}),
        (folder / "helpful" / "train.jsonl", {"subset": "x"}),
        (folder / "helpful" / "train.jsonl", {"data_dir": "x"}),
        (folder / "helpful" / "*.jsonl", {"data_dir": "x", "split": "train"}),
    ):
        with pytest.raises(UserError, match="is of Hugging Face data sets, these are files"):
            chunks_of(Source(path=str(path), **settings), 10)
    chunks = chunks_of(
        Source(path=str(folder), format="huggingface", data_dir="helpful", split="test"), 10
    )
    assert [row for chunk in chunks for _, row in read_chunk(chunk)] == [
        {"text": "helpful/test.jsonl"}
    ]


def test_plan_and_prepare_refuse_before_any_work(
    make_recipe: MakeRecipe, pairs_file: Path, tmp_path: Path
) -> None:
    """A split left out and the split that there is are the same pairs: the recorded settings do
    not tell them apart.
    """
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text(pairs_file.read_text())
    recipe = make_recipe(f"data.sources=[{{path: {tmp_path / 'data'}}}]")
    for act in (run_plan, lambda recipe: Run(recipe).record(PREPARE)):
        with pytest.raises(UserError, match="say which with split"):
            act(recipe)
    one, other = (
        make_recipe(f"data.sources=[{{path: {pairs_file}{text}}}]")
        for text in ("", ", split: train")
    )
    assert Run(one).record(PREPARE).fingerprint() == Run(other).record(PREPARE).fingerprint()
    assert Run(one).record(PREPARE).settings["data.sources[0].split"] == "train"
