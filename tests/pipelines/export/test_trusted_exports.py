"""Runs of a model with code of its own: exported with it, read only where it is trusted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from runs import MakeRecipe, run_here

from pipelines.commands.stages import PREPARE, TRAIN
from pipelines.errors import UserError
from pipelines.export.model import logits_of
from pipelines.models.loading import load_causal_lm
from pipelines.models.trusted_code import TRUSTED_CODE, code_hash
from pipelines.recipe.schema import Recipe

Export = Callable[..., Path]
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_exported"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def coded(model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model with a Python file that its configuration names."""
    folder = tmp_path / "own"
    shutil.copytree(model_dir, folder)
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    changed = {**config, "model_type": "own_exported", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(changed))
    return folder


@pytest.mark.parametrize("lora", ["null", "{rank: 2, target_modules: [q_proj]}"])
def test_code_goes_along_and_is_run_where_it_is_trusted(
    lora: str, coded: Path, scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path,
    exported: Export, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(TRUSTED_CODE, code_hash(coded))
    recipe = recipe_in(
        tmp_path / "run", "objective.name=simpo", "train.max_steps=2", f"train.lora={lora}",
        f"model.name_or_path={coded}", paths={"pairs": f"{scored.run_dir}/pairs"},
    )  # fmt: skip
    run_here(recipe, (PREPARE, TRAIN))
    folder = exported(recipe)
    assert (folder / "own.py").read_text() == CODE and code_hash(folder) == code_hash(coded)
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    ids = [[1, 5, 9, 3, 7]]
    model = load_causal_lm(str(folder), torch.float32)
    assert type(model).__name__ == "OwnForCausalLM"
    published = Path(recipe.run_dir) / "train" / "model"
    policy = load_causal_lm(str(coded if lora != "null" else published), torch.float32)
    if lora != "null":
        policy = PeftModel.from_pretrained(policy, published)
    torch.testing.assert_close(logits_of(model, ids)[0], logits_of(policy, ids)[0])
    monkeypatch.delenv(TRUSTED_CODE)
    with pytest.raises(UserError, match="it needs code of its own"):
        exported(recipe, name="again")
    assert not (tmp_path / "again").exists()
