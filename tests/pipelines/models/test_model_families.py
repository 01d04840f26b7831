"""Families of all kinds through the stages; what a family does not have is refused before any
work.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import MakeRecipe, trainer_of
from tiny_families import PLAIN, PLAIN_SIZES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, REFERENCE
from pipelines.errors import UserError
from pipelines.pairs.table import open_pairs
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.stage import run_facts
from pipelines.reference.store import open_reference
from pipelines.train.metrics import read_metrics


@pytest.fixture
def model_of(model_dir: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A tiny model of a family beside the tokenizer of the tests."""

    def write(case: str) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        ends = {
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.eos_token_id,
        }
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            case, **{**PLAIN_SIZES, **PLAIN[case], "vocab_size": len(tokenizer), **ends}
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / case)
        tokenizer.save_pretrained(tmp_path / case)
        return tmp_path / case

    return write


@pytest.fixture
def make(model_of: Callable[[str], Path], recipe_in: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    def build(case: str, *overrides: str) -> Recipe:
        return recipe_in(
            tmp_path / f"run-{case}",
            f"model.name_or_path={model_of(case)}",
            "train.max_steps=2",
            *overrides,
        )

    return build


@pytest.mark.parametrize("case", ["llama4_text", "mamba"])
def test_what_needs_hooks_is_refused_by_name_before_any_work(case: str, make: MakeRecipe) -> None:
    """`plan` and `run` alike; plain DPO and masks over the last layer are planned."""
    assert run_plan(make(case, "objective.name=dpo"))["train"]["parameters"] > 0
    last = make(
        case, "objective.name=sparsepo", "mask.kind=learned", "mask.architecture=simple_last"
    )
    assert run_plan(last)["reference"]["bytes_per_scored_token"] > 0
    refused = make(case, "objective.name=mapo", "mask.kind=activation")
    for command in (run_plan, lambda recipe: run_stages(recipe, (PREPARE,), pytest.fail)):
        with pytest.raises(
            UserError,
            match=rf"mask.hooks: no activation hook table for model type '{case}' \(known: "
            r"gpt_neox",
        ):
            command(refused)
    assert not Path(refused.run_dir).exists()


def test_points_that_a_family_lacks_are_refused_before_any_work(make: MakeRecipe) -> None:
    refused = make("mixtral", "objective.name=mapo", "mask.kind=activation", "mask.hooks=mlp")
    for command in (run_plan, lambda recipe: run_stages(recipe, (PREPARE,), pytest.fail)):
        with pytest.raises(
            UserError,
            match=r"mask.hooks: hooks='mlp' \(mlp.post_act: its experts have an activation each\): "
            r"model type 'mixtral' offers resid.post_emb",
        ):
            command(refused)
    assert not Path(refused.run_dir).exists()


def test_layouts_and_layers_that_a_family_lacks_are_refused_before_any_work(
    make: MakeRecipe,
) -> None:
    cases = {
        (
            "gpt_neo",
            "train.layout=packed",
        ): r"train.layout=packed: GPTNeoForCausalLM cannot: it masks by the place in the row",
        (
            "mamba",
            "reference.layout=packed",
        ): r"reference.layout=packed: MambaForCausalLM cannot: it has layers of kind "
        r"linear_attention",
        (
            "opt",
            "mask.architecture=simple_all",
        ): r"states of all layers: .*opt ends in states of 8, its layers in 16",
    }
    for (case, option), message in cases.items():
        learned = (
            ("objective.name=sparsepo", "mask.kind=learned") if option.startswith("mask") else ()
        )
        recipe = make(case, *learned, option)
        for command in (run_plan, lambda recipe: run_stages(recipe, (PREPARE,), pytest.fail)):
            with pytest.raises(UserError, match=message):
                command(recipe)
        assert not Path(recipe.run_dir).exists()


@pytest.mark.usefixtures("ray_cluster")
def test_the_stages_score_and_train_them(make: MakeRecipe, tmp_path: Path) -> None:
    """Log-probabilities are the model's own, sequence by sequence; OPT's last states are
    narrower than its layers.
    """
    shared = f"paths.pairs={tmp_path}/pairs"
    opt = make("opt", "objective.name=tdpo1", "train.micro_batch_tokens=256", shared)
    run_stages(opt, (PREPARE, REFERENCE), lambda line: None)
    pairs = open_pairs(Run(opt))
    stored = (
        open_reference(run_facts(Run(opt)), pairs)
        .features("train", range(3), ["reference_logps"])
        .reference_logps
    )
    model = AutoModelForCausalLM.from_pretrained(opt.model.name_or_path, dtype=torch.float32)
    expected = []
    for pair in pairs.pairs("train", range(3)):
        for response in pair.responses():
            logits = model(input_ids=torch.tensor([[*pair.prompt, *response]])).logits[
                0, len(pair.prompt) - 1 : -1
            ]
            expected.append(
                logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None].long())[:, 0]
            )
    torch.testing.assert_close(stored, torch.cat(expected).detach(), atol=1e-5, rtol=1e-4)
    neo = make(
        "gpt_neo",
        "objective.name=tdpo1",
        "reference.mode=online",
        "train.micro_batch_tokens=256",
        shared,
    )
    for recipe, layout in ((opt, "shared"), (neo, "padded")):
        trainer = trainer_of(recipe)
        assert trainer.layout.kind == layout
        trainer.run(lambda metrics: None)
        trainer.close()
        first, second = (r for r in read_metrics(trainer.store) if "kind" not in r)
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
        assert first["kl/reference_policy"] < 1e-6 < second["kl/reference_policy"]


