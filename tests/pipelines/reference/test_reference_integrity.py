"""Damaged, foreign and unfinished stores are named, repaired or refused; nothing is read
wrongly.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from by_hand import unsealed
from ray import cloudpickle
from runs import CPU, MakeRecipe, silent
from stores import all_features, store_files

from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, REFERENCE
from pipelines.errors import UserError
from pipelines.pairs.table import open_pairs
from pipelines.recipe.files import validate_recipe
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.actor import ShardScorer
from pipelines.reference.facts import FrozenReference, usable_rows
from pipelines.reference.features import feature_source
from pipelines.reference.scoring import scoring_facts
from pipelines.reference.stage import check_reference, discard_damaged, run_facts
from pipelines.reference.store import open_reference
from sparsepo import padded_layout

pytestmark = pytest.mark.usefixtures("ray_cluster")
KL = ("objective.name=tdpo1",)


def shard_file(recipe: Recipe, feature: str = "reference_logps", name: str = "train-00001") -> Path:
    return Path(recipe.run_dir) / "reference" / feature / f"{name}.parquet"


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)


def foreign(path: Path) -> None:
    """Another shard's values in this one's place, its length kept, so that only what it says of
    itself is wrong.
    """
    other = path.with_name("train-00000.parquet")
    data = other.read_bytes()
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "corrupted": (
        flip,
        r"train-00001.parquet is damaged or foreign: "
        r".*(integrity|sha256|Couldn't|metadata|Thrift|size|magic)",
    ),
    "truncated": (lambda path: os.truncate(path, 500), "it has 500 bytes, the manifest says"),
    "missing": (Path.unlink, "train-00001.parquet is missing"),
}


@pytest.mark.parametrize("name", ["lm_head.safetensors", "lm_head.json"])
def test_a_flipped_bit_of_the_head_is_found_before_it_is_used(copied: Recipe, name: str) -> None:
    """Every KL is computed with it; a soft-cap or scale that changed is as wrong as a weight."""
    store = open_reference(run_facts(Run(copied)), open_pairs(Run(copied)))
    assert store.head().weight.ndim == 2
    path = Path(copied.run_dir) / "reference" / name
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"1.0") if name.endswith(".json") else -9] ^= 2
    path.write_bytes(raw)
    with pytest.raises(
        UserError,
        match=f"{name} is damaged or foreign: its sha256 is not the manifest's; run `sparsepo "
        "reference RECIPE",
    ):
        store.head()
    _, damage = check_reference(Run(copied), quiet=True)
    assert [item.message.split(" is damaged")[0].rpartition("/")[2] for item in damage] == [name]


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_by_check_and_by_training_and_repaired(copied: Recipe, kind: str) -> None:
    before = store_files(copied)
    assert check_reference(Run(copied), quiet=True)[1] == []
    damage, message = DAMAGES[kind]
    damage(shard_file(copied))
    pairs = open_pairs(Run(copied))
    with pytest.raises(UserError, match=message):
        open_reference(run_facts(Run(copied)), pairs).features(
            "train", range(pairs.num_rows("train")), ["reference_logps", "reference_hidden"]
        )
    _, found = check_reference(Run(copied), quiet=True)
    assert [(d.feature, d.split, d.number) for d in found] == [("reference_logps", "train", 1)]
    assert "train-00001.parquet" in found[0].message
    untouched = shard_file(copied, "reference_hidden").stat().st_mtime_ns
    run_stages(discard_damaged(Run(copied), found), (REFERENCE,), silent)
    assert check_reference(Run(copied), quiet=True)[1] == []
    assert store_files(copied) == before
    assert shard_file(copied, "reference_hidden").stat().st_mtime_ns == untouched, (
        "only what was damaged is scored again"
    )


def test_a_foreign_shard_is_named_whatever_its_size(copied: Recipe) -> None:
    """A shard of the same store under another name, with its size written into the manifest by
    hand.
    """
    path = shard_file(copied)
    foreign(path)
    record = Run(copied).record(REFERENCE)
    manifest = record.manifest()
    manifest["outputs"]["reference_logps/train-00001.parquet"] = dict(
        manifest["outputs"]["reference_logps/train-00000.parquet"]
    )
    record.store.write_json("manifest.json", manifest)
    with pytest.raises(UserError, match="it is of shard train-00000, not train-00001"):
        open_reference(run_facts(Run(copied)), open_pairs(Run(copied))).features(
            "train", range(40), ["reference_logps"]
        )
    assert (
        "it is of shard train-00000, not train-00001"
        in check_reference(Run(copied), quiet=True)[1][0].message
    )
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(None), path)
    manifest["outputs"]["reference_logps/train-00001.parquet"]["bytes"] = path.stat().st_size
    record.store.write_json("manifest.json", manifest)
    with pytest.raises(UserError, match="it is of store none"):
        open_reference(run_facts(Run(copied)), open_pairs(Run(copied))).features(
            "train", range(40), ["reference_logps"]
        )


def test_a_damaged_head_is_found_and_made_again(copied: Recipe) -> None:
    before = store_files(copied)
    flip(Path(copied.run_dir) / "reference" / "lm_head.safetensors")
    _, found = check_reference(Run(copied), quiet=True)
    assert "lm_head.safetensors is damaged" in found[0].message
    run_stages(discard_damaged(Run(copied), found), (REFERENCE,), silent)
    assert check_reference(Run(copied), quiet=True)[1] == []
    assert store_files(copied) == before


def test_the_command_line_checks_and_repairs(
    copied: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 for a good store, 1 with a line per bad file, 0 again once repaired."""
    from pipelines.commands.cli import main
    from pipelines.recipe.files import write_yaml

    (tmp_path / "recipe.yaml").write_text(write_yaml(copied))

    def command(*options: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["reference", str(tmp_path / "recipe.yaml"), *options])
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    code, out, _ = command("--check")
    assert (code, out.splitlines()[-1][:22]) == (0, "reference: 10 files, 3")
    flip(shard_file(copied))
    code, _, err = command("--check")
    assert code == 1
    assert "reference_logps/train-00001.parquet is damaged" in err
    assert "error: 1 of 10 files are bad" in err
    code, out, _ = command("--repair", "--quiet")
    assert code == 0
    assert command("--check")[0] == 0


