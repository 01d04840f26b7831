"""Every packaged recipe, end to end on a tiny model of its family."""

import json
from pathlib import Path

import pytest
import torch
from runs import run_here
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipelines.commands.discriminator import discriminator_recipe
from pipelines.commands.plan import run_plan
from pipelines.commands.sft import in_turn, plan_sft, sft_recipe
from pipelines.commands.stages import (
    DISCRIMINATOR,
    EVALUATE,
    PREPARE,
    REFERENCE,
    REPORT,
    TRAIN,
)
from pipelines.recipe.files import load_recipe, packaged
from pipelines.recipe.schema import Recipe
from pipelines.storage.store import RunStore
from pipelines.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("ray_cluster")
SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
NEOX = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
# Of the models that the recipes name.
FAMILIES = {
    "tldr": ("gptj", {**SIZES, "rotary_dim": 4}),
    "code": ("gpt_bigcode", SIZES),
    "imdb": ("gpt2", SIZES),
    "hh": ("gpt_neox", NEOX),
}
# What a recipe puts together, no test of an objective or a producer alone; the others in
# `make test-exhaustive`.
IN_THE_SUITE = (
    "tldr-sparsepo-common", "tldr-mapo", "code-sparsepo-common", "code-mapo",
    "hh-orpo", "hh-beta-dpo", "hh-dpo-losses", "hh-kto", "hh-sum", "hh-meet", "hh-transport",
    "hh-adversarial", "hh-contrast", "hh-discriminator", "hh-segment", "hh-selective",
    "hh-token-reward", "imdb-partition",
)  # fmt: skip
# Of every family one, with adapters and without, and what only a recipe puts together.
QUICK = ("tldr-mapo", "code-sparsepo-common", "hh-kto")


def marks(name: str) -> list[pytest.MarkDecorator]:
    if name in QUICK:
        return []
    return [pytest.mark.slow if name in IN_THE_SUITE else pytest.mark.exhaustive]


@pytest.fixture(scope="module")
def scored_pairs(rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with a score per response, as ODPO needs them."""
    path = tmp_path_factory.mktemp("scored") / "pairs.jsonl"
    scored = [row | {"good": 1.0 + i % 3, "bad": 0.5} for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in scored))
    return path


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=marks(name)) for name in sorted(packaged("recipe"))],
)
def test_packaged_recipes_run_on_tiny_models_of_their_families(
    name: str, model_dir: Path, scored_pairs: Path, tmp_path: Path
) -> None:
    """Plan, prepare, reference, four steps of training, an evaluation and the report."""
    setting = name.partition("-")[0]
    kind, shape = FAMILIES[setting]
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **shape,
    )
    model = tmp_path / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    columns = "{chosen_score: good, rejected_score: bad}"
    source = f"{{path: {scored_pairs}, form: text, columns: {columns}}}"
    named = load_recipe(name).model.model_dump(include={"positive_scorer", "negative_scorer"})
    scorers = [f"model.{key}={model}" for key, value in named.items() if value is not None]
    recipe = load_recipe(
        name,
        [
            f"run_dir={tmp_path}/run", f"model.name_or_path={model}",
            f"data.sources=[{source}]", "data.test=[]",
            "data.validation_fraction=0.1", "evaluate.split=validation",
            "data.max_prompt_tokens=24", "data.max_response_tokens=24", "train.max_steps=4",
            "train.global_batch_size=8", "train.learning_rate=1e-2", "train.warmup_fraction=0",
            "evaluate.benchmarks=[preference]",
            "discriminator.held_out=validation", "discriminator.batch_pairs=16",
            *scorers,
        ],
    )  # fmt: skip
    if recipe.sft.control is not None:
        tuned_with_a_control(recipe)
        return
    if recipe.model.discriminator is not None:
        run_here(discriminator_recipe(recipe), (PREPARE, REFERENCE, DISCRIMINATOR))
    assert run_plan(recipe)["train"]["parameters"] > 0
    run_here(recipe, (PREPARE, REFERENCE, TRAIN, EVALUATE, REPORT))
    records = [r for r in read_metrics(RunStore(f"{recipe.run_dir}/train")) if "kind" not in r]
    if "reference_logps" in recipe.required_features():
        assert records[0]["rewards/margins"] == pytest.approx(0, abs=1e-5), (
            "step 1: the policy is the reference"
        )
    if "kl/reference_policy" in records[0]:
        assert records[-1]["kl/reference_policy"] > 1e-4 > records[0]["kl/reference_policy"]
    assert (Path(recipe.run_dir) / "train" / "model" / "adapter_config.json").exists() == (
        setting == "tldr"
    )
    page = Path(recipe.run_dir, "report", "index.html").read_text()
    assert "preference" in page


def tuned_with_a_control(recipe: Recipe) -> None:
    """`sparsepo sft` in both stages, two steps each, then `sparsepo run`: what it left, evaluated
    behind the control and without.
    """
    control = recipe.sft.control
    assert control is not None
    few = control.model_copy(update={"soft_max_steps": 2})
    sft = recipe.sft.model_copy(
        update={"control": few, "max_steps": 2, "global_batch_size": 8, "learning_rate": 1e-2}
    )
    evaluate = recipe.evaluate.model_copy(
        update={"benchmarks": ("preference", "sentiment"), "num_prompts": 8}
    )
    recipe = recipe.model_copy(update={"sft": sft, "evaluate": evaluate})
    found = plan_sft(recipe, None, "hh-meet")
    assert (found["soft"]["steps"], found["train"]["steps"]) == (2, 2)
    for part in in_turn(sft_recipe(recipe)):
        run_here(part, (PREPARE, TRAIN))
    records = [r for r in read_metrics(RunStore(f"{recipe.run_dir}/sft/train")) if "loss" in r]
    assert records[-1]["loss"] < records[0]["loss"]
    run_here(recipe, (PREPARE, EVALUATE, REPORT))
    numbers = json.loads(Path(recipe.run_dir, "evaluation", "sentiment.json").read_text())
    assert [numbers[f"{at}control"] for at in ("", "control=bad/", "control=none/")] == [
        "good", "bad", "none"
    ]  # fmt: skip
    assert numbers["control=none/reward/first_control_gain"]["n"] == 8
    assert "Behind each control" in Path(recipe.run_dir, "report", "index.html").read_text()


def test_the_recipes_of_the_suite_are_packaged() -> None:
    assert set(QUICK) <= set(IN_THE_SUITE) <= packaged("recipe").keys()
