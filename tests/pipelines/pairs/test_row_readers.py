"""What a file holds, by other readers of the same bytes: JSON whole, the csv module, the library of
the compression. Damaged files and rows are named with their line.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_stores import TEXT
from runs import MakeRecipe

import pipelines.pairs.prepare
import pipelines.pairs.sources
from pipelines.commands.plan import run_plan
from pipelines.errors import UserError
from pipelines.pairs.bounds import LONGEST
from pipelines.pairs.detection import detect, form_of
from pipelines.pairs.forms import pairs_of_row
from pipelines.pairs.prepare import _rows_of_task, check_sources
from pipelines.pairs.row_plan import RowPlan, digest_of
from pipelines.pairs.row_readers import Record, _array_records, csv_header
from pipelines.pairs.sources import Chunk, chunks_of, read_chunk, read_rows, sampled_rows
from pipelines.pairs.tasks import ReadTask, block_of, rows_of
from pipelines.recipe.schema import ColumnNames, DataSection, Source


def in_parts(content: bytes, compress: Callable[[bytes], bytes]) -> bytes:
    """Two compressed streams, one after the other, as pigz and cat make them."""
    half = len(content) // 2
    return compress(content[:half]) + compress(content[half:])


def zst(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    "gz": lambda content: in_parts(content, gzip.compress),
    "bz2": lambda content: in_parts(content, bz2.compress),
    "xz": lambda content: in_parts(content, lzma.compress),
    "zst": lambda content: in_parts(content, zst),
}


def texts(count: int) -> list[dict[str, Any]]:
    """Values with everything that ends a string, a row or an element elsewhere."""
    rng = random.Random(count)
    parts = [
        '"',
        "\\",
        "\n",
        "\r\n",
        ",",
        "]",
        "}",
        "{",
        "[",
        "é",
        "\\u00e9",
        " ",
        "x" * 50,
        "\u2028",
    ]
    return [
        {name: "".join(rng.choices(parts, k=rng.randrange(8))) for name in ("text", "other")}
        for _ in range(count)
    ]


def written(kind: str, rows: list[dict[str, Any]]) -> bytes:
    if kind == "jsonl":
        lines = (json.dumps(r, ensure_ascii=False) + "\n" * (1 + i % 2) for i, r in enumerate(rows))
        return "".join(lines).encode()
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False).encode()
    if kind == "indented.json":
        return b"\xef\xbb\xbf\n" + json.dumps(rows, indent=2).encode() + b"\n\n"
    if kind == "csv":
        sheet = io.StringIO(newline="")
        out = csv.DictWriter(sheet, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
        return b"\xef\xbb\xbf" + sheet.getvalue().encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=7)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("codec", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "indented.json", "csv", "parquet"])
def test_rows_keep_number_and_text_in_every_format_compression_and_chunking(
    tmp_path: Path, kind: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In few chunks for a compressed file, with lines that are those of the uncompressed text."""
    rows = texts(40)
    content = written(kind, rows)
    path = tmp_path / f"f.{kind}{'.' + codec if codec else ''}"
    path.write_bytes(COMPRESS[codec](content))
    monkeypatch.setattr(pipelines.pairs.row_readers, "_BLOCK_BYTES", 97)
    for size in (1, 6, 1000):
        for most in (64, 3):
            monkeypatch.setattr(pipelines.pairs.sources, "_MOST_SEQUENTIAL", most)
            chunks = chunks_of(Source(path=str(path)), size)
            if kind != "parquet":
                expected = -(-40 // size)
                assert len(chunks) <= (min(expected, most) if codec else expected)
                assert codec or len(chunks) == expected
            found = [row for chunk in chunks for row in read_rows(chunk)]
            assert [(row.number, row.values) for row in found] == list(enumerate(rows))
            if kind != "parquet":
                lines = [int(row.place.rsplit(":", 1)[1]) for row in found]
                assert lines == lines_of(kind, content, rows)


def lines_of(kind: str, content: bytes, rows: list[dict[str, Any]]) -> list[int]:
    """Where every row begins: by writing what comes before it and counting its lines."""
    if kind == "csv":
        return [
            written("csv", rows[:i] or [rows[0]]).count(b"\n") + 1 if i else 2
            for i in range(len(rows))
        ]
    if kind == "jsonl":
        return [written("jsonl", rows[:i]).count(b"\n") + 1 for i in range(len(rows))]
    if kind == "json":
        return [1] * len(rows)
    return [3 + 4 * i for i in range(len(rows))]


def test_a_csv_is_text(tmp_path: Path) -> None:
    """Case 6: numbers and booleans; and dates, NA, leading zeros, empty cells, white space."""
    cells = [
        "4",
        "true",
        "1e3",
        "007",
        "NA",
        "2024-01-01",
        "",
        " x ",
        "None",
        "-0.0",
        "inf",
        "=1+1",
    ]
    sheet = "prompt,chosen,rejected\n" + "".join(f"p,{cell},5\n" for cell in cells)
    path = tmp_path / "f.csv"
    path.write_text(sheet)
    found = [row for chunk in chunks_of(Source(path=str(path)), 5) for _, row in read_chunk(chunk)]
    assert found == [{"prompt": "p", "chosen": cell, "rejected": "5"} for cell in cells]


def test_score_columns_of_a_csv_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text(
        "prompt,chosen,rejected,best,worst\np,4,5, 0.5 ,1e-3\np,4,5,high,1\np,4,5,,1_0\n"
    )
    names = ColumnNames(chosen_score="best", rejected_score="worst")
    source = Source(path=str(path), columns=names)
    (chunk,) = chunks_of(source, 10)
    rows = [row for _, row in read_chunk(chunk)]
    assert [(row["best"], row["worst"]) for row in rows if row] == [
        (0.5, 0.001), ("high", 1.0), ("", "1_0")
    ]  # fmt: skip
    assert rows[0] is not None
    form = form_of("text", rows[0], names)
    (pair,) = pairs_of_row(rows[0], form, DataSection(sources=(source,)), None)
    assert (pair.chosen, pair.chosen_score, pair.rejected_score) == ("4", 0.5, 0.001)
    task = ReadTask(0, TEXT, (chunk,))
    batch = pa.Table.from_pylist([task.item()])
    assert ReadTask.of_batch(batch) == task, "columns stay as they were"


ROW = b'{"text": "x"}\n'


@pytest.mark.parametrize(
    ("name", "content", "bad"),
    [
        (
            "f.jsonl",
            ROW + b"[1]\n\n3\n" + ROW,
            {1: (2, "not a JSON obj"), 2: (4, "not a JSON obj")},
        ),
        (
            "f.jsonl",
            b'[1, 2]\n{"text": "\xff"}\n' + ROW,
            {0: (1, "not a"), 1: (2, "not a JSON obj")},
        ),
        ("f.jsonl", b'{"text": "x\n' + ROW, {0: (1, "not a JSON object")}),
        ("f.jsonl", b'{"a": ' + b"[" * 200_000 + b"\n" + ROW, {0: (1, "")}),
        ("f.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n" + ROW, {0: (1, "not a JSON object")}),
        ("f.json", b'[{"text": "x"},\n 7,\n\n{"text": nope}]', {1: (2, "not"), 2: (4, "not")}),
        ("f.json", b'[{"text": "x"} {"text": "y"}, {"text": "x"}]', {0: (1, "not a JSON object")}),
        (
            "f.json",
            b'[{"text": "x"},\n{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}]",
            {1: (2, "nested too deeply")},
        ),
        ("f.csv", b'text,b\n"x\ny",1\nx\nx,1,2\nx,1\n', {1: (4, "1 cells"), 2: (5, "3 cells")}),
        ("f.csv", b"text,b\nx,1\n\n\xff,1\nx,2\n", {1: (4, "not valid UTF-8")}),
    ],
)
def test_a_row_that_cannot_be_read_is_one_row_with_its_line(
    tmp_path: Path, name: str, content: bytes, bad: dict[int, tuple[int, str]]
) -> None:
    for suffix, compress in (("", bytes), (".gz", gzip.compress)):
        path = tmp_path / (name + suffix)
        path.write_bytes(compress(content))
        for size in (1, 100):
            rows = [r for c in chunks_of(Source(path=str(path)), size) for r in read_rows(c)]
            assert [row.number for row in rows] == list(range(len(rows))) and len(rows) > len(bad)
            found = {row.number: row for row in rows if row.values is None}
            assert found.keys() == bad.keys()
            for number, (line, fault) in bad.items():
                assert found[number].place.split(":")[:2] == [path.name, str(line)]
                assert fault in found[number].fault
                assert found[number].fault


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("f.jsonl", '{"text": "x"}\n\n{"text": "a" "b"}\n{"text": "é", nope}\n', ["3:14", "4:15"]),
        ("f.jsonl", '{"text": "x"}\n  {"text": \n', ["2:11"]),
        ("f.jsonl", '{"text": "x"}\n7\n', ["2"]),
        ("f.json", '[{"text": "x"},\n\n{"text":\n nope}]', ["4:2"]),
        ("f.csv", "text,b\nx,1\nx\n", ["3"]),
    ],
)
def test_where_json_breaks_stands_beside_the_line(
    tmp_path: Path, name: str, content: str, places: list[str]
) -> None:
    """Counted by hand: characters from 1, of the file's own lines."""
    path = tmp_path / name
    path.write_text(content)
    for size in (1, 100):
        rows = [r for c in chunks_of(Source(path=str(path)), size) for r in read_rows(c)]
        found = [row.place for row in rows if row.values is None]
        assert found == [f"{name}:{place}" for place in places]