def test_an_unfinished_store_is_no_store(copied: Recipe) -> None:
    """Without its manifest: neither check nor training takes it, the next run finishes it
    without scoring anything.
    """
    (Path(copied.run_dir) / "reference" / "manifest.json").unlink()
    shutil.rmtree(Path(copied.run_dir) / "reference" / "shards" / "reference_hidden")
    with pytest.raises(
        UserError, match="no finished reference stage: reference_logps 4 of 4 shards"
    ):
        check_reference(Run(copied), quiet=True)
    with pytest.raises(UserError, match="no finished reference stage"):
        open_reference(run_facts(Run(copied)), open_pairs(Run(copied)))
    before = shard_file(copied).stat().st_mtime_ns
    assert REFERENCE.run(Run(copied), print, True)["counts"]["shards_scored"] == 4
    assert shard_file(copied).stat().st_mtime_ns == before


def test_whoever_has_the_facts_reads_the_store_without_the_run_s_inputs(
    copied: Recipe, recipe_in: MakeRecipe, tmp_path: Path, pairs_file: Path, model_dir: Path
) -> None:
    """Once the driver has the facts, neither sources nor models are looked at: they are moved
    away here. The rows are the store's, without those that its manifest calls failed.
    """
    shutil.copytree(model_dir, tmp_path / "model")
    shutil.copy(pairs_file, tmp_path / "pairs.jsonl")
    recipe = recipe_in(
        copied.run_dir,
        *KL,
        f"model.name_or_path={tmp_path}/model",
        f"data.sources=[{{path: {tmp_path}/pairs.jsonl}}]",
    )
    record = Run(recipe).record(REFERENCE)
    manifest = record.manifest()
    manifest["counts"]["failed"] = {"train": {"3": "x", "11": "y"}, "test": {"0": "z"}}
    record.store.write_json("manifest.json", manifest)
    pairs = open_pairs(Run(recipe))
    facts = cloudpickle.loads(cloudpickle.dumps(run_facts(Run(recipe))))
    read = all_features(recipe, "reference_logps")["reference_logps"]
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(UserError, match="no such directory"):
        Run(recipe).record(REFERENCE)
    store = open_reference(facts, pairs)
    again = [
        store.features(split, range(pairs.num_rows(split)), ["reference_logps"]).reference_logps
        for split in ("train", "test")
    ]
    assert torch.equal(torch.cat(again), read)
    for split, lost in (("train", {3, 11}), ("test", {0}), ("validation", set())):
        rows = [row for row in range(pairs.num_rows(split)) if row not in lost]
        assert usable_rows(facts, pairs, split) == rows
    source = feature_source(facts, pairs, CPU)
    assert torch.equal(
        source.read("train", [5, 2]).reference_logps,
        store.features("train", [5, 2], ["reference_logps"]).reference_logps,
    )
    assert source.head().weight.shape == store.head().weight.shape


