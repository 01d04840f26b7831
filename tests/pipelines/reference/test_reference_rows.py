"""Rows that the reference cannot score: reported, left out, and too many of them stop the stage."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import MakeRecipe, silent, trainer_of
from transformers import AutoModelForCausalLM

from pipelines.commands.run import run_stages
from pipelines.commands.stages import REFERENCE
from pipelines.errors import StageFailed
from pipelines.pairs.table import open_pairs
from pipelines.recipe.run_paths import MARKERS
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.actor import ShardScorer, ShardTask
from pipelines.reference.scoring import scoring_facts
from pipelines.reference.stage import run_facts
from pipelines.reference.store import open_reference
from sparsepo import ReferenceModel, padded_layout

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def small_vocabulary(
    model_dir: Path, scored: Recipe, tmp_path: Path
) -> tuple[Path, dict[str, set[int]]]:
    """A model that lacks the tokens that fewest rows hold; split -> the rows that hold one."""
    pairs = open_pairs(Run(scored))
    held = {
        split: [
            {int(i) for ids in (p.prompt, *p.responses()) for i in ids}
            for p in pairs.pairs(split, range(pairs.num_rows(split)))
        ]
        for split in ("train", "test")
    }
    largest = sorted({max(ids) for rows in held.values() for ids in rows})
    vocabulary = largest[-6] + 1
    lost = {
        split: {row for row, ids in enumerate(rows) if max(ids) >= vocabulary}
        for split, rows in held.items()
    }
    folder = tmp_path / "small"
    shutil.copytree(model_dir, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(vocabulary)
    model.save_pretrained(folder)
    return folder, lost


def test_a_failing_row_is_reported_and_left_out(
    scored: Recipe,
    recipe_in: MakeRecipe,
    tmp_path: Path,
    small_vocabulary: tuple[Path, dict[str, set[int]]],
) -> None:
    """Tokens beyond the vocabulary: those rows are null, all others are what the whole model's
    cut head gives them.
    """
    folder, lost = small_vocabulary
    assert lost["train"]
    recipe = recipe_in(
        tmp_path / "run",
        f"model.reference={folder}",
        "reference.max_failed_fraction=0.9",
        paths={"pairs": f"{scored.run_dir}/pairs"},
    )
    lines: list[str] = []
    run_stages(recipe, (REFERENCE,), lines.append, quiet=True)
    assert (
        f"{len(lost['train']) + len(lost['test'])} rows could not be scored: failed_rows.jsonl"
        in lines[-1]
    )
    reported = [
        json.loads(line)
        for line in (Path(recipe.run_dir) / "reference" / "failed_rows.jsonl")
        .read_text()
        .splitlines()
    ]
    assert {(r["split"], r["row"]) for r in reported} == {
        (split, row) for split, rows in lost.items() for row in rows
    }
    pairs = open_pairs(Run(recipe))
    ids = pairs.column("train", "pair_id")
    assert all(r["pair_id"] == ids[r["row"]] for r in reported if r["split"] == "train")
    assert all("beyond the reference's vocabulary" in r["reason"] for r in reported)
    rows = [row for row in range(pairs.num_rows("train")) if row not in lost["train"]]
    stored = (
        open_reference(run_facts(Run(recipe)), pairs)
        .features("train", rows, ["reference_logps"])
        .reference_logps
    )
    live = ReferenceModel(AutoModelForCausalLM.from_pretrained(folder)).features(
        padded_layout(pairs.pairs("train", rows)), ["reference_logps"]
    )
    torch.testing.assert_close(stored, live.reference_logps, atol=1e-5, rtol=0)
    trainer = trainer_of(recipe)
    assert trainer.rows["train"] == rows
    seen = [
        trainer.rows["train"][place]
        for step in range(trainer.sampler.steps_per_epoch)
        for place in trainer.sampler.pair_indices(step)
    ]
    assert sorted(seen) == rows, "an epoch has every usable row once"
    # The same reference in the place of a scorer, whose feature comes later.
    with_scorer = recipe_in(
        tmp_path / "run",
        f"model.reference={folder}",
        f"model.positive_scorer={scored.model.name_or_path}",
        "objective.name=tis_dpo",
        "reference.max_failed_fraction=0.9",
        paths={"pairs": f"{scored.run_dir}/pairs"},
    )
    run_stages(with_scorer, (REFERENCE,), lambda line: None, quiet=True)
    markers = Path(recipe.run_dir, "reference", MARKERS, "scorer_log_ratios").glob("*.json")
    reasons = [why for file in markers for why in json.loads(file.read_text())["failed"].values()]
    assert len(reasons) == len(reported)
    assert all("beyond the reference's vocabulary" in reason for reason in reasons)


def test_too_many_failing_rows_stop_the_stage_with_the_first_one(
    scored: Recipe,
    recipe_in: MakeRecipe,
    tmp_path: Path,
    small_vocabulary: tuple[Path, dict[str, set[int]]],
) -> None:
    recipe = recipe_in(
        tmp_path / "run",
        f"model.reference={small_vocabulary[0]}",
        "reference.max_failed_fraction=0.011",
        paths={"pairs": f"{scored.run_dir}/pairs"},
    )
    with pytest.raises(
        StageFailed,
        match=r"rows could not be scored, reference.max_failed_fraction = 0.011 allows 1; "
        r"the first: .*token \d+ is beyond",
    ):
        run_stages(recipe, (REFERENCE,), silent)


def test_a_row_whose_scores_are_not_finite_fails_alone(
    scored: Recipe, recipe_in: MakeRecipe, model_dir: Path, tmp_path: Path
) -> None:
    """The input embedding of one token is NaN (the head is its own matrix): just the rows with
    that token fail.
    """
    pairs = open_pairs(Run(scored))
    held = [
        {int(i) for ids in (p.prompt, *p.responses()) for i in ids}
        for p in pairs.pairs("train", range(pairs.num_rows("train")))
    ]
    rare = min(
        (token for ids in held for token in ids),
        key=lambda token: (sum(token in ids for ids in held), token),
    )
    folder = tmp_path / "nan"
    shutil.copytree(model_dir, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    head = model.get_output_embeddings().weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    model.get_input_embeddings().weight.data[rare] = torch.nan
    model.save_pretrained(folder)
    recipe = recipe_in(
        tmp_path / "run",
        f"model.reference={folder}",
        "reference.max_failed_fraction=0.9",
        paths={"pairs": f"{scored.run_dir}/pairs"},
    )
    run_stages(recipe, (REFERENCE,), silent)
    failed = Run(recipe).record(REFERENCE).manifest()["counts"]["failed"]["train"]
    # Every token before the rare one is finite, but at least one scored token after it is not,
    # unless it ends the text.
    assert set(map(int, failed)) <= {row for row, ids in enumerate(held) if rare in ids}
    assert failed and set(failed.values()) == {"reference_logps is not finite"}


def test_running_out_of_memory_names_the_setting(
    scored: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = ("reference_logps",)
    scorer = ShardScorer(scoring_facts(Run(scored), Run(scored).record(REFERENCE), features))
    monkeypatch.setattr(
        ReferenceModel,
        "features",
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("8 GiB")),
    )
    with pytest.raises(
        StageFailed,
        match="^out of memory on cpu with 4096 tokens per batch: lower reference.batch_tokens$",
    ):
        scorer(ShardTask("train", 0, features))
