"""The stages on a real local Ray: what they write, drop, skip, share and refuse."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from report_views import own_part
from runs import MakeRecipe, run_here, silent, trainer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.commands.report import run_report
from pipelines.commands.run import run_stages
from pipelines.commands.sft import sft_recipe
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, REPORT, SAMPLE, TRAIN
from pipelines.commands.status import run_status
from pipelines.errors import UserError
from pipelines.pairs.table import PairTable, open_pairs
from pipelines.recipe.run_paths import RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.stage import run_facts
from pipelines.reference.store import open_reference
from pipelines.storage import RunStore
from pipelines.train import read_metrics
from pipelines.train.trainer import Trainer
from sparsepo import LearnedMasks, ReferenceModel, padded_layout

pytestmark = pytest.mark.usefixtures("ray_cluster")
SPARSE = ("objective.name=sparsepo", "mask.kind=learned")


def train_here(recipe: Recipe, steps: int | None = None) -> Trainer:
    """The training loop of one rank in this process; `steps` stops it early, as a kill would,
    without cleaning up.
    """
    trainer = trainer_of(recipe)
    if steps is not None:
        reports = []

        def stop(metrics: dict[str, Any]) -> None:
            reports.append(metrics)
            if metrics["step"] >= steps:
                assert trainer.checkpoints.failure(wait=True) is None
                raise InterruptedError

        with pytest.raises(InterruptedError):
            trainer.run(stop)
    else:
        trainer.run(lambda metrics: None)
    return trainer


def weights(run_dir: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(run_dir) / "train" / "model" / "model.safetensors")


def logged(run_dir: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for part in sorted((Path(run_dir) / "train" / "metrics").iterdir())
        for line in part.read_text().splitlines()
    ]


def test_prepare_counts_drops_and_splits(
    make_recipe: MakeRecipe, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    held_out = tmp_path / "held.jsonl"
    held_out.write_text(json.dumps(rows[0]) + "\n")
    bad = [
        {"prompt": "p", "chosen": "", "rejected": "x"},
        {"prompt": "p", "chosen": 5, "rejected": "x"},
        {"prompt": "p", "chosen": "same", "rejected": "same"},
    ]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(
        "".join(json.dumps(r) + "\n" for r in [*rows[:40], *bad, rows[5]]) + "not json\n"
    )
    recipe = make_recipe(
        data={
            "sources": [{"path": str(mixed)}],
            "test": [{"path": str(held_out)}],
            "rows_per_task": 17,
            "shard_pairs": 16,
            "max_prompt_tokens": 24,
            "max_response_tokens": 24,
        }
    )
    counts = PREPARE.run(Run(recipe), print, True)["counts"]
    assert counts["rejected"] == {
        "chosen and rejected are identical": 1,
        "chosen is int, not a string": 1,
        "empty response": 1,
        "prompt is also in held-out data": 1,
        "the line is not a JSON object": 1,
    }
    assert counts["exact_duplicates"] == 1
    assert counts["pairs"] == {"train": 40, "validation": 0, "test": 1}
    assert counts["shards"]["train"] == [16, 16, 8]
    dropped = {
        (r["row"], r["reason"])
        for r in map(
            json.loads, RunPaths.of(recipe).pairs.read_bytes("rejected_rows.jsonl").splitlines()
        )
    }
    assert (40, "empty response") in dropped
    assert (0, "prompt is also in held-out data") in dropped
    table = open_pairs(Run(recipe))
    ids = table.column("train", "pair_id")
    assert len(set(ids)) == 40, "a duplicate row keeps its own identity"
    assert table.column("train", "row") == [*range(1, 40), 43]
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.name_or_path)
    pair = table.pairs("train", [0])[0]
    assert (
        tokenizer.decode([int(i) for i in pair.prompt], skip_special_tokens=True)
        == rows[1]["prompt"]
    )
    assert Run(recipe).record(PREPARE).is_complete()


def test_splits_hold_no_common_prompt_and_weights_copy_rows(
    make_recipe: MakeRecipe, pairs_file: Path
) -> None:
    recipe = make_recipe(
        "data.validation_fraction=0.2", "data.sources[0].weight=2.5", "data.max_test_pairs=5"
    )
    counts = PREPARE.run(Run(recipe), print, True)["counts"]
    table = open_pairs(Run(recipe))
    prompts = {
        split: set(table.column(split, "prompt_hash")) for split in ("train", "validation", "test")
    }
    assert not prompts["train"] & (prompts["validation"] | prompts["test"])
    assert not prompts["validation"] & prompts["test"]
    assert counts["pairs"]["test"] == 5
    distinct = len({i.rsplit("-", 1)[0] for i in table.column("train", "pair_id")})
    assert 2 * distinct < counts["pairs"]["train"] < 3 * distinct, (
        "held-out rows are not copied, training rows 2.5 times on average"
    )


def test_store_equals_a_live_reference_and_grows_by_feature(
    make_recipe: MakeRecipe, model_dir: Path
) -> None:
    recipe = make_recipe("objective.name=mapo", "mask.kind=activation")
    run_stages(recipe, (PREPARE,), silent)
    first = make_recipe()
    assert REFERENCE.run(Run(first), print, True)["counts"]["features"] == {"reference_logps": ""}
    kept = (
        (Path(recipe.run_dir) / "reference" / "reference_logps" / "train-00000.parquet")
        .stat()
        .st_mtime_ns
    )
    manifest = REFERENCE.run(Run(recipe), print, True)
    assert set(manifest["counts"]["features"]) == {
        "reference_logps",
        "reference_hidden",
        "activation_mask",
    }
    assert (
        Path(recipe.run_dir) / "reference" / "reference_logps" / "train-00000.parquet"
    ).stat().st_mtime_ns == kept, "scored once"
    assert REFERENCE.run(Run(recipe), print, True) == manifest, "a complete store is left alone"

    table: PairTable = open_pairs(Run(recipe))
    store = open_reference(run_facts(Run(recipe)), table)
    rows = [5, 0, 40]
    stored = store.features(
        "train", rows, ["reference_logps", "reference_hidden", "activation_mask"]
    )
    live_model = ReferenceModel(
        AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    )
    live = live_model.features(
        padded_layout(table.pairs("train", rows)),
        ["reference_logps", "reference_hidden", "activation_mask"],
    )
    for name in ("reference_logps", "reference_hidden", "activation_mask"):
        torch.testing.assert_close(getattr(stored, name), getattr(live, name), atol=1e-5, rtol=0)
    torch.testing.assert_close(store.head().weight, live_model.head.weight)
    other = make_recipe("objective.name=mapo", "mask.kind=activation", "mask.hooks=mlp")
    with pytest.raises(
        UserError, match="holds activation_mask made with 'zn_rescale:all', now 'zn_rescale:mlp'"
    ):
        REFERENCE.run(Run(other), print, True)


@pytest.mark.slow
def test_another_models_store_is_refused(
    make_recipe: MakeRecipe, model_dir: Path, tmp_path: Path
) -> None:
    recipe = make_recipe()
    run_stages(recipe, (PREPARE, REFERENCE), silent)
    import shutil

    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    model.get_input_embeddings().weight.data += 1
    model.save_pretrained(other)
    with pytest.raises(UserError, match="holds another run's reference stage: input weights"):
        run_stages(make_recipe(f"model.name_or_path={other}"), (REFERENCE,), silent)
    with pytest.raises(UserError, match="setting data.max_prompt_tokens was 24, now it is 20"):
        run_stages(make_recipe("data.max_prompt_tokens=20"), (PREPARE,), silent)


@pytest.mark.slow
def test_stopped_training_resumes_to_the_same_bits(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Uninterrupted = stopped after step 4 (a checkpoint) and resumed; the log has every step
    once.
    """
    options = (*SPARSE, "mask.architecture=simple_last", "train.epochs=2", "train.max_steps=7")
    shared = {"paths": {"pairs": str(tmp_path / "pairs"), "reference": str(tmp_path / "reference")}}
    whole = make_recipe(*options, run_dir=str(tmp_path / "whole"), **shared)
    run_stages(whole, (PREPARE, REFERENCE), silent)
    train_here(whole)
    stopped = make_recipe(*options, run_dir=str(tmp_path / "stopped"), **shared)
    train_here(stopped, steps=4)
    resumed = train_here(stopped)
    assert resumed.step == 7
    a, b = weights(whole.run_dir), weights(stopped.run_dir)
    assert all(torch.equal(a[name], b[name]) for name in a)
    masks = [
        LearnedMasks.from_pretrained(f"{r.run_dir}/train/masks").state_dict()
        for r in (whole, stopped)
    ]
    assert all(torch.equal(masks[0][k], masks[1][k]) for k in masks[0])
    for run in (whole, stopped):
        assert [r["step"] for r in logged(run.run_dir)] == [1, 2, 3, 4, 5, 6, 7]
    assert [r["loss"] for r in logged(whole.run_dir)] == [
        r["loss"] for r in logged(stopped.run_dir)
    ]
    assert logged(whole.run_dir)[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.slow
def test_micro_batches_and_reference_mode_change_nothing_but_rounding(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Stored = online reference, one big micro-batch = many small ones; another seed is the
    negative control.
    """
    shared = {"paths": {"pairs": str(tmp_path / "pairs"), "reference": str(tmp_path / "reference")}}
    # The stored reference comes from another layout than the policy: a larger epsilon keeps its
    # rounding from becoming whole steps.
    base = (
        *SPARSE,
        "mask.architecture=simple_last",
        "train.max_steps=4",
        "mask.adam_eps=1e-4",
        "train.adam_eps=1e-4",
    )

    def losses(name: str, *options: str) -> torch.Tensor:
        recipe = make_recipe(*base, *options, run_dir=str(tmp_path / name), **shared)
        run_stages(recipe, (PREPARE, REFERENCE), silent)
        train_here(recipe)
        return torch.tensor([r["loss"] for r in logged(recipe.run_dir)])

    stored = losses("stored")
    for name, option in (
        ("online", "reference.mode=online"),
        ("whole", "train.micro_batch_tokens=100000"),
        ("one", "train.micro_batch_tokens=1"),
    ):
        other = losses(name, option)
        assert float(((other - stored) / stored).abs().max()) < 3e-5, name
    assert float(((losses("seed", "train.seed=1") - stored) / stored).abs().max()) > 1e-3


def test_a_diverged_loss_stops_with_its_step_and_pairs(make_recipe: MakeRecipe) -> None:
    from pipelines.errors import StageFailed

    recipe = make_recipe("train.learning_rate=1e30", "train.max_steps=6", "train.warmup_fraction=0")
    run_stages(recipe, (PREPARE, REFERENCE), silent)
    with pytest.raises(
        StageFailed, match=r"is not finite at step \d; pairs [0-9a-f]{24}-0, .*last good checkpoint"
    ):
        train_here(recipe)


@pytest.mark.slow
def test_run_writes_everything_and_skips_it_the_second_time(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """All stages; the model loads in plain transformers, the masks by one call; status and
    report see the run.
    """
    recipe = make_recipe(*SPARSE, "train.max_steps=3", "data.validation_fraction=0.1")
    lines: list[str] = []
    outcome = run_stages(
        recipe, (PREPARE, REFERENCE, TRAIN, EVALUATE, REPORT), lines.append, quiet=True
    )
    assert outcome == dict.fromkeys(outcome, "done") | {"reference": outcome["reference"]}
    model = AutoModelForCausalLM.from_pretrained(f"{recipe.run_dir}/train/model")
    tokenizer = AutoTokenizer.from_pretrained(f"{recipe.run_dir}/train/model")
    prompt = tokenizer("The plot was", return_tensors="pt").input_ids
    assert model.generate(prompt, max_new_tokens=5).shape[1] > prompt.shape[1]
    assert (
        LearnedMasks.from_pretrained(f"{recipe.run_dir}/train/masks").config["architecture"]
        == "simple_all"
    )
    card = (Path(recipe.run_dir) / "train" / "model" / "README.md").read_text()
    assert "sparsepo from" in card
    assert "`validation/loss`" in card
    assert f"- `{Path(recipe.data.sources[0].path).name}`" in card
    assert f"Pairs after preparation: {open_pairs(Run(recipe)).num_rows('train')} train" in card
    results = {
        p.stem: json.loads(p.read_text())
        for p in (Path(recipe.run_dir) / "evaluation").glob("*.json")
    }
    assert {"preference", "sentiment", "masks"} <= set(results)
    assert (
        results["preference"]["accuracy/implicit_reward"]["n"] == results["preference"]["num_pairs"]
    )
    assert results["sentiment"]["num_prompts"] == 16
    again = run_stages(recipe, (PREPARE, REFERENCE, TRAIN, EVALUATE), lines.append)
    assert set(again.values()) == {"skipped"}
    states = {row["stage"]: row["state"] for row in run_status(recipe.run_dir)}
    assert states["train"] == states["evaluate"] == states["report"] == "done"
    with pytest.raises(UserError, match="setting objective.beta was 0.1, now it is 0.3"):
        run_stages(
            make_recipe(
                *SPARSE, "objective.beta=0.3", "train.max_steps=3", "data.validation_fraction=0.1"
            ),
            (TRAIN,),
            silent,
        )
    page = own_part(Path(run_report([recipe.run_dir])).read_text())
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "This is a toy world" in page, "its model comes from the quickstart's world"
    beside = Path(recipe.run_dir) / "report"
    curves = list(csv.DictReader((beside / "curves.csv").open()))
    metrics = list(read_metrics(RunStore(f"{recipe.run_dir}/train")))
    assert [float(row["loss"]) for row in curves] == [m["loss"] for m in metrics if "kind" not in m]
    numbers = {
        (row["benchmark"], row["number"]): row
        for row in csv.DictReader((beside / "numbers.csv").open())
    }
    gain = results["sentiment"]["reward/gain"]
    held = numbers["sentiment", "reward/gain"]
    assert (float(held["mean"]), float(held["low"])) == (gain["mean"], gain["low"])


@pytest.mark.slow
def test_one_and_two_workers_agree_and_a_changed_pair_shows(
    make_recipe: MakeRecipe, rows: list[dict[str, str]], ranks: Ranks, tmp_path: Path
) -> None:
    """20 fp32 steps of one rank in this process and of two: relative difference of the losses at
    most 1e-4; one other pair exceeds that tenfold. Ray Train's ranks are in test_strategies.py.
    """

    changed_file = tmp_path / "changed.jsonl"
    swapped = [
        {**r, "chosen": r["rejected"], "rejected": r["chosen"]} if i == 50 else r
        for i, r in enumerate(rows)
    ]
    changed_file.write_text("".join(json.dumps(r) + "\n" for r in swapped))

    def scored(name: str, pairs: str, *options: str) -> Recipe:
        recipe = make_recipe(
            "objective.name=mapo", "mask.kind=activation", "train.max_steps=20", "train.epochs=5",
            "data.test_fraction=0", *options,
            run_dir=str(tmp_path / name),
            paths={"pairs": f"{tmp_path}/{pairs}", "reference": f"{tmp_path}/{pairs}-reference"},
        )  # fmt: skip
        run_stages(recipe, (PREPARE, REFERENCE), silent)
        return recipe

    def losses(recipe: Recipe) -> torch.Tensor:
        found = torch.tensor([r["loss"] for r in logged(recipe.run_dir)])
        assert len(found) == 20
        return found

    one = scored("one", "pairs", "train.num_workers=1")
    train_here(one)
    expected = losses(one)
    two = scored("two", "pairs", "train.num_workers=2")
    ranks.train(two)
    assert float(((expected - losses(two)) / expected).abs().max()) <= 1e-4
    other = scored("other", "changed", f"data.sources[0].path={changed_file}")
    train_here(other)
    assert float(((expected - losses(other)) / expected).abs().max()) > 1e-3
    three = scored("three", "pairs", "train.num_workers=3")
    with pytest.raises(UserError, match="train.num_workers = 3 x 1 CPUs: the cluster has 2"):
        TRAIN.run(Run(three), print, True)


@pytest.mark.slow
def test_sft_then_sample(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """sft lowers the loss, and its model samples scored candidates."""
    base = make_recipe("sft.epochs=4", "sft.learning_rate=3e-3", "data.test_fraction=0")
    sft = sft_recipe(base)
    run_here(sft, (PREPARE, TRAIN))
    model = RunPaths.of(sft).model
    losses = [r["nll_per_token"] for r in logged(f"{base.run_dir}/sft")]
    assert losses[-1] < losses[0] - 1
    recipe = make_recipe(
        f"model.name_or_path={model}",
        "sample.num_candidates=3",
        "sample.max_prompts=60",
        run_dir=str(tmp_path / "s"),
    )
    counts = SAMPLE.run(Run(recipe), print, True)["counts"]
    assert (counts["prompts"], counts["candidates"], counts["rejected"]) == (60, 180, {})
    candidates = [
        json.loads(line)
        for line in (tmp_path / "s" / "sample" / "candidates.jsonl").read_text().splitlines()
    ]
    assert all(len(c["responses"]) == len(c["scores"]) == 3 for c in candidates)
    assert len({r for c in candidates for r in c["responses"]}) > 100, (
        "candidates are samples, not one answer"
    )


def test_evaluation_needs_a_model_and_held_out_pairs(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("data.test_fraction=0", "train.max_steps=1")
    with pytest.raises(UserError, match="no trained model"):
        EVALUATE.run(Run(recipe), print, True)
    run_stages(recipe, (PREPARE,), silent)
    with pytest.raises(UserError, match="no finished reference stage"):
        open_reference(run_facts(Run(recipe)), open_pairs(Run(recipe)))
    assert not Run(recipe).record(REFERENCE).is_complete()
    with pytest.raises(UserError, match="train needs the reference stage"):
        run_stages(recipe, (TRAIN,), silent)
