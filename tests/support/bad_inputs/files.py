"""Data sources that are not there, cannot be read, or do not hold what the recipe needs."""

import bz2
import gzip
import json
import lzma
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bad_inputs.world import Bad, Make, Options, World

_PAIR = {"prompt": "a", "chosen": " b", "rejected": " c"}
ROW = json.dumps(_PAIR) + "\n"
_SHEET = b"prompt,chosen,rejected\n"
_CHAT = {
    side: [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]
    for side, text in (("chosen", "b"), ("rejected", "c"))
}


def zst(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([_PAIR] * 40), sink, row_group_size=7)
    return bytes(sink.getvalue())


def _damaged_pages() -> bytes:
    content = bytearray(parquet())
    content[30:200] = b"\xff" * 170
    return bytes(content)


def _put(name: str, content: str | bytes) -> Make:
    return lambda world: world.source(content, name)


def _folder(*names: str, **more: str) -> Make:
    def make(world: World) -> Options:
        for name in names:
            world.file(ROW, f"data/{name}")
        return world.read(world.folder / "data", **more)

    return make


def _empty(world: World) -> Options:
    (world.folder / "data").mkdir()
    return world.read(world.folder / "data")


def _named(name: str, **more: str) -> Make:
    return lambda world: world.read(world.folder / name, **more)


def _fifo(world: World) -> Options:
    os.mkfifo(world.folder / "pipe.jsonl")
    return world.read(world.folder / "pipe.jsonl")


def _socket(world: World) -> Options:
    here = Path.cwd()
    os.chdir(world.folder)  # a socket's name has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("s.jsonl")
    finally:
        os.chdir(here)
    return world.read(world.folder / "s.jsonl")


def _circle(world: World) -> Options:
    (world.folder / "one.jsonl").symlink_to("two.jsonl")
    (world.folder / "two.jsonl").symlink_to("one.jsonl")
    return world.read(world.folder / "one.jsonl")


def _below_a_file(world: World) -> Options:
    return world.read(world.file(ROW) / "more.jsonl")


def _saved(**more: str) -> Make:
    """What save_to_disk writes of two splits; a file of one is gone."""

    def make(world: World) -> Options:
        world.file(json.dumps({"splits": ["train", "test"]}), "saved/dataset_dict.json")
        for split in ("train", "test"):
            state = {"_data_files": [{"filename": "data-0.arrow"}], "_split": split}
            world.file(json.dumps(state), f"saved/{split}/state.json")
        world.file(b"", "saved/test/data-0.arrow")
        if "split" not in more:
            world.file(b"", "saved/train/data-0.arrow")
        return world.read(world.folder / "saved", **more)

    return make


def _torn(world: World) -> Options:
    for name in ("state.json", "data.arrow"):
        world.file("{}", f"saved/{name}")
    return world.read(world.folder / "saved")


def _card(files: str) -> Make:
    def make(world: World) -> Options:
        card = f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n"
        world.file(card, "set/README.md")
        world.file(ROW, "set/rows.jsonl")
        return world.read(world.folder / "set")

    return make


def _subsets(world: World) -> Options:
    world.file("---\nconfigs:\n- config_name: a\n- config_name: b\n---\n", "set/README.md")
    return world.read(world.folder / "set")


def _weights(weights: object) -> Make:
    columns = {"columns": "{chosen_weights: w, rejected_weights: w}"}
    masked = ["objective.name=mapo", "mask.kind=external"]
    return lambda world: [*masked, *world.rows({**_PAIR, "w": weights}, **columns)]


