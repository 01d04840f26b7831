"""A policy and a reference of which one has padded embeddings, through the stages: every number is
that of the pair cut by `resize_token_embeddings`.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from matrices import members
from ranks import Ranks
from runs import MakeRecipe, run_here, silent
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, TRAIN
from pipelines.errors import UserError
from pipelines.models.readers import padded_vocabularies
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.train.metrics import read_metrics

Models = dict[str, Path]
_CLOCKS = ("seconds", "per_second", "mfu", "memory")


@pytest.fixture(scope="module")
def models(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Policy and reference, each as the tokenizer has tokens and with rows that take a tenth of the
    probability; the policy's are a multiple of 64.
    """
    folder = tmp_path_factory.mktemp("vocabularies")
    tokens = len(AutoTokenizer.from_pretrained(model_dir))
    found = {}
    sizes = {"policy": -(-(tokens + 1) // 64) * 64, "reference": tokens + 5}
    for seed, (name, rows) in enumerate(sizes.items()):
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        model.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                layer.weight[tokens:] = 0.1 * torch.randn_like(layer.weight[tokens:])
        for kind in ("padded", "cut"):
            found[f"{name}, {kind}"] = target = folder / f"{name}-{kind}"
            shutil.copytree(model_dir, target)
            if kind == "cut":
                model.resize_token_embeddings(tokens)
            model.save_pretrained(target)
    return found


OBJECTIVES = {
    "stored": ("objective={name: tdpo2, alpha: 0.5}",),
    "top-k": ("objective={name: tdpo1}", "reference.topk=8"),
    "log-probabilities": ("objective={name: dpo}", "train.lora={rank: 4}"),
    "online": (
        "objective={name: sparsepo}",
        "mask={kind: learned, sharing: independent, adam_eps: 1.0e-3}",
        "reference.mode=online",
    ),
    "activations": (
        "objective={name: mapo}", "mask={kind: activation, hooks: all, mapping: none}"
    ),
}  # fmt: skip
PAIRS = {"of the policy": ("padded", "cut"), "of the reference": ("cut", "padded")}


@pytest.fixture(scope="module")
def numbers(
    models: Models,
    recipe_in: MakeRecipe,
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """numbers(case, of policy, of reference) -> recipe and metrics of a finished training."""
    folder = tmp_path_factory.mktemp("runs")
    known: dict[tuple[str, ...], tuple[Recipe, list[dict[str, Any]]]] = {}

    def make(case: str, policy: str, reference: str) -> tuple[Recipe, list[dict[str, Any]]]:
        key = (case, policy, reference)
        if key not in known:
            recipe = recipe_in(
                folder / "-".join(key),
                f"model.name_or_path={models[f'policy, {policy}']}",
                f"model.reference={models[f'reference, {reference}']}",
                *OBJECTIVES[case],
                "objective.beta=0.5",
                "train.max_steps=3",
                "data.validation_fraction=0.1",
                "train.validate_every=3",
                paths={"pairs": str(folder / "pairs")},
            )
            run_here(recipe, (PREPARE, REFERENCE, TRAIN))
            known[key] = recipe, list(read_metrics(Run(recipe).paths.train))
        return known[key]

    return make


def same(found: Any, expected: Any, where: str = "") -> None:
    """Numbers to rounding, all else as it is; clocks are left out."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            if not any(part in key for part in _CLOCKS):
                same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{where}[{number}]")
    elif isinstance(expected, float) and not math.isnan(expected):
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-4), where
    elif not isinstance(expected, float):
        assert found == expected, where


@pytest.mark.parametrize("padding", members(PAIRS, ("of the policy",)))
@pytest.mark.parametrize("case", members(OBJECTIVES, ("top-k",)))
def test_training_is_that_of_the_pair_without_padding(
    case: str, padding: str, numbers: Any
) -> None:
    found, expected = numbers(case, *PAIRS[padding])[1], numbers(case, "cut", "cut")[1]
    assert [r["step"] for r in expected if "kind" not in r] == [1, 2, 3]
    same(found, expected)


@pytest.mark.slow
def test_sharded_ranks_cut_the_head_too(
    numbers: Any, ranks: Ranks, models: Models, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    one, expected = numbers("stored", "padded", "cut")
    recipe = recipe_in(
        tmp_path / "fsdp",
        f"model.name_or_path={models['policy, padded']}",
        f"model.reference={models['reference, cut']}",
        *OBJECTIVES["stored"],
        "objective.beta=0.5",
        "train.max_steps=3",
        "data.validation_fraction=0.1",
        "train.validate_every=3",
        "train.strategy=fsdp",
        "train.num_workers=2",
        paths={"pairs": one.paths.pairs, "reference": f"{one.run_dir}/reference"},
    )
    ranks.train(recipe)
    found = list(read_metrics(Run(recipe).paths.train))
    for key in ("loss", "grad_norm", "kl/reference_policy"):
        same([r[key] for r in found if key in r], [r[key] for r in expected if key in r], key)
    assert len([r for r in found if "grad_norm" in r]) == 3


@pytest.mark.parametrize("padding", members(PAIRS, ("of the reference",)))
def test_evaluation_is_that_of_the_pair_without_padding(
    padding: str, numbers: Any, recipe_in: MakeRecipe
) -> None:
    """Held-out pairs, samples of both models with their distance, of model and checkpoint."""
    results = []
    for key in (PAIRS[padding], ("cut", "cut")):
        recipe = numbers("stored", *key)[0]
        recipe = recipe.model_copy(
            update={
                "evaluate": recipe.evaluate.model_copy(
                    update={"benchmarks": ("preference", "sentiment", "masks"), "num_prompts": 6}
                )
            }
        )
        run_here(recipe, (EVALUATE,))
        folder = Path(recipe.run_dir) / "evaluation"
        results.append({p.name: json.loads(p.read_text()) for p in folder.glob("*.json")})
    for name in ("preference.json", "sentiment.json", "masks.json"):
        same(results[0][name], results[1][name], name)


def test_the_published_model_keeps_its_rows(numbers: Any, models: Models) -> None:
    for case in ("stored", "log-probabilities"):
        recipe = numbers(case, "padded", "cut")[0]
        start = AutoModelForCausalLM.from_pretrained(models["policy, padded"])
        trained = AutoModelForCausalLM.from_pretrained(Path(recipe.run_dir) / "train" / "model")
        rows, tokens = len(start.get_input_embeddings().weight), padded_vocabularies(recipe)
        assert tokens is not None and tokens.common < rows
        table = trained.get_input_embeddings().weight
        assert len(table) == rows
        torch.testing.assert_close(
            table[tokens.common :], start.get_input_embeddings().weight[tokens.common :]
        )


def test_a_store_is_refused_to_a_policy_that_it_was_not_scored_for(
    numbers: Any, models: Models, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """Its reference was cut to the policy's rows; one that was not serves every policy with
    enough of them.
    """
    recipe, _ = numbers("stored", "cut", "padded")
    tokens = padded_vocabularies(recipe)
    assert tokens is not None

    def on(policy: str, reference: str, store: Recipe) -> Recipe:
        return recipe_in(
            tmp_path / f"{policy}-{reference}",
            f"model.name_or_path={models[f'policy, {policy}']}",
            f"model.reference={models[f'reference, {reference}']}",
            *OBJECTIVES["stored"],
            "data.validation_fraction=0.1",
            paths={"pairs": store.paths.pairs, "reference": f"{store.run_dir}/reference"},
        )

    other = on("padded", "padded", recipe)
    line = f"holds another run's reference stage: input vocabulary was {tokens.policy}, now it is"
    for act in (run_plan, lambda r: run_stages(r, (REFERENCE,), silent)):
        with pytest.raises(UserError, match=line):
            act(other)
    fits = on("cut", "cut", numbers("stored", "padded", "cut")[0])
    run_stages(fits, (REFERENCE,), silent)
    assert not (tmp_path / "cut-cut" / "reference").exists(), "it took the store that was there"


def test_plan_says_in_a_line_what_is_compared(models: Models, make_recipe: MakeRecipe) -> None:
    reference = f"model.reference={models['reference, cut']}"
    recipe = make_recipe(f"model.name_or_path={models['policy, padded']}", reference)
    tokens = padded_vocabularies(recipe)
    assert tokens is not None
    assert run_plan(recipe)["reference"]["vocabulary"] == (
        f"the policy has {tokens.policy} rows of embeddings, the reference {tokens.reference}: "
        f"compared over the {tokens.reference} that both have"
    )
    assert Run(recipe).record(TRAIN).inputs["vocabulary"] == tokens.reference
    cut = make_recipe(f"model.name_or_path={models['policy, cut']}", reference)
    assert "vocabulary" not in run_plan(cut)["reference"]
    assert "vocabulary" not in Run(cut).record(TRAIN).inputs
    # What is not compared with the reference is trained as it is.
    alone = recipe.model_copy(update={"objective": make_recipe("objective.name=simpo").objective})
    assert "vocabulary" not in Run(alone).record(TRAIN).inputs
