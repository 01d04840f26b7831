"""What an export holds: the run's policy, bit for bit or merged, its masks, and cards that readers
and programs understand.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pipelines.errors import StageFailed, UserError
from pipelines.export.check import check_model
from pipelines.export.export import Wanted, run_export
from pipelines.export.model import WrittenModel, logits_of
from pipelines.pairs.dataset_card import dataset_card
from pipelines.pairs.table import open_pairs
from pipelines.recipe.record import read_manifest
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.train.model_card import CardFacts, model_card
from sparsepo import LearnedMasks, ReferenceModel, TokenizedPair, padded_layout, token_weights
from sparsepo.masks import MASKS

Export = Callable[..., Path]
IDS = [[1, 5, 9, 3, 7], [1, 4, 4, 8]]


def published(recipe: Recipe) -> Path:
    return Path(recipe.run_dir) / "train"


def texts(folder: Path) -> dict[str, str]:
    endings = (".md", ".json")
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.suffix in endings and path.name != "tokenizer.json"
    }


def test_whole_weights_and_masks_are_the_runs_bit_for_bit(
    learned_run: Recipe, exported: Export, model_dir: Path
) -> None:
    said: list[str] = []
    folder = exported(learned_run, said)
    for name in ("model/model.safetensors", "model/tokenizer.json", "masks/masks.safetensors"):
        own = (folder / name.removeprefix("model/")).read_bytes()
        assert own == (published(learned_run) / name).read_bytes()
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    GenerationConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert any(line.endswith("equal those of the run's policy, bit for bit") for line in said)
    assert any("vLLM is not installed here" in line for line in said)

    masks = LearnedMasks.from_pretrained(folder / "masks")
    theirs = LearnedMasks.from_pretrained(published(learned_run) / "masks")
    reference = AutoModelForCausalLM.from_pretrained(model_dir)

    def weighed(masks: LearnedMasks) -> list[float]:
        found = token_weights(
            model, masks, "The plot was", " a wonderful film",
            tokenizer=tokenizer, reference=reference,
        )  # fmt: skip
        values: list[float] = found.reward.tolist()
        return values

    assert weighed(masks) == weighed(theirs)

    record = json.loads((folder / "export.json").read_text())
    listed = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert set(record["files"]) == listed - {"export.json"}
    assert record["checked"] == [line.removeprefix("export: ") for line in said]
    for name, text in texts(folder).items():
        for place in (learned_run.run_dir, str(model_dir.parent), learned_run.data.sources[0].path):
            assert place not in text, f"{name} says where {place} lay"


def test_the_model_card_is_one_for_the_hub(
    learned_run: Recipe, exported: Export, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metadata and numbers are the run's; its programs run where it lies."""
    folder = exported(learned_run, license="apache-2.0")
    card = ModelCard.load(folder / "README.md")
    front = card.data.to_dict()
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    assert {"sparsepo", "token-mask-learned"} <= set(front["tags"])
    assert front["license"] == "apache-2.0"
    assert "base_model" not in front and "datasets" not in front, "they are no names of a hub"

    evaluation = read_manifest(RunStore(f"{learned_run.run_dir}/evaluation"))["counts"]["results"]
    wanted = {
        f"{benchmark}/{name}": (value["mean"], value["low"], value["high"], value["n"])
        for benchmark, numbers in evaluation.items()
        for name, value in numbers.items()
        if isinstance(value, dict) and "mean" in value
    }
    told = {
        each.metric_name: (each.metric_value, *(each.metric_args[k] for k in ("low", "high", "n")))
        for each in card.data.eval_results
    }
    assert told == wanted and "preference/accuracy/implicit_reward" in told
    mean, low, high, _ = told["preference/accuracy/implicit_reward"]
    assert f"| `accuracy/implicit_reward` | {mean:.4g} | {low:.4g} to {high:.4g} |" in card.text

    counts = read_manifest(RunStore(f"{learned_run.run_dir}/train"))["counts"]
    assert f"for {counts['steps']} steps on {counts['pairs']} pairs" in card.text
    assert "arXiv:2410.05102" in card.text and "@inproceedings{christopoulou" in card.text
    assert "bit for bit" in card.text

    (folder / model_dir.name).symlink_to(model_dir)  # the reference, as the card calls it
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for program in re.findall(r"```python\n(.*?)```", card.text, re.S):
        exec(compile(program, "README.md", "exec"), names)
    assert len(names["weights"].tokens) > 1  # type: ignore[attr-defined]