@pytest.mark.usefixtures("ray_cluster")
def test_mapo_weighs_tokens_by_their_activations(make: MakeRecipe, tmp_path: Path) -> None:
    """Of a mixture, of ALiBi and of parallel blocks: from a plan to a policy that has moved. The
    weights are computed anew, from hooks on one module of each layer.
    """
    projections = {
        "mixtral": "layers.{}.self_attn.o_proj",
        "bloom": "h.{}.self_attention.dense",
        "cohere": "layers.{}.self_attn.o_proj",
    }
    for case, path in projections.items():
        recipe = make(
            case,
            "objective.name=mapo",
            "mask.kind=activation",
            "mask.hooks=[attn.v_out]",
            "train.micro_batch_tokens=256",
            f"paths.pairs={tmp_path}/pairs",
        )
        assert run_plan(recipe)["reference"]["bytes_per_scored_token"] > 0
        run_stages(recipe, (PREPARE, REFERENCE), lambda line: None)
        pairs = open_pairs(Run(recipe))
        stored = (
            open_reference(run_facts(Run(recipe)), pairs)
            .features("train", range(3), ["activation_mask"])
            .activation_mask
        )
        model = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path, dtype=torch.float32)
        seen: list[torch.Tensor] = []
        for layer in range(2):
            model.base_model.get_submodule(path.format(layer)).register_forward_pre_hook(
                lambda module, args, seen=seen: seen.append(args[0].mean(-1)[0])
            )
        expected = []
        for pair in pairs.pairs("train", range(3)):
            for response in pair.responses():
                seen.clear()
                model(input_ids=torch.tensor([[*pair.prompt, *response]]))
                rows = [means[len(pair.prompt) - 1 : -1] for means in seen]
                spans = [(row - row.min()) / (row.max() - row.min()) for row in rows]
                expected.append(torch.stack(spans).mean(0))
        torch.testing.assert_close(stored, torch.cat(expected).detach(), atol=1e-4, rtol=1e-3)
        trainer = trainer_of(recipe)
        trainer.run(lambda metrics: None)
        trainer.close()
        first, second = (r for r in read_metrics(trainer.store) if "kind" not in r)
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
        assert first["kl/reference_policy"] < 1e-6 < second["kl/reference_policy"]