DAMAGED: dict[str, Bad] = {
    "a cut gz": (_put("f.jsonl.gz", gzip.compress(ROW.encode() * 5000)[:-9]), "not readable as js"),
    "a cut bz2": (_put("f.jsonl.bz2", bz2.compress(ROW.encode() * 5000)[:-9]), "not readable as"),
    "a cut xz": (
        _put("f.json.xz", lzma.compress(ROW.encode() * 5000)[:-9]), "not readable as json"
    ),
    "a cut zst": (_put("f.csv.zst", zst(_SHEET + b"a,b,c\n" * 5000)[:-9]), "not readable as csv"),
    "a gz that is none": (_put("f.jsonl.gz", ROW), "f.jsonl.gz: not readable as jsonl"),
    "an xz that is none": (_put("f.csv.xz", _SHEET), "not readable as csv"),
    "a gz that does not say so": (
        _put("f.jsonl", gzip.compress(ROW.encode())),
        "is compressed (gz), which its name does not say: call it *.jsonl.gz",
    ),
    "a zst that does not say so": (_put("f.csv", zst(_SHEET)), "is compressed (zst)"),
    "UTF-16 in a CSV": (
        _put("f.csv", _SHEET.decode().encode("utf-16")), "is UTF-16: write it as UTF-8"
    ),
    "UTF-16 in JSON": (_put("f.jsonl", ROW.encode("utf-16")), "is UTF-16: write it as UTF-8"),
    "one object": (_put("f.json", ROW), "is a single JSON object, not rows"),
    "an object over lines": (
        _put("f.json", '{\n "text": [\n{"a": 1}]}'), "line 1: a JSON object over several lines"
    ),
    "an object over later lines": (
        _put("f.jsonl", '\n{"text":\n"x"}\n'), "line 2: a JSON object over several lines"
    ),
    "an array without an end": (
        _put("f.json", '[{"text": "x"},\n{"text": "y"}'), "line 2: ", "its array has no end"
    ),
    "an array with more behind it": (
        _put("f.json", '[{"text": "x"}]\n{"text": "y"}'), "text follows its array"
    ),
    "a quote that stays open": (
        _put("f.csv", _SHEET + b'x,1,2\n"x,1,2\nx,1,2\n'),
        "line 3: ",
        "a quote opens there that nothing closes",
    ),
    "a quote in a cell": (
        _put("f.csv", _SHEET + b'x,1,2\n"x"y,1,2\n'), "line 3: not readable as csv", "expected"
    ),
    "two columns of one name": (
        _put("f.csv", b"text,b,text\nx,1,y\n"), "two columns are called 'text'"
    ),
    "a header that is not UTF-8": (
        _put("f.csv", b"t\xffxt\nx\n"), "line 1: the header is not valid UTF-8"
    ),
    "no Parquet": (_put("f.parquet", b"PAR1" + b"x" * 100), "not readable as parquet"),
    "a cut Parquet": (_put("f.parquet", parquet()[:-50]), "not readable as parquet"),
    "a Parquet.gz that is none": (_put("f.parquet.gz", parquet()), "not readable as parquet"),
    "damaged pages": (_put("f.parquet", _damaged_pages()), "f.parquet: not readable as parquet"),
    "no row that can be read": (
        _put("f.jsonl", "\nnothing\nhere\n"),
        "none of its first rows can be read; f.jsonl:2:1: the line is not a JSON object",
    ),
}  # fmt: skip