def test_names_of_a_hub_are_in_the_metadata(learned_run: Recipe) -> None:
    manifest = read_manifest(RunStore(f"{learned_run.run_dir}/pairs"))
    counts = read_manifest(RunStore(f"{learned_run.run_dir}/train"))["counts"]
    model = learned_run.model.model_copy(update={"name_or_path": "owner/base"})
    (source,) = learned_run.data.sources
    data = learned_run.data.model_copy(
        update={"sources": (source.model_copy(update={"path": "owner/pairs"}),)}
    )
    recipe = learned_run.model_copy(update={"model": model, "data": data})
    card = ModelCard(model_card(recipe, CardFacts(counts, manifest["counts"], repository="me/it")))
    front = card.data.to_dict()
    assert front["base_model"] == "owner/base" and front["base_model_relation"] == "finetune"
    assert front["datasets"] == ["owner/pairs"]
    assert 'from_pretrained("me/it")' in card.text and front["license"] == "unknown"
    assert DatasetCard(dataset_card(recipe, manifest)).data.source_datasets == ["owner/pairs"]


def test_the_data_sets_card_counts_what_was_kept_and_dropped(
    learned_run: Recipe, exported: Export
) -> None:
    folder = exported(learned_run)
    manifest = read_manifest(RunStore(f"{learned_run.run_dir}/pairs"))
    card = DatasetCard.load(folder / "dataset" / "README.md")
    assert card.data.license == "unknown" and card.data.size_categories == ["n<1K"]
    for split, number in manifest["counts"]["pairs"].items():
        assert f"| {split} | {number:,} |" in card.text
    dropped = manifest["counts"]["rejected"]
    assert f"Dropped: {sum(dropped.values())} rows" in card.text
    for reason, number in dropped.items():
        assert f"| {reason} | {number} |" in card.text
    assert manifest["fingerprint"] in card.text and manifest["inputs"]["sources"][0] in card.text
    assert "- test: 0.2 of the prompts" in card.text and "`pairs.jsonl`" in card.text


