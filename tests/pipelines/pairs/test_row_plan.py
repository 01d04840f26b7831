"""The plan of prepare's rows against the same rules followed row by row with dictionaries, and
its drawn parts.
"""

import hashlib
import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.pairs.prepare import prompt_hash
from pipelines.pairs.row_plan import RowPlan, digest_of
from pipelines.pairs.table import SPLITS
from pipelines.recipe.schema import DataSection

Row = dict[str, Any]


def key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def section(**settings: Any) -> DataSection:
    sources = [{"path": "a", "weight": 1.6}, {"path": "b", "weight": 0.5}]
    return DataSection.model_validate(
        {"sources": sources, "validation": [{"path": "v"}], "test": [{"path": "t"}], **settings}
    )


def random_rows(seed: int, count: int) -> list[Row]:
    """Pairs of few prompts, so that every rule meets some; a twentieth are no pairs."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for number in range(count):
        base = {
            "source": min(3, number * 5 // count),
            "row": number,
            "pair_id": None,
            "prompt_hash": None,
            "reason": None,
        }
        if rng.random() < 0.05:
            rows.append({**base, "reason": rng.choice(["empty prompt", "empty response"])})
        else:
            prompt = f"prompt {rng.randrange(count // 3)}"
            rows.append(
                {**base, "pair_id": key(f"{prompt} {rng.randrange(2)}"), "prompt_hash": key(prompt)}
            )
    return rows


def blocks_of(rows: list[Row], size: int) -> list[pa.Table]:
    types = {
        "source": pa.int32(),
        "row": pa.int64(),
        "pair_id": pa.string(),
        "prompt_hash": pa.string(),
        "reason": pa.string(),
        "place": pa.string(),
    }
    whole = pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))
    return [whole.slice(start, size) for start in range(0, len(rows), size)]


def row_by_row(
    rows: list[Row], own: list[Row], data: DataSection
) -> tuple[dict[str, list[tuple[int, str]]], Counter[str], list[int]]:
    """(pairs (row, name) of every split in order, reasons, dropped rows)."""
    fate: dict[int, str] = {i: row["reason"] for i, row in enumerate(rows) if row["reason"]}
    held_out = {
        row["prompt_hash"] for row, part in zip(rows, own, strict=True) if part["split"] in (1, 2)
    }
    seen = set()
    for i, (row, part) in enumerate(zip(rows, own, strict=True)):
        if i in fate:
            continue
        if part["split"] == 0 and row["prompt_hash"] in held_out:
            fate[i] = "prompt is also in held-out data"
        elif data.deduplicate and (part["split"], row["pair_id"]) in seen:
            fate[i] = "exact duplicate"
        elif part["copies"] == 0:
            fate[i] = "left out by the source's weight"
        seen.add((part["split"], row["pair_id"]))
    for number, split in enumerate(SPLITS):
        alive = sorted(
            (own[i]["rank"], i)
            for i in range(len(rows))
            if i not in fate and own[i]["split"] == number
        )
        limit = getattr(data, f"max_{split}_pairs")
        for _, i in alive[len(alive) if limit is None else limit :]:
            fate[i] = f"beyond max_{split}_pairs"
    written: dict[str, list[tuple[int, str]]] = {split: [] for split in SPLITS}
    names: Counter[tuple[str, str]] = Counter()
    for i, row in enumerate(rows):
        if i not in fate:
            split = SPLITS[own[i]["split"]]
            for _ in range(own[i]["copies"]):
                written[split].append((i, f"{row['pair_id']}-{names[split, row['pair_id']]}"))
                names[split, row["pair_id"]] += 1
    return written, Counter(fate.values()), sorted(fate)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"deduplicate": False},
        {
            "validation_fraction": 0.1,
            "test_fraction": 0.1,
            "max_train_pairs": 40,
            "max_test_pairs": 5,
        },
        {"deduplicate": False, "validation_fraction": 0.3, "max_validation_pairs": 30},
    ],
)
@pytest.mark.parametrize("is_shuffled", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_plan_is_what_the_rules_say_row_by_row(
    settings: dict[str, Any], seed: int, is_shuffled: bool
) -> None:
    """Whatever the order in which tasks bring the rows."""
    data, rows = section(**settings), random_rows(seed, 400)
    order = list(range(400))
    if is_shuffled:
        random.Random(seed).shuffle(order)
    digests = [digest_of(block, data) for block in blocks_of([rows[i] for i in order], 37)]
    own = dict(zip(order, pa.concat_tables(digests).to_pylist(), strict=True))
    expected, reasons, dropped = row_by_row(rows, [own[i] for i in range(400)], data)
    plan = RowPlan(data)
    for digest in digests:
        plan.add(digest)
    plan.settle()
    assert plan.reasons == reasons
    assert [found["row"] for found in plan.rejected_rows()] == dropped
    found: dict[str, list[tuple[int, str]]] = {split: [] for split in SPLITS}
    sizes: dict[str, list[int]] = {split: [] for split in SPLITS}
    for shard in plan.shards(16):
        assert shard.number == len(sizes[shard.split])
        sizes[shard.split].append(sum(len(taken) for _, taken, _ in shard.parts))
        for block, taken, occurrences in shard.parts:
            for within, occurrence in zip(taken, occurrences, strict=True):
                i = order[37 * block + int(within)]
                found[shard.split].append((i, f"{rows[i]['pair_id']}-{occurrence}"))
    assert found == expected
    for split, lengths in sizes.items():
        assert plan.num_pairs(split) == sum(lengths) == len(expected[split])
        assert all(length == 16 for length in lengths[:-1])


def test_fractions_and_weights_are_met_by_hashes_alone() -> None:
    """Of 4,000 prompts a tenth goes to each held-out split; weights 1.6 and 0.5 give that many
    copies; order changes nothing.
    """
    data = section(validation_fraction=0.1, test_fraction=0.1)
    rows = [
        {
            "source": i % 2,
            "row": i,
            "pair_id": key(f"pair {i}"),
            "prompt_hash": key(f"prompt {i}"),
            "reason": None,
        }
        for i in range(4000)
    ]
    own = pa.concat_tables([digest_of(block, data) for block in blocks_of(rows, 500)]).to_pylist()
    splits = np.array([part["split"] for part in own])
    assert np.abs(np.bincount(splits) / 4000 - [0.8, 0.1, 0.1]).max() < 0.015
    for source, weight in ((0, 1.6), (1, 0.5)):
        copies = [part["copies"] for part in own if part["split"] == 0 and part["source"] == source]
        assert abs(np.mean(copies) - weight) < 0.05
        assert set(copies) == {int(weight), int(weight) + 1}
    backwards = pa.concat_tables(
        [digest_of(block, data) for block in blocks_of(rows[::-1], 500)]
    ).to_pylist()
    assert backwards[::-1] == own


def test_a_source_without_any_pair_leaves_nothing_to_write() -> None:
    plan = RowPlan(section())
    plan.settle()
    assert (plan.num_rows, list(plan.shards(16)), list(plan.rejected_rows())) == (0, [], [])


def test_another_seed_draws_another_split_and_keeps_other_rows() -> None:
    """Of 2,000 prompts two seeds put as many into the same split as chance does: 0.5 * 0.5 + 0.1 *
    0.1 + 0.4 * 0.4 = 0.42. What a limit keeps of them has nothing in common either.
    """
    rows = [
        {"source": 0, "row": i, "pair_id": key(f"pair {i}"), "prompt_hash": key(f"prompt {i}"),
         "reason": None}
        for i in range(2000)
    ]  # fmt: skip
    (block,) = blocks_of(rows, 2000)

    def drawn(seed: int) -> pa.Table:
        fractions = {"validation_fraction": 0.1, "test_fraction": 0.4}
        return digest_of(block, section(split_seed=seed, **fractions))

    one, other = drawn(0), drawn(1)
    assert one.equals(drawn(0))
    same = np.mean(one["split"].to_numpy() == other["split"].to_numpy())
    assert same == pytest.approx(0.42, abs=0.05)
    ranks = [table["rank"].to_numpy() for table in (one, other)]
    assert abs(np.corrcoef(ranks)[0, 1]) < 0.1


def test_case_and_white_space_make_no_other_prompt() -> None:
    assert prompt_hash("The plot\n was  GOOD .\n") == prompt_hash("the plot was good .")
    assert prompt_hash("the plot was good") != prompt_hash("the plot was good .")
