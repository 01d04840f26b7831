"""Pairs are read by column, their lengths from one file; what prepare's tasks say of themselves."""

import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from by_hand import accept_files
from pair_stores import TEXT, write_pairs
from runs import MakeRecipe
from stores import again, losses_of, store_files

import pipelines.cluster.shared_paths
from pipelines.commands.stages import PREPARE
from pipelines.errors import Failure, UserError
from pipelines.models.device import Placement
from pipelines.pairs.forms import Form
from pipelines.pairs.prepare import _digest, _run_task
from pipelines.pairs.row_plan import ShardRows, digest_of
from pipelines.pairs.sources import Chunk, chunks_of
from pipelines.pairs.table import PairTable, TokenLengths, open_pairs, pairs_of
from pipelines.pairs.tasks import ReadTask, block_of, result_of, rows_of
from pipelines.pairs.writer import _write
from pipelines.recipe.schema import DataSection, Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.train.micro_batches import MicroBatchLoader
from sparsepo import BatchLayout, TokenizedPair
from sparsepo.batching.cutting import rank_share


def in_shards(recipe: Recipe, split: str) -> list[dict[str, Any]]:
    """The rows of a split as pyarrow alone reads them."""
    files = sorted(Path(recipe.run_dir, "pairs").glob(f"{split}-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def count(row: dict[str, Any], shared: bool) -> int:
    prompt, chosen, rejected = (
        len(row[name] or ()) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    return prompt * (2 if rejected and not shared else 1) + chosen + rejected


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_stored_lengths_are_those_of_the_stored_ids(scored: Recipe, split: str) -> None:
    """Also without the file, as 0.7 prepared; an empty split has none."""
    rows = in_shards(scored, split)
    now = open_pairs(Run(scored))
    manifest = Run(scored).record(PREPARE).manifest()
    assert (f"lengths/{split}.parquet" in manifest["outputs"]) == bool(rows)
    before = PairTable(
        RunStore(f"{scored.run_dir}/pairs"),
        {**manifest, "outputs": {k: v for k, v in manifest["outputs"].items() if "/" not in k}},
    )
    for pairs in (now, before):
        for shared in (False, True):
            lengths = pairs.lengths(split, shared)
            assert lengths.dtype == np.int32
            assert lengths.tolist() == [count(row, shared) for row in rows]
        assert [asdict(pair) for pair in pairs.pair_lengths(split, range(len(rows)))] == [
            {side: len(row[f"{side}_ids"] or ()) for side in ("prompt", "chosen", "rejected")}
            for row in rows
        ]
    assert manifest["counts"]["model_tokens"][split] == sum(count(row, False) for row in rows)
    assert manifest["counts"]["shared_tokens"][split] == sum(count(row, True) for row in rows)
    assert manifest["counts"]["scored_tokens"][split] == sum(
        len(row["chosen_ids"]) + len(row["rejected_ids"] or ()) for row in rows
    )


def test_lengths_of_turns_that_are_not_scored() -> None:
    """Read, and not counted as scored; a table without the columns has none."""
    columns = {
        "prompt_ids": [[1], [2, 3]],
        "chosen_ids": [[1] * 7, [2]],
        "rejected_ids": [[5, 6], None],
    }
    contexts = {"chosen_context": [[0, 2, 4, 5], None], "rejected_context": [[0, 1], None]}
    lengths = TokenLengths.counted(pa.table({**columns, **contexts}))
    assert lengths.context.tolist() == [4, 0] and lengths.context.dtype == np.int32
    assert lengths.scored_tokens().tolist() == [5, 1]
    assert lengths.model_tokens().tolist() == [2 + 9, 2 + 1]
    assert TokenLengths.read(lengths.table()).scored_tokens().tolist() == [5, 1]
    for before in (
        TokenLengths.counted(pa.table(columns)),
        TokenLengths.read(lengths.table().drop_columns("context")),
    ):
        assert before.scored_tokens().tolist() == [9, 1]
    pairs = pairs_of(pa.table({**columns, **contexts}))
    assert [pair.num_scored() for pair in pairs] == [(4, 1), (1,)]
    assert [place.tolist() for place in pairs[0].scored_places()] == [[2, 3, 5, 6], [1]]


def test_a_file_of_lengths_that_is_lost_or_another_is_named(copied: Recipe) -> None:
    folder = Path(copied.run_dir, "pairs", "lengths")
    (folder / "train.parquet").write_bytes((folder / "test.parquet").read_bytes())
    with pytest.raises(UserError, match=r"lengths/train.parquet has \d+ rows, the train pairs hav"):
        open_pairs(Run(copied)).lengths("train")
    (folder / "train.parquet").unlink()
    with pytest.raises(UserError, match="lengths/train.parquet is missing: the pairs are incompl"):
        open_pairs(Run(copied)).lengths("train")
    (folder.parent / "train-00001.parquet").unlink()
    for read in (
        lambda pairs: pairs.pairs("train", [40]),
        lambda pairs: pairs.values("train", [40], ["pair_id"]),
        lambda pairs: pairs.column("train", "pair_id"),
    ):
        with pytest.raises(UserError, match="train-00001.parquet is missing: the pairs are incom"):
            read(open_pairs(Run(copied)))


def drawn_ids(count: int, has_rejected: bool) -> list[TokenizedPair]:
    rng = random.Random(count)

    def ids(most: int) -> list[int]:
        return [rng.randrange(50) for _ in range(rng.randint(1, most))]

    return [
        TokenizedPair(ids(40), ids(60), ids(60) if has_rejected else None) for _ in range(count)
    ]


@pytest.mark.parametrize("kind", ["padded", "shared", "packed"])
@pytest.mark.parametrize("has_rejected", [True, False])
@pytest.mark.parametrize("uses_rejected", [True, False])
def test_cuts_need_no_shard_and_equal_those_of_the_token_ids(
    tmp_path: Path, kind: Any, has_rejected: bool, uses_rejected: bool
) -> None:
    """The shards are gone when the cuts are made; three ranks in step and alone."""
    ids = drawn_ids(90, has_rejected)
    pairs = write_pairs(RunStore(str(tmp_path)), ids, shard_pairs=20)
    for shard in tmp_path.glob("train-*.parquet"):
        shard.unlink()
    shortened = [
        TokenizedPair(p.prompt, p.chosen, p.rejected if uses_rejected else None) for p in ids
    ]
    rows = random.Random(0).sample(range(90), 64)
    for is_balanced in (True, False):
        layout = BatchLayout(kind, 400, is_balanced)
        lengths = [
            len(p.prompt) * (2 if has_rejected and kind == "padded" else 1)
            + len(p.chosen)
            + len(p.rejected or ())
            for p in ids
        ]
        expected = []
        for rank in range(3):
            share = rank_share(rows, lengths, rank, 3)
            cut = layout.batches([shortened[row] for row in share])
            expected.append([tuple(share[index] for index in indices) for indices in cut])
        most = max(map(len, expected))
        for rank in range(3):
            placement = Placement.choose("auto", torch.device("cpu"), rank, 3)
            for aligned in (True, False):
                source: Any = None
                loader = MicroBatchLoader(pairs, source, layout, placement, aligned, uses_rejected)
                cuts = loader.cuts("train", rows)
                assert [cut.rows for cut in cuts if not cut.is_filler] == expected[rank]
                assert len(cuts) == (most if aligned else len(expected[rank]))
                assert all(type(row) is int for cut in cuts for row in cut.rows)


def test_kept_ids_are_the_stored_ones_in_any_order(tmp_path: Path) -> None:
    for has_rejected in (True, False):
        ids = drawn_ids(70, has_rejected)
        pairs = write_pairs(RunStore(str(tmp_path / str(has_rejected))), ids, shard_pairs=30)
        rows = random.Random(1).sample(range(70), 70)
        for row, pair in zip(rows, pairs.pairs("train", rows), strict=True):
            assert list(pair.prompt) == ids[row].prompt
            assert list(pair.chosen) == ids[row].chosen
            assert (pair.rejected is None) == (ids[row].rejected is None)
            assert pair.rejected is None or list(pair.rejected) == ids[row].rejected
        assert pairs.values("train", [69, 0], ["row", "prompt"]) == [
            (69, "prompt 69"),
            (0, "prompt 0"),
        ]


def spoil(file: Path, columns: set[str]) -> None:
    """Overwrite some columns' bytes, so that whoever reads one of them meets an error."""
    with pq.ParquetFile(file) as opened:
        groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    data = bytearray(file.read_bytes())
    for chunk in chunks:
        if chunk.path_in_schema.split(".")[0] in columns:
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            data[start : start + chunk.total_compressed_size] = (
                b"\xff" * chunk.total_compressed_size
            )
    file.write_bytes(data)


@pytest.mark.parametrize("place", [0.3, 0.6, -300, -40])
def test_a_flipped_shard_is_found_before_it_is_scored_or_trained_on(
    copied: Recipe, recipe_in: MakeRecipe, tmp_path: Path, place: float
) -> None:
    """In pages, which have checksums, and in headers and footers, which have none."""
    file = Path(copied.run_dir, "pairs", "train-00001.parquet")
    data = bytearray(file.read_bytes())
    data[int(place * len(data)) if 0 < place < 1 else int(place)] ^= 4
    file.write_bytes(data)
    said = "train-00001.parquet is damaged: its sha256 is not the manifest's; restore it, or remove"
    with pytest.raises(UserError, match=said):
        losses_of(copied)
    with pytest.raises(UserError, match=said):
        again(copied, recipe_in, tmp_path / "again")


@pytest.mark.slow
def test_scoring_and_training_never_read_a_text(
    copied: Recipe, scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """What they do not need cannot be read: same store, same losses."""
    losses = losses_of(copied)
    shutil.rmtree(Path(copied.run_dir, "train"))
    texts = {"prompt", "chosen", "rejected", "prompt_hash", "truncated", "source", "row"}
    for file in Path(copied.run_dir, "pairs").glob("*.parquet"):
        spoil(file, texts)
    accept_files(Run(copied).record(PREPARE).store)
    for name in sorted(texts):
        with pytest.raises(UserError, match=r"train-0000\d.parquet is damaged"):
            open_pairs(Run(copied)).column("train", name)
    torch.testing.assert_close(losses_of(copied), losses, rtol=0, atol=0)
    assert store_files(again(copied, recipe_in, tmp_path / "again")) == store_files(scored)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk("jsonl", "s3://b/ü.jsonl", 7, 10, 2**40),
        Chunk("huggingface", "a/b", 0, 0, 5, "train", None, "data"),
    ],
)
def test_a_task_survives_ray_data(chunk: Chunk) -> None:
    task = ReadTask(3, Form("scored", True, "q", ("a", "b"), scores=("c", None)), (chunk,), 1, 4)
    assert ReadTask.of_batch(pa.Table.from_pylist([task.item()])) == task


@pytest.mark.parametrize("kind", ["user", "stage", "superseded", "diverged"])
def test_a_failed_block_is_the_failure_whoever_shares_it(kind: Any) -> None:
    """Beyond 4,000 tasks several share a block of Ray Data."""
    failure = Failure(kind, 'the line: "ü" {}')
    rows = [{"source": 0, "row": 4, "reason": "empty prompt"}]
    block = pa.concat_tables([block_of(rows), block_of(failure), block_of(rows)])
    found = rows_of(block)
    assert found == failure
    assert _digest(block, section(Path("p")))[0] == failure
    with pytest.raises(type(failure.error()), match="the line") as raised:
        result_of(found)
    assert type(raised.value) is type(failure.error())
    whole = rows_of(block_of(rows))
    assert isinstance(whole, pa.Table) and "failure" not in whole.column_names
    assert digest_of(whole, section(Path("p")))["reason"].to_pylist() == ["empty prompt"]


def section(path: Path) -> DataSection:
    return DataSection.model_validate({"sources": [{"path": str(path)}]})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is not there is not waited for."""
    monkeypatch.setattr(pipelines.cluster.shared_paths, "_PATIENCE_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_chunk_that_cannot_be_read_is_a_failure_and_not_an_exception(
    pairs_file: Path, model_dir: Path
) -> None:
    """By the place where a machine looks, and by the tokenizer; the whole chunk otherwise."""
    data = section(pairs_file)
    (chunk,) = chunks_of(data.sources[0], 10**6)
    batch = pa.Table.from_pylist([ReadTask(0, TEXT, (chunk,)).item()])
    for tokenizer, paths, line in (
        (str(model_dir), {"run_dir": "/not/mounted/here"}, "does not see it"),
        ("/nowhere", {}, "model '/nowhere'"),
    ):
        block = _run_task(batch, data, tokenizer, paths)
        found = rows_of(block)
        assert isinstance(found, Failure) and found.kind == "user" and line in found.message
        assert _digest(block, data)[0] == found
    rows = rows_of(_run_task(batch, data, str(model_dir), {}))
    assert isinstance(rows, pa.Table) and rows.num_rows == len(pairs_file.read_text().splitlines())


@pytest.mark.usefixtures("impatient")
def test_a_shard_that_cannot_be_written_is_a_failure(
    ray_cluster: None, tmp_path: Path, scored: Recipe
) -> None:
    import ray

    rows = in_shards(scored, "train")[:3]
    block = ray.put(block_of(rows))
    shard = ShardRows("train", 0, [(0, np.arange(3), np.zeros(3, int))])
    (tmp_path / "file").write_text("")
    for root, paths, line in (
        (str(tmp_path / "file" / "pairs"), {}, "cannot write"),
        (str(tmp_path / "run"), {"run_dir": "/not/mounted/here"}, "does not see it"),
    ):
        found = _write(shard, {0: block}, root, paths)
        assert isinstance(found, Failure) and found.kind == "user" and line in found.message
        with pytest.raises(UserError, match=line):
            result_of(found)
    written = result_of(_write(shard, [block], str(tmp_path / "run"), {}))
    assert (written.split, written.path) == ("train", "train-00000.parquet")
    assert written.lengths.model_tokens().tolist() == [count(row, False) for row in rows]