_PAIR = b'{"prompt": "a", "chosen": " b", "rejected": " c"}\n'
_EMPTY = b'{"prompt": "a", "chosen": "", "rejected": " c"}\n'
_DEEP = b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"
_SHEET = b"prompt,chosen,rejected\n"


@pytest.mark.parametrize(
    ("name", "content", "pairs", "rejected"),
    [
        # Beyond the rows that are sampled: 400 and the first pair were looked at, of 500.
        ("f.jsonl", _EMPTY * 400 + _PAIR * 100, 1, {"empty response": 499}),
        ("f.jsonl.gz", gzip.compress(_PAIR * 6), 6, {}),
        ("f.ndjson.xz", lzma.compress(_PAIR * 6), 6, {}),
        ("f.csv", _SHEET + b"p,4,5\np,true,false\n", 2, {}),
        ("f.csv.bz2", bz2.compress(_SHEET + b"p,007,NA\np,2024-01-01,1e3\nTrue,-0,0x1\n"), 3, {}),
        ("f.jsonl", _PAIR * 4 + _DEEP, 4, {"the JSON is nested too deeply": 1}),
        ("f.jsonl", _DEEP + _PAIR * 4, 4, {"the JSON is nested too deeply": 1}),
        ("f.jsonl", _PAIR * 4 + b"9" * 5000 + b"\n", 4, {"the line is not a JSON object": 1}),
    ],
    ids=["late", "gz", "xz", "numbers", "other types", "deep", "deep first", "long"],
)
def test_plan_counts_what_was_refused_once(
    name: str,
    content: bytes,
    pairs: int,
    rejected: dict[str, int],
    make_recipe: MakeRecipe,
    tmp_path: Path,
) -> None:
    """Cases 3, 6 and 9, and of each kind some that nobody reported: every row is a pair, or is
    rejected alone.
    """
    (tmp_path / name).write_bytes(content)
    alone = ("data.test_fraction=0", "evaluate.benchmarks=[]")
    recipe = make_recipe(f"data.sources=[{{path: {tmp_path / name}}}]", *alone)
    found = run_plan(recipe)["data"]
    assert (sum(found["pairs"].values()), found["rejected"]) == (pairs, rejected)