def test_the_facts_say_which_store_is_meant(copied: Recipe) -> None:
    """A store that another command put into the same place meanwhile is refused."""
    facts = run_facts(Run(copied))
    pairs = open_pairs(Run(copied))
    open_reference(facts, pairs)
    path = Path(copied.run_dir) / "reference" / "manifest.json"
    path.write_text(json.dumps({**unsealed(path), "fingerprint": "0" * 32}))
    with pytest.raises(UserError, match=f"its fingerprint is {'0' * 32}, not {facts.fingerprint}"):
        open_reference(facts, pairs)
    path.unlink()
    with pytest.raises(UserError, match="no finished reference stage"):
        open_reference(facts, pairs)
    unfinished = run_facts(Run(copied))
    assert unfinished.failed == {} and unfinished.fingerprint == facts.fingerprint


def test_facts_of_an_online_reference_read_no_store(copied: Recipe) -> None:
    """It computes what it wants; rows that some store could not score are trained on."""
    online = validate_recipe({**copied.model_dump(mode="json"), "reference": {"mode": "online"}})
    record = Run(copied).record(REFERENCE)
    manifest = record.manifest()
    manifest["counts"]["failed"] = {"train": {"3": "x"}}
    record.store.write_json("manifest.json", manifest)
    facts = run_facts(Run(online))
    assert (facts.stored, facts.failed) == (frozenset(), {})
    assert facts.online == facts.wanted == {"reference_logps", "reference_hidden"}
    assert facts.model == FrozenReference(
        str(copied.model.name_or_path), "auto", "all", "zn_rescale", 64, 48
    )


@pytest.mark.actors
def test_more_gpus_per_model_than_there_are_is_refused(
    scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    recipe = recipe_in(
        tmp_path / "run",
        *KL,
        "reference.gpus_per_model=2",
        paths={"pairs": f"{scored.run_dir}/pairs"},
    )
    with pytest.raises(UserError, match="reference: 2 GPUs for one model, but the cluster has 0"):
        run_stages(recipe, (REFERENCE,), silent)


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
    recipe = recipe_in(
        tmp_path / "run", *KL, option, paths={"reference": f"{scored.run_dir}/reference"}
    )
    with pytest.raises(UserError, match=message):
        run_stages(recipe, (PREPARE, REFERENCE), silent)


def test_other_library_versions_are_warned_of_when_a_store_is_extended(
    copied: Recipe, recipe_in: MakeRecipe
) -> None:
    started = Path(copied.run_dir) / "reference" / "started.json"
    record = unsealed(started)
    record["versions"]["torch"] = "2.0.1"
    started.write_text(json.dumps(record))
    lines: list[str] = []
    more = recipe_in(copied.run_dir, "objective.name=mapo", "mask.kind=activation")
    run_stages(more, (REFERENCE,), lines.append, quiet=True)
    now = version("torch")  # torch itself may say more, which build it is
    assert f"was begun with torch 2.0.1, this is {now}" in lines[-1]


def test_scoring_leaves_the_random_state_alone(scored: Recipe) -> None:
    """Beside training: a live reference is loaded and asked; the generators of torch, numpy and
    Python stay where they were.
    """
    recipe = validate_recipe({**scored.model_dump(mode="json"), "reference": {"mode": "online"}})
    pairs = open_pairs(Run(recipe))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    source = feature_source(run_facts(Run(recipe)), pairs, CPU)
    source.features("train", [0, 1], padded_layout(pairs.pairs("train", [0, 1])))
    scorer = ShardScorer(scoring_facts(Run(recipe), Run(recipe).record(REFERENCE), ()))
    scorer._reference_layout.inputs(pairs.pairs("train", [0]))
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
