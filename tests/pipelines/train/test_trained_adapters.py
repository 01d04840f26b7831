"""What `train.lora` asks for: trained, resumed, sharded, and published so that peft alone has the
policy's logits.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from matrices import members
from peft import LoraConfig, PeftModel, get_peft_model
from ranks import Ranks
from runs import CPU, MakeRecipe, trainer_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipelines.commands.plan import run_plan
from pipelines.errors import UserError
from pipelines.models.loading import load_causal_lm
from pipelines.recipe.run_paths import STATE
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.train.metrics import read_metrics
from pipelines.train.policy import open_policy
from pipelines.train.stage import training_facts
from pipelines.train.steps import step_folder

IDS = torch.tensor([[1, 5, 9, 3, 7]])
# The tiny model's head shares its weights with the embeddings.
WANTED = {
    "dora": "{rank: 4, use_dora: true, rank_pattern: {q_proj: 2}, modules_to_save: [lm_head]}",
    "rslora": (
        "{rank: 4, use_rslora: true, target_modules: [embed_tokens, q_proj, up_proj], "
        "alpha_pattern: {'layers.0.mlp.up_proj': 7}}"
    ),
    "whole": (
        "{rank: 2, target_modules: all-linear, bias: all, "
        "modules_to_save: [embed_tokens, lm_head, norm]}"
    ),
}


@pytest.fixture
def make(recipe_in: MakeRecipe, scored: Recipe, tmp_path: Path) -> MakeRecipe:
    """A recipe on finished pairs and reference: make(name, lora, ...)."""

    def build(name: str, lora: str, *overrides: str, **top: Any) -> Recipe:
        paths = {"pairs": f"{scored.run_dir}/pairs", "reference": f"{scored.run_dir}/reference"}
        return recipe_in(
            tmp_path / name,
            "objective.name=tdpo1",
            "objective.beta=0.5",
            f"train.lora={lora}",
            "train.max_steps=4",
            *overrides,
            paths=paths,
            **top,
        )

    return build


def trained(recipe: Recipe, steps: int | None = None) -> Recipe:
    trainer = trainer_of(recipe)
    if steps is None:
        trainer.run(lambda metrics: None)
    else:
        while trainer.step < steps:
            trainer.optimizer_step()
        trainer._checkpoint({})
        assert trainer.checkpoints.failure(wait=True) is None
    trainer.close()
    return recipe


def curve(recipe: Recipe) -> torch.Tensor:
    records = read_metrics(RunStore(f"{recipe.run_dir}/train"))
    found = [value for r in records if "kind" not in r for value in (r["loss"], r["grad_norm"])]
    return torch.tensor(found, dtype=torch.float64)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def published(recipe: Recipe) -> Path:
    return Path(recipe.run_dir) / "train" / "model"


@pytest.mark.parametrize("kind", members(WANTED, ("whole",)))
def test_peft_alone_has_the_policys_logits(kind: str, make: MakeRecipe, model_dir: Path) -> None:
    """Of the adapter on its base; of whole weights in transformers; of the checkpoint here."""
    recipe = make("adapter", WANTED[kind])
    trainer = trainer_of(recipe)
    trainer.run(lambda metrics: None)
    policy = logits_of(trainer.model.causal_lm)
    trainer.close()
    plain = AutoModelForCausalLM.from_pretrained(model_dir)
    assert float((logits_of(plain) - policy).abs().max()) > 1e-3, "it was trained"
    close = {"atol": 2e-5, "rtol": 1e-4}
    alone = PeftModel.from_pretrained(plain, published(recipe))
    torch.testing.assert_close(logits_of(alone), policy, **close)
    here = load_causal_lm(str(published(recipe)), torch.float32)
    torch.testing.assert_close(logits_of(here), policy, **close)
    opened = open_policy(training_facts(Run(recipe)), 4, None, torch.float32, CPU)
    torch.testing.assert_close(logits_of(opened.causal_lm), policy, **close)
    merged = trained(make("merged", WANTED[kind], "train.lora.save=merged"))
    whole = AutoModelForCausalLM.from_pretrained(published(merged))
    torch.testing.assert_close(logits_of(whole), policy, **close)


def test_the_adapter_says_what_was_asked_for(make: MakeRecipe) -> None:
    recipe = trained(make("one", WANTED["dora"], "train.max_steps=1"))
    said = json.loads((published(recipe) / "adapter_config.json").read_text())
    tensors = load_file(published(recipe) / "adapter_model.safetensors")
    assert said["use_dora"] and said["rank_pattern"] == {"q_proj": 2}
    ranks = {
        name.split(".")[-3]: len(tensor) for name, tensor in tensors.items() if "lora_A" in name
    }
    assert ranks["q_proj"] == 2 and set(ranks.values()) == {2, 4}
    assert any("lora_magnitude_vector" in name for name in tensors)
    recipe = trained(make("other", WANTED["rslora"], "train.max_steps=1"))
    said = json.loads((published(recipe) / "adapter_config.json").read_text())
    assert said["use_rslora"] and said["alpha_pattern"] == {"layers.0.mlp.up_proj": 7.0}


@pytest.mark.parametrize("kind", members(WANTED, ("whole",)))
def test_resumed_is_uninterrupted(kind: str, make: MakeRecipe) -> None:
    whole, halves = trained(make("whole", WANTED[kind])), make("halves", WANTED[kind])
    trained(halves, 2)
    assert RunStore(f"{halves.run_dir}/train").exists(f"{step_folder(2)}/{STATE}")
    trained(halves)
    one, other = (load_file(published(r) / "adapter_model.safetensors") for r in (whole, halves))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", members(WANTED, ("dora",)))
def test_checkpointed_activations_change_nothing(kind: str, make: MakeRecipe) -> None:
    plain = trained(make("plain", WANTED[kind]))
    found = trained(make("checkpointed", WANTED[kind], "train.gradient_checkpointing=true"))
    torch.testing.assert_close(curve(found), curve(plain), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WANTED)
def test_two_ranks_do_what_one_does(kind: str, make: MakeRecipe, ranks: Ranks) -> None:
    """Replicated and sharded, where adapters are replicated and whole modules sharded."""
    one = trained(make("one", WANTED[kind]))
    wanted = load_file(published(one) / "adapter_model.safetensors")
    for strategy in ("ddp", "fsdp"):
        found = make(strategy, WANTED[kind], f"train.strategy={strategy}", "train.num_workers=2")
        ranks.train(found)
        torch.testing.assert_close(curve(found), curve(one), rtol=1e-4, atol=1e-6)
        tensors = load_file(published(found) / "adapter_model.safetensors")
        assert tensors.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_is_trained_is_float32_where_products_are_not(
    strategy: str, make: MakeRecipe, ranks: Ranks
) -> None:
    """The frozen base is in bfloat16 under mixed precision."""
    for kind, lora in WANTED.items():
        recipe = make(
            f"{strategy}-{kind}",
            lora,
            f"train.strategy={strategy}",
            "train.precision=mixed",
            "train.num_workers=2",
        )
        ranks.train(recipe)
        tensors = load_file(published(recipe) / "adapter_model.safetensors")
        parts = [tensor for name, tensor in tensors.items() if "base_layer" not in name]
        assert {tensor.dtype for tensor in parts} == {torch.float32}
        assert curve(recipe).isfinite().all()


@pytest.mark.slow
def test_whole_weights_may_start_from_an_adapter(
    make: MakeRecipe, recipe_in: MakeRecipe, model_dir: Path, tmp_path: Path
) -> None:
    """One that changed the embeddings and left the head: both are in what is published."""
    start = tmp_path / "start"
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_dir),
        LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM"),
    )
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    adapted.save_pretrained(start)
    expected = logits_of(adapted)
    for lora in ("null", "{rank: 2, save: merged}"):
        recipe = make(
            f"run-{len(lora)}",
            lora,
            f"model.name_or_path={start}",
            f"model.reference={model_dir}",
            "train.learning_rate=1e-9",
            "train.max_steps=1",
        )
        trained(recipe)
        found = AutoModelForCausalLM.from_pretrained(published(recipe))
        torch.testing.assert_close(logits_of(found), expected, atol=2e-5, rtol=1e-4)
        shutil.rmtree(recipe.run_dir)


def test_what_peft_would_leave_out_is_refused(make: MakeRecipe) -> None:
    for lora, line in (
        ("{modules_to_save: [lm_heads]}", "modules_to_save: the model has no module 'lm_heads'"),
        (
            "{target_modules: [q_proj, nothing]}",
            "target_modules: the model has no module 'nothing'; linear layers are",
        ),
        (
            "{target_modules: [q_proj], rank_pattern: {up_proj: 2}}",
            "rank_pattern: 'up_proj' is no layer with an adapter; these are q_proj",
        ),
        ("{alpha_pattern: {'[': 2}}", r"alpha_pattern: '\[' is no pattern"),
        (
            "{target_modules: [q_proj, lm_head]}",
            "leave it out of peft's target modules; to train it whole, name it in",
        ),
    ):
        with pytest.raises(UserError, match=line) as caught:
            run_plan(make("refused", lora))
        assert "\n" not in str(caught.value)