BAD: dict[str, Bad] = DAMAGED | {
    "texts that are to be taken apart": (
        lambda world: world.rows(_PAIR, transcripts="messages"),
        "transcripts = messages, and its form is text: only HH transcripts are taken apart",
    ),
    "no source": (["data.sources=[{path: /nowhere/x.jsonl}]"], "'/nowhere/x.jsonl': no such file"),
    "no held-out source": (
        ["data.test=[{path: /nowhere/x.jsonl}]"], "'/nowhere/x.jsonl': no such file"
    ),
    "no source of validation": (
        ["data.validation=[{path: /nowhere/x.jsonl}]"], "'/nowhere/x.jsonl': no such file"
    ),
    "a data set that was never fetched": (
        ["data.sources=[{path: nobody/nothing}]"],
        "'nobody/nothing' is neither a file nor a data set that can be loaded",
    ),
    "an empty source": (_put("f.jsonl", ""), "holds no row"),
    "a header without rows": (_put("f.csv", _SHEET), "holds no row"),
    "an array without rows": (_put("f.json", "[]"), "holds no row"),
    "a format that is none": (_put("file.txt", ROW), "format not recognised"),
    "an archive": (_put("file.zip", b""), "format not recognised; set format to"),
    "a folder of other files": (
        _folder("pairs.zip", "pairs.tsv"),
        "holds pairs.tsv, pairs.zip (no format that is read): nothing that is read",
    ),
    "an empty folder": (_empty, "is empty: nothing that is read"),
    "a pattern that nothing matches": (_named("z*.jsonl"), "no such file"),
    "a pattern with two stars in a name": (_named("b**.jsonl"), "** stands between slashes"),
    "a FIFO": (_fifo, "pipe.jsonl' is a FIFO: only files"),
    "a socket": (_socket, "s.jsonl' is a socket: only files"),
    "a device": (
        lambda w: w.read("/dev/zero", format="jsonl"), "'/dev/zero' is a device: only files"
    ),
    "a source that no file can be called": (_named("x" * 300 + ".jsonl"), "255"),
    "a source with a byte 0": (_named("a\0.jsonl"), "no file can be called so"),
    "links in a circle": (_circle, "levels of symbolic links"),
    "a folder that is a file": (_below_a_file, "no such file"),
    "several splits": (_folder("train.jsonl", "test.jsonl"), "say which with split, or split: all"),
    "a split and a file of none": (
        _folder("train.jsonl", "extra.jsonl"),
        "train (train.jsonl), files of no split (extra.jsonl): say which",
    ),
    "no such split": (
        _folder("train.jsonl", "test.jsonl", split="validation"),
        "no split 'validation', it holds test (test.jsonl), train (train.jsonl)",
    ),
    "a part of a split": (
        _folder("train.jsonl", "test.jsonl", split='"train[:10%]"'), "no split 'train[:10%]'"
    ),
    "a split of files without": (
        _folder("part-0.jsonl", split="test"), "split = 'test', but no file's name there says"
    ),
    "no such folder below": (_folder("a/train.jsonl", data_dir="honest"), "no such file, direct"),
    "a subset of files": (
        _folder("train.jsonl", subset="a"), "subset = 'a' is of Hugging Face data sets"
    ),
    "a subset of a file": (
        lambda w: w.source(ROW, subset="a"), "subset = 'a' is of Hugging Face data sets"
    ),
    "a saved data set whose state is empty": (_torn, "save_to_disk"),
    "a saved data set of two splits": (_saved(), "holds test (data-0.arrow), train"),
    "a saved data set without its data": (_saved(split="train"), "data-0.arrow is missing"),
    "a card that leads outside": (
        _card("../secret.jsonl"), "names '../secret.jsonl', which lies outside of it"
    ),
    "a card that names a root": (_card("/etc/passwd"), "which lies outside of it"),
    "a card that names another place": (
        _card("hf://datasets/a/b.jsonl"), "which lies outside of it"
    ),
    "a card that names nothing there": (_card("none-*.jsonl"), "no file there is none-*.jsonl"),
    "a card that names a number": (_card("{train: 3}"), "neither a path nor a split"),
    "a card that is no YAML": (_card("["), "the head of its README.md is not valid YAML"),
    "several subsets": (_subsets, "the subsets a, b: say which with subset"),
    "no such column": (
        lambda w: w.source(ROW, form="text", columns="{chosen: good}"),
        "has no column 'good': its columns are chosen, prompt, rejected",
    ),
    "columns of no form": (lambda w: w.rows({"a": 1, "b": 2}), "['a', 'b'] fit no form"),
    "rows of two forms": (
        lambda w: w.source(ROW + '{"messages": [{"role": "user", "content": "a"}]}\n'),
        "mixes forms: text (prompt, chosen, rejected) at file.jsonl:1",
    ),
    "columns of two forms": (
        lambda w: w.rows({"prompt": "p", "response": "a", "completion": "b", "label": 1}),
        "two forms fit, unpaired of text",
    ),
    "a form that nothing fits": (
        lambda w: w.rows({"chosen": " a", "rejected": " b"}), "nothing asks for them"
    ),
    "labels that are none": (
        lambda w: w.rows({"prompt": "p", "response": "a", "label": "safe"}),
        "label is 'safe', neither true nor false",
    ),
    "messages as text": (
        lambda w: w.rows({"prompt": "p", "chosen": "[{'role': 1}]", "rejected": "b"}),
        "chosen is the text of messages (JSON)",
    ),
    "rows of which almost all would be cut off": (
        lambda w: w.rows(*[{**_PAIR, "chosen": "a b " * 2**20 + "c"}] * 3),
        "none of its first rows can be read; file.jsonl:1: its texts have over 4,194,304 char",
    ),
    "nothing rejected": (
        lambda w: w.rows({"prompt": "a", "chosen": "b"}, form="chosen_only"),
        "has no rejected responses",
    ),
    "no label": (
        lambda w: [
            "objective.name=kto", *w.rows({"prompt": "a", "chosen": "b"}, form="chosen_only")
        ],
        "has neither labels nor rejected responses: objective kto needs them",
    ),
    "candidates that would be several rows": (
        lambda w: [
            *("objective.name=kto", "data.pairing=all"),
            *w.rows({"prompt": "a", "responses": ["b", "c", "d"], "scores": [2, 1, 0]}),
        ],
        "data.pairing=all with objective.name=kto would take a candidate several times",
    ),
    "texts alone": (lambda w: w.rows({"text": "a"}), "has no rejected responses"),
    "no scores": (
        ["objective.name=odpo", "data.min_gap=0.1"], "has no scores, which objective odpo needs"
    ),
    "no token weights": (
        ["objective.name=mapo", "mask.kind=external"],
        "no token weights, which mask.kind=external needs",
    ),
    "no token weights for a producer": (
        ["objective.name=weighted", "mask.kind=exp_ratio", "mask.source=external"],
        "no token weights, which mask.kind=exp_ratio needs",
    ),
    "no token weights for tis_dpo": (
        ["objective.name=tis_dpo", "objective.source=external"],
        "no token weights, which objective.name=tis_dpo needs",
    ),
    "weights of candidates": (
        lambda w: w.rows(
            {"prompt": "a", "responses": ["b", "c"], "scores": [1, 0], "w": [1.0]},
            columns="{chosen_weights: w, rejected_weights: w}",
        ),
        "candidates of the scored form cannot carry token weights",
    ),
    "empty responses": (
        lambda w: w.rows(*[{**_PAIR, "chosen": ""}] * 3),
        "no usable training pair in ",
        "(empty response: 3)",
    ),
    "rows of many faults": (
        lambda w: w.rows(_PAIR | {"prompt": ""}, _PAIR | {"chosen": " c"}, _PAIR | {"chosen": 3}),
        "no usable training pair in ",
        "empty prompt: 1",
        "chosen and rejected are identical: 1",
        "chosen is int, not a string: 1",
    ),
    "gaps that are too small": (
        lambda w: [
            "data.min_gap=0.5",
            *w.rows({"prompt": "a", "responses": ["b", "c"], "scores": [1, 0.9]}),
        ],
        "no usable training pair in ",
        "score gap below min_gap: 1",
    ),
    "weights that are too few": (
        _weights([1.0] * 99), "no usable training pair", "99 token weights for a response of"
    ),
    "weights below zero": (
        _weights([-1.0] * 3), "no usable training pair", "negative or not finite"
    ),
    "weights that are text": (_weights("x"), "no usable training pair", "w is not a list of numb"),
    "chat without a template": (
        lambda w: w.rows(_CHAT), "a chat template"
    ),
    "held-out chat without a template": (
        lambda w: [
            f"data.test=[{{path: {w.file(json.dumps(_CHAT))}}}]"
        ],
        "a chat template",
    ),
}  # fmt: skip
