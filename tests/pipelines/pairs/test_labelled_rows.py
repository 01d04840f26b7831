"""Rows with labels for an objective that reads them: what becomes of every form, which response
to another prompt each gets, and what is refused.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import MakeRecipe, silent

from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE
from pipelines.errors import UserError
from pipelines.pairs.mismatches import mismatched
from pipelines.pairs.show import shown
from pipelines.pairs.table import PairTable, open_pairs
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run

Prepare = Callable[..., tuple[Recipe, PairTable]]
NAMES = ("prompt", "chosen", "desirable", "rejected", "chosen_ids", "rejected_ids", "prompt_ids")


@pytest.fixture
def prepare(make_recipe: MakeRecipe, tmp_path: Path) -> Prepare:
    def run(rows: list[dict[str, Any]], *options: str, name: str = "run") -> Any:
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = make_recipe(
            "objective.name=kto",
            f"data.sources[0].path={source}",
            f"run_dir={tmp_path / name}",
            *options,
        )
        run_stages(recipe, (PREPARE,), silent)
        return recipe, open_pairs(Run(recipe))

    return run


def table(pairs: PairTable, split: str = "train") -> list[dict[str, Any]]:
    rows = pairs.values(split, range(pairs.num_rows(split)), NAMES)
    return [dict(zip(NAMES, row, strict=True)) for row in rows]


def labelled(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """One response each, labels in turn."""
    return [
        {"prompt": row["prompt"], "response": row["chosen"], "label": number % 3 > 0}
        for number, row in enumerate(rows)
    ]


def one_by_one(prompts: list[int]) -> list[int]:
    """The rule of `mismatched`, row by row."""
    count, found = len(prompts), []
    for row, prompt in enumerate(prompts):
        if len(set(prompts)) == 1:
            found.append((row - 1) % count)
            continue
        nearest, place = row, 0
        while prompts[nearest] == prompt:
            nearest = (nearest - 1) % count
        place = (row - nearest) % count - 1  # among the neighbours with its prompt
        further = (nearest - place) % count
        found.append(further if prompts[further] != prompt else nearest)
    return found


def test_every_row_takes_a_response_to_another_prompt() -> None:
    assert mismatched(np.array([7, 8, 9])).tolist() == [2, 0, 1]
    # Two rows a prompt, as pairs give: each takes another one of the pair before it.
    assert mismatched(np.array([1, 1, 2, 2, 3, 3])).tolist() == [5, 4, 1, 0, 3, 2]
    assert mismatched(np.array([4, 4, 4])).tolist() == [2, 0, 1]
    assert mismatched(np.array([4])).tolist() == [0]
    assert mismatched(np.array([], dtype=np.int64)).tolist() == []
    rng = random.Random(0)
    for _ in range(300):
        prompts = [rng.randrange(4) for _ in range(rng.randrange(1, 12))]
        found = mismatched(np.array(prompts)).tolist()
        assert found == one_by_one(prompts), prompts
        if len(set(prompts)) > 1:
            assert all(prompts[at] != prompts[row] for row, at in enumerate(found))


def test_rows_stay_rows_and_read_the_response_before_them(
    prepare: Prepare, rows: list[dict[str, str]]
) -> None:
    given = labelled(rows)
    recipe, pairs = prepare(given)
    labels = {(row["prompt"], row["response"]): row["label"] for row in given}
    found = table(pairs)
    assert len(found) + pairs.num_rows("test") == len(labels)
    for at, row in enumerate(found):
        assert row["desirable"] == labels[row["prompt"], row["chosen"]]
        before = found[at - 1]
        assert before["prompt"] != row["prompt"]
        assert row["rejected"] == before["chosen"]
        assert row["rejected_ids"] == before["chosen_ids"]
    texts = {row["chosen"] for row in found}
    held = table(pairs, "test")
    assert held and all(row["rejected"] not in texts or row["chosen"] in texts for row in held)
    lines = list(shown(Run(recipe), 1))
    assert any("every response is a row with its label" in line for line in lines)
    assert any(line.strip().startswith(("desirable (", "undesirable (")) for line in lines)
    assert any(line.strip().startswith("response to another prompt (") for line in lines)


def test_tasks_and_shards_do_not_show(prepare: Prepare, rows: list[dict[str, str]]) -> None:
    given = labelled(rows)
    expected = table(prepare(given)[1])
    options = ("data.rows_per_task=7", "data.shard_pairs=5")
    assert table(prepare(given, *options, name="cut")[1]) == expected


def test_a_pair_gives_two_rows(prepare: Prepare, rows: list[dict[str, str]]) -> None:
    """And its sides take those of the pair before it, one each."""
    recipe, pairs = prepare(rows)
    found = table(pairs)
    for good, bad in zip(found[::2], found[1::2], strict=True):
        assert (good["desirable"], bad["desirable"]) == (True, False)
        assert good["prompt"] == bad["prompt"]
    first, second = found[:2], found[2:4]
    assert [row["rejected"] for row in second] == [first[1]["chosen"], first[0]["chosen"]]
    sides = {(row["prompt"], row["chosen"], row["rejected"]) for row in rows}
    assert {
        (a["prompt"], a["chosen"], b["chosen"])
        for a, b in zip(found[::2], found[1::2], strict=True)
    } <= sides
    layouts = Run(recipe).record(PREPARE).manifest()["counts"]["layouts"]
    assert "each side is a row: chosen desirable, rejected not" in layouts[0]


def test_a_response_that_is_too_long_for_another_prompt_is_cut(
    prepare: Prepare, rows: list[dict[str, str]]
) -> None:
    """max_tokens is of prompt and response: the other prompt was shorter."""
    given = labelled(rows)
    for number, row in enumerate(given):
        row["prompt"] = " ".join([row["prompt"]] * (1 + number % 3))
    _, pairs = prepare(given, "data.max_prompt_tokens=30", "data.max_tokens=32")
    found = table(pairs)
    totals = [len(row["prompt_ids"]) + len(row["rejected_ids"]) for row in found]
    assert max(totals) == 32
    whole = [row["chosen_ids"] for row in found]
    cut = [row for at, row in enumerate(found) if row["rejected_ids"] != whole[at - 1]]
    assert cut and all(row["rejected_ids"] for row in found)


def test_the_estimate_counts_both_responses(
    prepare: Prepare, rows: list[dict[str, str]], make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe, _ = prepare(labelled(rows))
    exact = run_plan(recipe)["data"]
    again = recipe.model_copy(update={"run_dir": str(tmp_path / "elsewhere")})
    estimate = run_plan(again)["data"]
    assert exact["exact"] and not estimate["exact"]
    for name in ("pairs", "model_tokens"):
        assert estimate[name]["train"] == pytest.approx(exact[name]["train"], rel=0.25), name


def test_a_paired_loss_still_gets_pairs_of_them(
    prepare: Prepare, rows: list[dict[str, str]]
) -> None:
    given = [
        {"prompt": row["prompt"], "response": row[side], "label": side == "chosen"}
        for row in rows[:40]
        for side in ("chosen", "rejected")
    ]
    _, pairs = prepare(given, "objective.name=dpo")
    assert all(row["desirable"] is None for row in table(pairs))
    sides = {(row["prompt"], row["chosen"], row["rejected"]) for row in rows}
    assert {(row["prompt"], row["chosen"], row["rejected"]) for row in table(pairs)} <= sides


def test_pairs_of_one_objective_are_not_another_s_rows(
    prepare: Prepare, rows: list[dict[str, str]], make_recipe: MakeRecipe
) -> None:
    recipe, _ = prepare(rows, name="kto")
    other = make_recipe(
        "objective.name=dpo",
        f"data.sources[0].path={recipe.data.sources[0].path}",
        f"run_dir={recipe.run_dir}",
    )
    with pytest.raises(UserError, match="input labelled_rows was true, now it is absent"):
        run_stages(other, (PREPARE,), silent)


def test_labels_that_are_none_are_dropped_with_the_reason(
    prepare: Prepare, rows: list[dict[str, str]]
) -> None:
    given = labelled(rows)
    given[3]["label"] = "maybe"
    given[4]["response"] = " "
    recipe, _ = prepare(given)
    reasons = Run(recipe).record(PREPARE).manifest()["counts"]["rejected"]
    assert reasons == {"empty response": 1, "label is neither true nor false (1 nor 0)": 1}


TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def test_conversations_are_encoded_as_those_of_pairs(
    prepare: Prepare, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    """Labelled conversations, and both sides of pairs of them, against the pairs of another loss:
    the same ids, the same context, and the context goes with a response to another prompt.
    """
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    options = (
        *(f"data.chat_template={tmp_path}/template.jinja", "data.scored_turns=all"),
        *("data.max_prompt_tokens=60", "data.max_response_tokens=60", "data.test_fraction=0"),
        "evaluate.benchmarks=[]",
    )

    def turns(row: dict[str, str], side: str) -> list[dict[str, str]]:
        return [
            {"role": "assistant", "content": row[side]},
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["chosen"]},
        ]

    given = [row for row in rows if row["chosen"] != row["rejected"]][:20]
    asked = [[{"role": "user", "content": row["prompt"]}] for row in given]
    pairs = [
        {"prompt": ask, "chosen": turns(row, "chosen"), "rejected": turns(row, "rejected")}
        for ask, row in zip(asked, given, strict=True)
    ]
    unpaired = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    names = ("prompt_ids", "chosen_ids", "chosen_context", "rejected_ids", "rejected_context")

    def of(source: list[dict[str, Any]], *more: str, name: str) -> list[tuple[Any, ...]]:
        _, found = prepare(source, *options, *more, name=name)
        return found.values("train", range(found.num_rows("train")), names)

    expected = [
        (prompt, *side)
        for prompt, *sides in of(pairs, "objective.name=dpo", name="pairs")
        for side in (sides[:2], sides[2:])
    ]
    for source, name in ((pairs, "apart"), (unpaired, "rows")):
        found = of(source, name=name)
        assert [row[:3] for row in found] == expected, name
        assert all(context for _, _, context, _, _ in found)
        own = {(tuple(ids), tuple(context)) for _, ids, context, _, _ in found}
        assert all((tuple(ids), tuple(context)) in own for _, _, _, ids, context in found)


def test_of_candidates_the_best_and_the_worst_are_rows(
    prepare: Prepare, rows: list[dict[str, str]]
) -> None:
    given = [
        {
            "prompt": row["prompt"],
            "responses": [row["rejected"], row["chosen"], " between"],
            "scores": [0.1, 0.9, 0.5],
        }
        for row in rows
        if row["chosen"] != row["rejected"]
    ]
    _, pairs = prepare(given, "data.test_fraction=0", "evaluate.benchmarks=[]")
    found = [(row["prompt"], row["chosen"], row["desirable"]) for row in table(pairs)]
    assert found == [
        (row["prompt"], row["responses"][at], at == 1) for row in given for at in (1, 0)
    ]
