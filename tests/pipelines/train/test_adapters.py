"""A folder with an adapter is its base with the adapter merged, wherever a model is wanted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import MakeRecipe, silent
from stores import losses_of
from transformers import AutoModelForCausalLM

from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, REFERENCE
from pipelines.errors import UserError
from pipelines.models.fingerprints import weights_fingerprint
from pipelines.pairs.table import open_pairs
from pipelines.recipe.stage import Run
from pipelines.reference.stage import run_facts
from pipelines.reference.store import open_reference
from sparsepo import ReferenceModel, padded_layout

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def adapter(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA folder of the tiny model whose update is not zero."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_dir),
        LoraConfig(r=4, target_modules=["q_proj", "up_proj"]),
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("adapter") / "sft"
    model.save_pretrained(folder)
    return folder


def test_an_adapter_folder_is_the_base_with_the_adapter(
    adapter: Path, model_dir: Path, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """Against peft's own unmerged forward; the base alone is far away."""
    from peft import PeftModel

    recipe = recipe_in(tmp_path / "run", f"model.name_or_path={adapter}")
    run_stages(recipe, (PREPARE, REFERENCE), silent)
    pairs = open_pairs(Run(recipe))
    rows = list(range(12))
    stored = (
        open_reference(run_facts(Run(recipe)), pairs)
        .features("train", rows, ["reference_logps"])
        .reference_logps
    )
    assert stored is not None
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    inputs = padded_layout(pairs.pairs("train", rows))
    plain = ReferenceModel(base).features(inputs, ["reference_logps"]).reference_logps
    live = (
        ReferenceModel(PeftModel.from_pretrained(base, adapter).eval())
        .features(inputs, ["reference_logps"])
        .reference_logps
    )
    torch.testing.assert_close(stored, live, atol=1e-4, rtol=0)
    assert plain is not None
    assert float((stored - plain).abs().max()) > 0.05
    assert weights_fingerprint(adapter) != weights_fingerprint(model_dir)
    assert float(losses_of(recipe)[0]) == pytest.approx(np.log(2), abs=1e-5), (
        "the policy starts as the reference: with the adapter"
    )


def test_adapters_that_cannot_be_taken_are_named(
    adapter: Path, model_dir: Path, tmp_path: Path, recipe_in: MakeRecipe
) -> None:
    both = tmp_path / "both"
    shutil.copytree(model_dir, both)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, both / name)
    lost = tmp_path / "lost"
    shutil.copytree(adapter, lost)
    settings = json.loads((lost / "adapter_config.json").read_text())
    (lost / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": str(tmp_path / "gone")})
    )
    pickled = tmp_path / "pickled"
    shutil.copytree(adapter, pickled)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    for folder, message in (
        (both, "it holds both an adapter and whole weights"),
        (lost, r"adapter .*lost: its base model '.*gone': no such directory"),
        (pickled, r"no weights \(adapter_model.safetensors\); pickled weights are not read"),
    ):
        with pytest.raises(UserError, match=message):
            run_stages(
                recipe_in(tmp_path / "run", f"model.name_or_path={folder}"),
                (PREPARE, REFERENCE),
                silent,
            )