@pytest.mark.slow
def test_an_adapter_is_merged_as_peft_merges_it(
    adapter_run: Recipe, exported: Export, model_dir: Path
) -> None:
    """Weights against peft's own merge, logits against peft's unmerged model; the card says so."""
    said: list[str] = []
    folder = exported(adapter_run, said)
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    unmerged = PeftModel.from_pretrained(base, published(adapter_run) / "model")
    expected = logits_of(unmerged, IDS)
    merged = unmerged.merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(folder)
    own = found.state_dict()
    assert own.keys() == merged.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(own[name], weight, rtol=0, atol=1e-7)
    moved = 0.0
    start = AutoModelForCausalLM.from_pretrained(model_dir)
    for ours, theirs, before in zip(
        logits_of(found, IDS), expected, logits_of(start, IDS), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
        moved = max(moved, float((ours - before).abs().max()))
    assert moved > 1e-2, "the adapter changes something"
    (line,) = [line for line in said if "unmerged adapter by" in line]
    assert float(re.findall(r"by ([\d.e-]+) at most", line)[0]) < 1e-4
    assert not list(folder.glob("adapter_*"))
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and "lora" in card.data.tags
    assert "adapters (LoRA) of rank 4, which are merged into the weights here" in card.text
    own_card = ModelCard.load(published(adapter_run) / "model" / "README.md")
    assert own_card.data.library_name == "peft" and "AutoPeftModelForCausalLM" in own_card.text


def test_what_is_not_the_policy_is_found(
    learned_run: Recipe, adapter_run: Recipe, exported: Export
) -> None:
    """Other logits, a weight too few, one too many, another tokenizer."""
    folder, source = exported(learned_run), published(learned_run) / "model"
    logits = logits_of(AutoModelForCausalLM.from_pretrained(source), IDS)
    check_model(WrittenModel(logits, is_merged=False), source, folder, IDS)
    nearly = WrittenModel([logits[0] + 1e-6, logits[1]], is_merged=False)
    with pytest.raises(StageFailed, match="is not the run's policy: .* differ by up to"):
        check_model(nearly, source, folder, IDS)
    check_model(WrittenModel(nearly.logits, is_merged=True), source, folder, IDS)
    far = WrittenModel([logits[0] * 1.01, logits[1]], is_merged=True)
    with pytest.raises(StageFailed, match="rounding explains"):
        check_model(far, source, folder, IDS)
    weights = load_file(folder / "model.safetensors")
    for change, fault in (
        ({"model.norm.weight": None}, "missing_keys: model.norm.weight"),
        ({"model.more.weight": torch.ones(2)}, "unexpected_keys: model.more.weight"),
    ):
        changed = {n: w for n, w in {**weights, **change}.items() if w is not None}
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(StageFailed, match=re.escape(fault)):
            check_model(WrittenModel(logits, is_merged=False), source, folder, IDS)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["post_processor"] = None
    settings["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(StageFailed, match="tokenizer is not the run's"):
        check_model(WrittenModel(logits, is_merged=False), source, folder, IDS)


def test_another_base_is_refused(adapter_run: Recipe, exported: Export, tmp_path: Path) -> None:
    """Merged into other weights than those of the training it would be another model."""
    copy, base = tmp_path / "copy", tmp_path / "base"
    shutil.copytree(adapter_run.run_dir, copy)
    shutil.copytree(adapter_run.model.name_or_path, base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    settings = copy / "train" / "model" / "adapter_config.json"
    changed = {**json.loads(settings.read_text()), "base_model_name_or_path": str(base)}
    settings.write_text(json.dumps(changed))
    manifest = json.loads((copy / "train" / "manifest.json").read_text())
    checksum = RunStore(str(copy)).checksum("train/model/adapter_config.json")
    manifest["outputs"]["model/adapter_config.json"] = checksum
    manifest.pop("seal")
    (copy / "train" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"base {base} holds other weights than the run was tra"):
        run_export(str(copy), Wanted(to=str(tmp_path / "export")), lambda line: None)
    assert not (tmp_path / "export").exists() and not list(tmp_path.glob(".tmp-*"))


@pytest.mark.slow
def test_stored_weights_are_read_again_pair_by_pair(
    activation_run: Recipe, exported: Export, model_dir: Path
) -> None:
    """By token_weights, with the numbers that the library makes itself of the same pair."""
    said: list[str] = []
    folder = exported(activation_run, said)
    pairs = open_pairs(Run(activation_run))
    stored = {
        name: tensor
        for file in sorted((folder / "masks").iterdir())
        for name, tensor in load_file(file).items()
    }
    total = sum(pairs.num_rows(split) for split in ("train", "test"))
    assert f"export: masks: activation_mask of {total} pairs in 4 files" in said
    mask = MASKS["activation"](**activation_run.mask.options())
    model = AutoModelForCausalLM.from_pretrained(folder)
    frozen = ReferenceModel(
        AutoModelForCausalLM.from_pretrained(model_dir), hooks="mlp", mapping="zn_rescale"
    )
    for split, row in (("train", 0), ("train", 40), ("test", 3)):
        (pair,) = pairs.pairs(split, [row])
        ((name,),) = pairs.values(split, [row], ("pair_id",))
        ids = [list(map(int, part)) for part in (pair.prompt, pair.chosen, pair.rejected)]
        inputs = padded_layout([TokenizedPair(*ids)])
        made = frozen.features(inputs, frozenset({"activation_mask"})).activation_mask
        assert made is not None
        kept = stored[f"{name}/activation_mask"]
        torch.testing.assert_close(kept, made.float(), atol=1e-5, rtol=1e-4)
        features = {"activation_mask": kept}
        found = token_weights(model, mask, ids[0], ids[1], other=ids[2], features=features)
        torch.testing.assert_close(
            found.reward, kept[: len(ids[1])].clamp(min=0), atol=1e-5, rtol=1e-4
        )
