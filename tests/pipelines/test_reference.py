"""The reference stage: exact, the same bytes however it was made, and never used wrongly. Real local Ray and models."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines.batch_layout import BatchLayout
from pipelines.config import Recipe
from pipelines.errors import StageFailed, UserError
from pipelines.feature_source import feature_source
from pipelines.models import load_causal_lm, weights_fingerprint
from pipelines.placement import Placement
from pipelines.plan import run_plan
from pipelines.prepare import open_pairs
from pipelines.recipe import validate_recipe
from pipelines.reference import open_reference, reference_record, run_reference
from pipelines.reference_check import check_reference, discard_damaged
from pipelines.reference_cost import settle_mode
from pipelines.reference_worker import ShardScorer
from pipelines.run import run_stages
from pipelines.trainer import Trainer
from sparsepo import ReferenceModel, TokenizedPair, packed_layout, padded_layout
from sparsepo.compression import unpack_topk
from sparsepo.kernels.token_scoring import score_tokens

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeRecipe = Callable[..., Recipe]
KL = ("objective.name=tdpo1",)
CPU = torch.device("cpu")


def silent(line: str) -> None:
    pass


def store_files(recipe: Recipe) -> dict[str, bytes]:
    """Every feature file of a store, and the head."""
    root = Path(recipe.paths.reference or f"{recipe.run_dir}/reference")
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted([*root.rglob("*.parquet"), *root.glob("*.safetensors")])}


def again(scored: Recipe, recipe_in: MakeRecipe, folder: Path, *options: str) -> Recipe:
    """The same pairs scored into another place."""
    recipe = recipe_in(folder, *KL, *options, paths={"pairs": f"{scored.run_dir}/pairs"})
    run_stages(recipe, ("reference",), silent)
    return recipe


def all_features(recipe: Recipe, *names: str) -> dict[str, torch.Tensor]:
    pairs = open_pairs(recipe)
    store = open_reference(recipe, pairs)
    parts = [store.features(split, range(pairs.num_rows(split)), names) for split in ("train", "test")]
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in names}


def test_the_store_is_the_same_bytes_for_any_number_of_actors(scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path) -> None:
    files = store_files(scored)
    assert len(files) == 2 * 4 + 1, "two features of four shards, and the head"
    assert store_files(again(scored, recipe_in, tmp_path / "two", "reference.num_actors=2")) == files


def test_budget_and_layout_change_nothing_but_rounding(scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path) -> None:
    """fp32 agreement 1e-4 (other budget, other layout); another model's store is the negative control."""
    names = ("reference_logps", "reference_hidden")
    expected = all_features(scored, *names)
    for name, option in (("budget", "reference.batch_tokens=100"), ("padded", "reference.layout=padded")):
        found = all_features(again(scored, recipe_in, tmp_path / name, option), *names)
        for feature in names:
            torch.testing.assert_close(found[feature], expected[feature], atol=1e-4, rtol=0)
    other = tmp_path / "other"
    shutil.copytree(scored.model.name_or_path, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    model.model.norm.weight.data += 0.01
    model.save_pretrained(other)
    moved = all_features(again(scored, recipe_in, tmp_path / "moved", f"model.reference={other}"), *names)
    assert float((moved["reference_logps"] - expected["reference_logps"]).abs().max()) > 1e-4


def test_kl_from_the_store_is_that_of_a_live_reference(scored: Recipe, model_dir: Path) -> None:
    """A moved policy against the stored states times the stored head, and against a model that runs: 1e-5 in fp32."""
    pairs = open_pairs(scored)
    store = open_reference(scored, pairs)
    rows = [3, 60, 17, 40]
    stored = store.features("train", rows, ["reference_hidden"]).reference_hidden
    inputs = padded_layout(pairs.pairs("train", rows))
    live = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    policy = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    torch.manual_seed(0)
    for parameter in policy.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    with torch.no_grad():
        logits = [
            m(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits.flatten(0, 1)[inputs.score_rows]
            for m in (live, policy)
        ]
        reference, moved = (values.double().log_softmax(-1) for values in logits)
        expected = (reference.exp() * (reference - moved)).sum(-1)
        hidden = policy.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state.flatten(0, 1)[
            inputs.score_rows
        ]
        found = score_tokens(hidden, ReferenceModel(policy).head, inputs.labels, stored, store.head())[1]
    assert found is not None
    assert float(expected.mean()) > 0.01
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def losses_of(recipe: Recipe) -> torch.Tensor:
    torch.set_num_threads(1)
    trainer = Trainer(recipe, Placement.choose("auto", CPU, 0, 1), 1)
    found = []
    while trainer.step < min(4, trainer.num_steps):
        found.append(trainer.optimizer_step()[0]["loss"])
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(("mask", "seed"), [("simple_last", 0), ("simple_all", 1)])
def test_training_from_the_store_equals_training_beside_the_reference(
    mask: str, seed: int, scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """Four optimizer steps in fp32: within 2e-6 from a store in the same layout, within 1e-5 from padded rows; int8 is close.

    Adam's epsilon is raised: while policy and reference are the same, a mask's gradient is their rounding, which it would scale up.
    """
    base = ("objective.name=sparsepo", "mask.kind=learned", f"mask.architecture={mask}", f"train.seed={seed}", "objective.beta=1")
    base += ("mask.adam_eps=1e-4", "train.adam_eps=1e-4")
    paths = {"pairs": f"{scored.run_dir}/pairs"}
    online = recipe_in(tmp_path / "online", *base, "reference.mode=online", paths=paths)
    stored = recipe_in(tmp_path / "stored", *base, "reference.mode=stored", paths=paths)
    padded = recipe_in(tmp_path / "padded", *base, "reference.mode=stored", "reference.layout=padded", paths=paths)
    for recipe in (online, stored, padded):
        run_stages(recipe, ("reference",), silent)
    expected = losses_of(online)
    assert float(expected.max() - expected.min()) > 1e-3, "the policy moves"
    torch.testing.assert_close(losses_of(stored), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(losses_of(padded), expected, atol=1e-5, rtol=0)
    if mask == "simple_all":
        packed = recipe_in(tmp_path / "int8", *base, "reference.mode=stored", "reference.layers_dtype=int8", paths=paths)
        run_stages(packed, ("reference",), silent)
        difference = (losses_of(packed) - expected).abs().max()
        assert 0 < float(difference) < 2e-2
        manifest = reference_record(packed).manifest()["counts"]
        assert manifest["formats"]["reference_layers"]["encoding"] == "int8"
        sizes = [sum(len(data) for name, data in store_files(r).items() if "reference_layers" in name) for r in (packed, stored)]
        assert sizes[0] < 0.3 * sizes[1], "a byte per value and a scale per block, against four"


def test_topk_is_a_lower_bound_whose_error_is_in_the_manifest(scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path) -> None:
    recipe = again(scored, recipe_in, tmp_path / "topk", "reference.topk=16")
    counts = reference_record(recipe).manifest()["counts"]
    assert set(counts["features"]) == {"reference_logps", "reference_topk"}
    assert counts["formats"]["reference_topk"]["shape"] == [16]
    error = counts["topk_error"]
    assert 0 < error["kl_topk"] < error["kl_exact"]
    assert error["relative_error"] == pytest.approx(1 - error["kl_topk"] / error["kl_exact"], rel=1e-3)
    packed = all_features(recipe, "reference_topk")["reference_topk"]
    exact = all_features(scored, "reference_hidden")["reference_hidden"]
    probabilities = open_reference(scored, open_pairs(scored)).head().logits(exact).softmax(-1)
    kept = unpack_topk(packed)
    torch.testing.assert_close(kept.logps.exp().sum(1), probabilities.topk(16).values.sum(1), atol=2e-3, rtol=0)
    first = losses_of(recipe)
    assert float(first[0]) == pytest.approx(np.log(2), abs=1e-5), "policy = reference: the bound is zero too"
    assert float((first - losses_of(scored)).abs().max()) < 0.02
    with pytest.raises(UserError, match="holds reference_topk made with 'top 16', now 'top 8'"):
        run_stages(
            recipe_in(tmp_path / "topk", *KL, "reference.topk=8", paths={"pairs": f"{scored.run_dir}/pairs"}), ("reference",), silent
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("reference.topk=8",), "objective.name=dpo has no KL to approximate"),
        (
            ("objective.name=sparsepo", "mask.kind=learned", "mask.architecture=simple_last", "reference.topk=8"),
            "already give the exact KL",
        ),
        (("reference.layers_dtype=int8",), "no states of all layers are stored"),
        (("reference.features=[reference_topk]",), "say how many tokens with reference.topk"),
        (("reference.topk=0",), "reference.topk"),
    ],
)
def test_options_that_would_be_ignored_are_refused(recipe_in: MakeRecipe, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe_in(tmp_path, *options)


# --- rows that fail -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_vocabulary(model_dir: Path, scored: Recipe, tmp_path: Path) -> tuple[Path, dict[str, set[int]]]:
    """A model that lacks the tokens that fewest rows hold; split -> the rows that hold one."""
    pairs = open_pairs(scored)
    held = {
        split: [{int(i) for ids in (p.prompt, *p.responses()) for i in ids} for p in pairs.pairs(split, range(pairs.num_rows(split)))]
        for split in ("train", "test")
    }
    largest = sorted({max(ids) for rows in held.values() for ids in rows})
    vocabulary = largest[-2] + 1
    lost = {split: {row for row, ids in enumerate(rows) if max(ids) >= vocabulary} for split, rows in held.items()}
    folder = tmp_path / "small"
    shutil.copytree(model_dir, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(vocabulary)
    model.save_pretrained(folder)
    return folder, lost


def test_a_failing_row_is_reported_and_left_out(
    scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path, small_vocabulary: tuple[Path, dict[str, set[int]]]
) -> None:
    """Tokens beyond the vocabulary: those rows are null, all others are what the whole model's cut head gives them."""
    folder, lost = small_vocabulary
    assert lost["train"]
    recipe = recipe_in(
        tmp_path / "run", f"model.reference={folder}", "reference.max_failed_fraction=0.9", paths={"pairs": f"{scored.run_dir}/pairs"}
    )
    lines: list[str] = []
    run_stages(recipe, ("reference",), lines.append, quiet=True)
    assert f"{len(lost['train']) + len(lost['test'])} rows could not be scored: failed_rows.jsonl" in lines[-1]
    reported = [json.loads(line) for line in (Path(recipe.run_dir) / "reference" / "failed_rows.jsonl").read_text().splitlines()]
    assert {(r["split"], r["row"]) for r in reported} == {(split, row) for split, rows in lost.items() for row in rows}
    pairs = open_pairs(recipe)
    ids = pairs.column("train", "pair_id")
    assert all(r["pair_id"] == ids[r["row"]] for r in reported if r["split"] == "train")
    assert all("beyond the reference's vocabulary" in r["reason"] for r in reported)
    rows = [row for row in range(pairs.num_rows("train")) if row not in lost["train"]]
    stored = open_reference(recipe, pairs).features("train", rows, ["reference_logps"]).reference_logps
    live = ReferenceModel(AutoModelForCausalLM.from_pretrained(folder)).features(
        padded_layout(pairs.pairs("train", rows)), ["reference_logps"]
    )
    torch.testing.assert_close(stored, live.reference_logps, atol=1e-5, rtol=0)
    torch.set_num_threads(1)
    trainer = Trainer(recipe, Placement.choose("auto", CPU, 0, 1), 1)
    assert trainer.rows["train"] == rows
    seen = [trainer.rows["train"][place] for step in range(trainer.sampler.steps_per_epoch) for place in trainer.sampler.pair_indices(step)]
    assert sorted(seen) == rows, "an epoch has every usable row once"


def test_too_many_failing_rows_stop_the_stage_with_the_first_one(
    scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path, small_vocabulary: tuple[Path, dict[str, set[int]]]
) -> None:
    recipe = recipe_in(
        tmp_path / "run",
        f"model.reference={small_vocabulary[0]}",
        "reference.max_failed_fraction=0",
        paths={"pairs": f"{scored.run_dir}/pairs"},
    )
    with pytest.raises(
        StageFailed, match=r"rows could not be scored, reference.max_failed_fraction = 0.0 allows 0; the first: .*token \d+ is beyond"
    ):
        run_stages(recipe, ("reference",), silent)


def test_a_row_whose_scores_are_not_finite_fails_alone(scored: Recipe, recipe_in: MakeRecipe, model_dir: Path, tmp_path: Path) -> None:
    """The input embedding of one token is NaN (the head is its own matrix): just the rows with that token fail."""
    pairs = open_pairs(scored)
    held = [{int(i) for ids in (p.prompt, *p.responses()) for i in ids} for p in pairs.pairs("train", range(pairs.num_rows("train")))]
    rare = min((token for ids in held for token in ids), key=lambda token: (sum(token in ids for ids in held), token))
    folder = tmp_path / "nan"
    shutil.copytree(model_dir, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    head = model.get_output_embeddings().weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    model.get_input_embeddings().weight.data[rare] = torch.nan
    model.save_pretrained(folder)
    recipe = recipe_in(
        tmp_path / "run", f"model.reference={folder}", "reference.max_failed_fraction=0.9", paths={"pairs": f"{scored.run_dir}/pairs"}
    )
    run_stages(recipe, ("reference",), silent)
    failed = reference_record(recipe).manifest()["counts"]["failed"]["train"]
    # Every token before the rare one is finite, but at least one scored token after it is not, unless it ends the text.
    assert set(map(int, failed)) <= {row for row, ids in enumerate(held) if rare in ids}
    assert failed and set(failed.values()) == {"reference_logps is not finite"}


def test_running_out_of_memory_names_the_setting(scored: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = ShardScorer(scored.model_dump(mode="json"))
    monkeypatch.setattr(ReferenceModel, "features", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("8 GiB")))
    result = scorer({"split": "train", "shard": 0, "features": ["reference_logps"], "fingerprint": "x"})
    assert result["error"].startswith("out of memory on cpu with 4096 tokens per batch: lower reference.batch_tokens")


# --- never wrongly ------------------------------------------------------------------------------------------------


def shard_file(recipe: Recipe, feature: str = "reference_logps", name: str = "train-00001") -> Path:
    return Path(recipe.run_dir) / "reference" / feature / f"{name}.parquet"


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)


def foreign(path: Path) -> None:
    """Another shard's values in this one's place, its length kept, so that only what it says of itself is wrong."""
    other = path.with_name("train-00000.parquet")
    data = other.read_bytes()
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "corrupted": (flip, r"train-00001.parquet is damaged or foreign: .*(integrity|sha256|Couldn't|metadata|Thrift|size|magic)"),
    "truncated": (lambda path: os.truncate(path, 500), "it has 500 bytes, the manifest says"),
    "missing": (Path.unlink, "train-00001.parquet is missing"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_by_check_and_by_training_and_repaired(copied: Recipe, kind: str) -> None:
    before = store_files(copied)
    assert check_reference(copied, quiet=True)[1] == []
    damage, message = DAMAGES[kind]
    damage(shard_file(copied))
    pairs = open_pairs(copied)
    with pytest.raises(UserError, match=message):
        open_reference(copied, pairs).features("train", range(pairs.num_rows("train")), ["reference_logps", "reference_hidden"])
    _, found = check_reference(copied, quiet=True)
    assert [(d.feature, d.split, d.number) for d in found] == [("reference_logps", "train", 1)]
    assert "train-00001.parquet" in found[0].message
    untouched = shard_file(copied, "reference_hidden").stat().st_mtime_ns
    run_stages(discard_damaged(copied, found), ("reference",), silent)
    assert check_reference(copied, quiet=True)[1] == []
    assert store_files(copied) == before
    assert shard_file(copied, "reference_hidden").stat().st_mtime_ns == untouched, "only what was damaged is scored again"


def test_a_foreign_shard_is_named_whatever_its_size(copied: Recipe) -> None:
    """A shard of the same store under another name, with its size written into the manifest by hand."""
    path = shard_file(copied)
    foreign(path)
    record = reference_record(copied)
    manifest = record.manifest()
    manifest["outputs"]["reference_logps/train-00001.parquet"] = dict(manifest["outputs"]["reference_logps/train-00000.parquet"])
    record.store.write_json("manifest.json", manifest)
    with pytest.raises(UserError, match="it is of shard train-00000, not train-00001"):
        open_reference(copied, open_pairs(copied)).features("train", range(40), ["reference_logps"])
    assert "it is of shard train-00000, not train-00001" in check_reference(copied, quiet=True)[1][0].message
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(None), path)
    manifest["outputs"]["reference_logps/train-00001.parquet"]["bytes"] = path.stat().st_size
    record.store.write_json("manifest.json", manifest)
    with pytest.raises(UserError, match="it is of store none"):
        open_reference(copied, open_pairs(copied)).features("train", range(40), ["reference_logps"])


def test_a_damaged_head_is_found_and_made_again(copied: Recipe) -> None:
    before = store_files(copied)
    flip(Path(copied.run_dir) / "reference" / "lm_head.safetensors")
    _, found = check_reference(copied, quiet=True)
    assert "lm_head.safetensors is damaged" in found[0].message
    run_stages(discard_damaged(copied, found), ("reference",), silent)
    assert check_reference(copied, quiet=True)[1] == []
    assert store_files(copied) == before


def test_the_command_line_checks_and_repairs(copied: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 for a good store, 1 with a line per bad file, 0 again once repaired."""
    from pipelines.cli import main
    from pipelines.recipe import write_yaml

    (tmp_path / "recipe.yaml").write_text(write_yaml(copied))

    def command(*options: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["reference", str(tmp_path / "recipe.yaml"), *options])
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    code, out, _ = command("--check")
    assert (code, out.splitlines()[-1][:22]) == (0, "reference: 9 files, 3.")
    flip(shard_file(copied))
    code, _, err = command("--check")
    assert code == 1
    assert "reference_logps/train-00001.parquet is damaged" in err
    assert "error: 1 of 9 files are bad" in err
    code, out, _ = command("--repair", "--quiet")
    assert code == 0
    assert command("--check")[0] == 0


def test_an_unfinished_store_is_no_store(copied: Recipe) -> None:
    """Without its manifest: neither check nor training takes it, the next run finishes it without scoring anything."""
    (Path(copied.run_dir) / "reference" / "manifest.json").unlink()
    shutil.rmtree(Path(copied.run_dir) / "reference" / "shards" / "reference_hidden")
    with pytest.raises(UserError, match="no finished reference stage: reference_logps 4 of 4 shards"):
        check_reference(copied, quiet=True)
    with pytest.raises(UserError, match="no finished reference stage"):
        open_reference(copied, open_pairs(copied))
    before = shard_file(copied).stat().st_mtime_ns
    assert run_reference(copied, quiet=True)["counts"]["shards_scored"] == 4
    assert shard_file(copied).stat().st_mtime_ns == before


def test_more_gpus_per_model_than_there_are_is_refused(scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path / "run", *KL, "reference.gpus_per_model=2", paths={"pairs": f"{scored.run_dir}/pairs"})
    with pytest.raises(UserError, match="reference: 2 GPUs for one model, but the cluster has 0"):
        run_stages(recipe, ("reference",), silent)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data.max_prompt_tokens=20", "input pairs.data.max_prompt_tokens was 24, now it is 20"),
        ("reference.dtype=bfloat16", 'setting reference.dtype was "float32", now it is "bfloat16"'),
    ],
)
def test_another_runs_store_is_refused_by_what_differs(
    scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path, option: str, message: str
) -> None:
    recipe = recipe_in(tmp_path / "run", *KL, option, paths={"reference": f"{scored.run_dir}/reference"})
    with pytest.raises(UserError, match=message):
        run_stages(recipe, ("prepare", "reference"), silent)


def test_other_library_versions_are_warned_of_when_a_store_is_extended(copied: Recipe, recipe_in: MakeRecipe) -> None:
    started = Path(copied.run_dir) / "reference" / "started.json"
    record = json.loads(started.read_text())
    record["versions"]["torch"] = "2.0.1"
    started.write_text(json.dumps(record))
    lines: list[str] = []
    more = recipe_in(copied.run_dir, "objective.name=mapo", "mask.kind=activation")
    run_stages(more, ("reference",), lines.append, quiet=True)
    assert f"was begun with torch 2.0.1, this is {torch.__version__}" in lines[-1]


def test_scoring_leaves_the_random_state_alone(scored: Recipe) -> None:
    """Beside training: a live reference is loaded and asked; the generators of torch, numpy and Python stay where they were."""
    recipe = validate_recipe({**scored.model_dump(mode="json"), "reference": {"mode": "online"}})
    pairs = open_pairs(recipe)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    source = feature_source(recipe, pairs, CPU)
    source.features("train", [0, 1], padded_layout(pairs.pairs("train", [0, 1])))
    ShardScorer(recipe.model_dump(mode="json"))._reference_layout.inputs(pairs.pairs("train", [0]))
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


# --- adapters -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA folder of the tiny model whose update is not zero."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("adapter") / "sft"
    model.save_pretrained(folder)
    return folder


def test_an_adapter_folder_is_the_base_with_the_adapter(adapter: Path, model_dir: Path, recipe_in: MakeRecipe, tmp_path: Path) -> None:
    """Against peft's own unmerged forward; the base alone is far away."""
    from peft import PeftModel

    recipe = recipe_in(tmp_path / "run", f"model.name_or_path={adapter}")
    run_stages(recipe, ("prepare", "reference"), silent)
    pairs = open_pairs(recipe)
    rows = list(range(12))
    stored = open_reference(recipe, pairs).features("train", rows, ["reference_logps"]).reference_logps
    assert stored is not None
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    inputs = padded_layout(pairs.pairs("train", rows))
    plain = ReferenceModel(base).features(inputs, ["reference_logps"]).reference_logps
    live = ReferenceModel(PeftModel.from_pretrained(base, adapter).eval()).features(inputs, ["reference_logps"]).reference_logps
    torch.testing.assert_close(stored, live, atol=1e-4, rtol=0)
    assert plain is not None
    assert float((stored - plain).abs().max()) > 0.05
    assert weights_fingerprint(adapter) != weights_fingerprint(model_dir)
    assert float(losses_of(recipe)[0]) == pytest.approx(np.log(2), abs=1e-5), "the policy starts as the reference: with the adapter"


def test_adapters_that_cannot_be_taken_are_named(adapter: Path, model_dir: Path, tmp_path: Path, recipe_in: MakeRecipe) -> None:
    both = tmp_path / "both"
    shutil.copytree(model_dir, both)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, both / name)
    lost = tmp_path / "lost"
    shutil.copytree(adapter, lost)
    settings = json.loads((lost / "adapter_config.json").read_text())
    (lost / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(tmp_path / "gone")}))
    pickled = tmp_path / "pickled"
    shutil.copytree(adapter, pickled)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    for folder, message in (
        (both, "it holds both an adapter and whole weights"),
        (lost, r"adapter .*lost: its base model '.*gone': no such directory"),
        (pickled, r"no weights \(adapter_model.safetensors\); pickled weights are not read"),
    ):
        with pytest.raises(UserError, match=message):
            run_stages(recipe_in(tmp_path / "run", f"model.name_or_path={folder}"), ("prepare", "reference"), silent)


# --- cost and room ------------------------------------------------------------------------------------------------

FORECASTS = {
    "logps": (),
    "kl": KL,
    "topk": (*KL, "reference.topk=32"),
    "mapo": ("objective.name=mapo", "mask.kind=activation"),
    "layers": ("objective.name=sparsepo", "mask.kind=learned", "reference.mode=stored"),
    "int8": ("objective.name=sparsepo", "mask.kind=learned", "reference.mode=stored", "reference.layers_dtype=int8"),
    "rpo": ("objective.name=rpo", "objective.beta=1"),
}


@pytest.mark.parametrize("case", FORECASTS)
def test_the_storage_forecast_is_within_five_percent(case: str, scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path) -> None:
    """The forecast of `plan` against the bytes of the files that the scoring actor (here, in this process) then writes."""
    recipe = recipe_in(tmp_path / "run", *FORECASTS[case], paths={"pairs": f"{scored.run_dir}/pairs"})
    forecast = run_plan(recipe)["reference"]["storage_bytes"]
    scorer = ShardScorer(recipe.model_dump(mode="json"))
    pairs = open_pairs(recipe)
    for split in ("train", "test"):
        for number in range(pairs.num_shards(split)):
            task = {"split": split, "shard": number, "features": sorted(recipe.stored_features()), "fingerprint": "0" * 32}
            assert "error" not in scorer(task)
    written = sum(len(data) for data in store_files(recipe).values())
    print(case, forecast, written)
    assert forecast == pytest.approx(written, rel=0.05)


def test_auto_takes_the_cheaper_of_stored_and_online(recipe_in: MakeRecipe, tmp_path: Path) -> None:
    """States of all layers: one pass is cheapest online; repeated passes pay for the disk on a slow device, not on a fast one."""
    base = ("objective.name=sparsepo", "mask.kind=learned", "mask.architecture=simple_all")
    gpu = torch.device("cuda")
    once, often = (recipe_in(tmp_path, *base, f"train.epochs={epochs}") for epochs in (1, 50))
    assert settle_mode(once, CPU).reference.mode == "online"
    assert settle_mode(often, CPU).reference.mode == "stored"
    assert settle_mode(once, CPU, trials=50).reference.mode == "stored", "a sweep scores once for all trials"
    assert settle_mode(often, gpu).reference.mode == "online"
    assert settle_mode(recipe_in(tmp_path, *base, "train.epochs=50", "reference.mode=online"), CPU).reference.mode == "online"
    assert settle_mode(recipe_in(tmp_path, *KL), CPU).reference_mode() == "stored"


needs_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts a small disk: needs root")

SCORE_ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from pipelines.errors import UserError
from pipelines.recipe import load_recipe
import pipelines.reference as stage
from pipelines.run import run_stages
if sys.argv[2] == "unforeseen":
    stage._check_disk = lambda *_: None
try:
    run_stages(load_recipe(sys.argv[1]), ("reference",), print, quiet=True)
except UserError as error:
    print("refused:", error)
root = Path(sys.argv[3])
print("shards:", len(list(root.rglob("shards/*/*.json"))), "leftovers:", len(list(root.rglob(".tmp-*"))))
"""


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["foreseen", "unforeseen"])
def test_a_full_disk_ends_in_one_line_and_keeps_what_was_written(kind: str, scored: Recipe, tmp_path: Path) -> None:
    """A disk of three quarters of the store; foreseen before scoring, or met in the middle with the forecast switched off."""
    from pipelines.recipe import write_yaml

    disk = tmp_path / "disk"
    disk.mkdir()
    recipe = scored.model_copy(update={"run_dir": str(disk), "paths": scored.paths.model_copy(update={"pairs": f"{scored.run_dir}/pairs"})})
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    size = int(0.75 * reference_record(scored).manifest()["counts"]["bytes"])
    script = f"mount -t tmpfs -o size={size} tmpfs {disk} && exec {sys.executable} -c '{SCORE_ON_A_SMALL_DISK}' {tmp_path}/recipe.yaml {kind} {disk}/reference"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("refused:"))
    if kind == "foreseen":
        assert "the reference store needs 0.00 GiB more" in line and "shards: 0" in done.stdout
    else:
        assert "No space left on device; what was published before is kept" in line
        assert "shards: 0 " not in done.stdout
    assert "leftovers: 0" in done.stdout


WRITE_AS_NOBODY = """
import os, sys
from pipelines.errors import UserError
from pipelines.store import RunStore
os.setgid(65534); os.setuid(65534)
try:
    RunStore(sys.argv[1]).write_bytes("file", b"x")
except UserError as error:
    print("refused:", error)
"""


@needs_root
def test_a_directory_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    locked = Path("/tmp") / f"sparsepo-locked-{os.getpid()}"
    locked.mkdir(mode=0o755)
    try:
        done = subprocess.run(
            [sys.executable, "-c", WRITE_AS_NOBODY, str(locked)], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2]
        )
    finally:
        locked.rmdir()
    assert done.stdout == f"refused: cannot write {locked}/file: Permission denied\n", done.stderr


# --- layouts of the stage -----------------------------------------------------------------------------------------


def test_batches_hold_the_budget_and_every_pair_once() -> None:
    rng = random.Random(1)
    pairs = [TokenizedPair([1] * rng.randint(1, 60), [2] * rng.randint(1, 50), [3] * rng.randint(1, 50)) for _ in range(200)]
    for kind in ("padded", "shared", "packed"):
        layout = BatchLayout(kind, 1024)  # type: ignore[arg-type]
        batches = layout.batches(pairs)
        assert sorted(i for batch in batches for i in batch) == list(range(200))
        for batch in batches:
            inputs = layout.inputs([pairs[i] for i in batch])
            assert inputs.input_ids.numel() <= 1024
            assert inputs.num_pairs == len(batch)
            if kind == "packed":
                assert inputs.input_ids.shape[0] == 1 and inputs.input_ids.shape[1] % 128 == 0
    widths = {BatchLayout("packed", 1024).inputs(pairs[:n]).input_ids.shape[1] for n in range(1, 9)}
    assert widths <= {128, 256, 512, 1024}, "rows come in few widths"
    long = [TokenizedPair([1] * 900, [2] * 900, [3] * 900)]
    assert BatchLayout("packed", 1024).inputs(long).input_ids.shape == (1, 3072)


def test_a_model_that_cannot_be_packed_is_refused_where_packing_is_asked_for(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=99, hidden_size=16, n_layer=1, n_head=4)).eval()
    assert BatchLayout.choose("auto", [bloom], 512, "reference.layout").kind == "padded"
    with pytest.raises(UserError, match="reference.layout=packed: BloomForCausalLM cannot: "):
        BatchLayout.choose("packed", [bloom], 512, "reference.layout")


def test_shared_rows_are_what_a_cpu_takes(model_dir: Path) -> None:
    model = load_causal_lm(str(model_dir), torch.float32)
    layout = BatchLayout.choose("auto", [model], 4096, "reference.layout")
    assert layout.kind == "shared"
    pairs = [TokenizedPair([1, 2, 3], [4, 5], [6]), TokenizedPair([1], [4], [6, 7])]
    found = layout.inputs(pairs)
    assert torch.equal(found.input_ids, packed_layout(pairs).input_ids)