def test_only_what_was_looked_at_whole_is_refused_before_the_work(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By plan, which looks at all rows, whatever their number."""
    (tmp_path / "f.jsonl").write_bytes(_EMPTY * 5)
    recipe = make_recipe(f"data.sources=[{{path: {tmp_path / 'f.jsonl'}}}]")
    line = r"^no usable training pair in .*f.jsonl \(empty response: 5\); "
    for most in (6, 5):
        monkeypatch.setattr(pipelines.pairs.prepare, "_LOOKED_AT", most)
        with pytest.raises(UserError, match=line) if most == 6 else nullcontext():
            check_sources(recipe, None)
        with pytest.raises(UserError, match=line):
            run_plan(recipe)


def test_a_rejected_row_says_its_file_and_line(tmp_path: Path, model_dir: Path) -> None:
    row = {"prompt": "a", "chosen": " b", "rejected": " c"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n\n{nothing\n")
    (tmp_path / "b.csv").write_text('prompt,chosen,rejected\n"a\n", b, c\na,,c\n')
    data = DataSection(sources=(Source(path=str(tmp_path)),))
    plan = RowPlan(data)
    for chunk in chunks_of(data.sources[0], 1):
        block = rows_of(block_of(_rows_of_task(ReadTask(0, TEXT, (chunk,)), data, str(model_dir))))
        assert isinstance(block, pa.Table)
        plan.add(digest_of(block, data))
    plan.settle()
    assert list(plan.rejected_rows()) == [
        {"source": 0, "row": 1, "reason": "the line is not a JSON object", "place": "a.jsonl:3:2"},
        {"source": 0, "row": 3, "reason": "empty response", "place": "b.csv:4"},
    ]


def parquet() -> bytes:
    content = bytearray(written("parquet", texts(40)))
    return bytes(content)


def test_what_breaks_later_breaks_in_one_line(tmp_path: Path) -> None:
    """A row group whose pages are damaged; a compressed file that is cut after it was counted."""
    content = bytearray(parquet())
    content[30:200] = b"\xff" * 170
    (tmp_path / "f.parquet").write_bytes(content)
    chunks = chunks_of(Source(path=str(tmp_path / "f.parquet")), 10)
    with pytest.raises(UserError, match="f.parquet: not readable as parquet"):
        [list(read_chunk(chunk)) for chunk in chunks]
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(ROW * 9))
    chunk = Chunk("jsonl", str(tmp_path / "f.jsonl.gz"), 0, 0, 9 * len(ROW), codec="gz")
    assert len(list(read_chunk(chunk))) == 9
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(ROW * 9)[:20])
    with pytest.raises(UserError, match="f.jsonl.gz: not readable as jsonl"):
        list(read_chunk(chunk))
    for name, codec, content in (("f.jsonl.gz", "gz", gzip.compress(ROW)), ("f.jsonl", "", ROW)):
        (tmp_path / name).write_bytes(content)
        chunk = Chunk("jsonl", str(tmp_path / name), 1, len(ROW), 3 * len(ROW), codec=codec)
        with pytest.raises(UserError, match=f"{name} changed while it was read"):
            list(read_chunk(chunk))


def test_a_source_whose_rows_are_all_unreadable_says_the_first(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text("\nnothing\nhere\n")
    source = Source(path=str(tmp_path / "f.jsonl"))
    with pytest.raises(UserError, match="first rows can be read; f.jsonl:2:1: the line"):
        detect(source, sampled_rows(chunks_of(source, 10)))


def test_headers_and_elements_are_read_in_the_time_of_their_length() -> None:
    """100,000 columns, and an element of 40 blocks: seconds where every column, or block, was
    looked at again for each that follows.
    """
    began = time.process_time()
    names = [f"c{number}" for number in range(100_000)]
    assert csv_header(Record(1, 1, 1, names), "f.csv") == tuple(names)
    with pytest.raises(UserError, match="two columns are called 'c7'"):
        csv_header(Record(1, 1, 1, [*names, "c7"]), "f.csv")
    text = b'{"a": "' + b"x" * (40 * 2**20) + b'"}'
    element, end = _array_records(io.BytesIO(text + b"]"), 1, 1)
    assert element.text == text and (end.text, end.fault) == (None, "end")
    assert time.process_time() - began < 10


def test_a_row_is_not_read_beyond_a_million_tokens(tmp_path: Path) -> None:
    """Its texts count together; the rows beside it are kept."""
    texts = [{"a": "x"}, {"a": ["x" * LONGEST], "b": {"c": "y"}}, {"a": "x" * (LONGEST - 1)}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in texts))
    (chunk,) = chunks_of(Source(path=str(file)), 10)
    found = list(read_rows(chunk))
    assert [row.fault for row in found] == ["", "its texts have over 4,194,304 characters", ""]
    assert [row.values for row in found] == [texts[0], None, texts[2]]
