"""What producers of token weights read: stored features against plain models, and what the step
gives them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_world import World, log, prepared, stop_at_a_checkpoint, trained
from matrices import members
from ranks import Ranks
from runs import CPU, MakeRecipe, silent, trainer_of
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
)

from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.stages import REFERENCE
from pipelines.errors import UserError
from pipelines.pairs.table import open_pairs
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.features import feature_source
from pipelines.reference.stage import run_facts
from sparsepo.batching.layouts import padded_layout

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_stored_scorer_ratios_are_the_models_own(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """Against plain transformers, one unpadded response at a time; other scorers in the same
    place are refused.
    """
    recipe = recipe_in(
        tmp_path, "objective.name=tis_dpo", *world.options, *world.scorers, paths=world.paths
    )
    pairs = open_pairs(Run(recipe))
    rows = [7, 2]
    tokenised = pairs.pairs("train", rows)
    found = (
        feature_source(run_facts(Run(recipe)), pairs, CPU)
        .features("train", rows, padded_layout(tokenised))
        .scorer_log_ratios
    )
    folders = [option.partition("=")[2] for option in world.scorers]
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    expected = []
    for pair in tokenised:
        for response in pair.responses():
            ids = torch.tensor([[*pair.prompt, *response]])
            with torch.no_grad():
                logps = [
                    model(ids).logits[0].log_softmax(-1)[len(pair.prompt) - 1 : -1]
                    for model in models
                ]
            expected.append(
                (logps[0] - logps[1])[
                    torch.arange(len(response)), torch.tensor(list(map(int, response)))
                ]
            )
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)
    exchanged = (f"model.positive_scorer={folders[1]}", f"model.negative_scorer={folders[0]}")
    swapped = recipe_in(
        tmp_path, "objective.name=tis_dpo", *world.options, *exchanged, paths=world.paths
    )
    with pytest.raises(UserError, match="holds scorer_log_ratios made with"):
        run_stages(swapped, (REFERENCE,), silent)


@pytest.mark.parametrize("own", [False, True])
def test_prompt_embeddings_are_means_of_last_hidden_states(
    own: bool, make_recipe: MakeRecipe, model_dir: Path, tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    """Of the reference over the prompt's tokens, or of a sentence encoder over its own; against
    unpadded forwards.
    """
    options = ["objective.name=rpo"]
    if own:
        words = sorted(
            {
                word
                for row in rows
                for word in row["prompt"].lower().replace(".", " ").replace(",", " ").split()
            }
        )
        (tmp_path / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
        )
        encoder_dir = tmp_path / "encoder"
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words) + 5,
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        )
        BertModel(config).save_pretrained(encoder_dir)
        BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(encoder_dir)
        (encoder_dir / "1_Pooling").mkdir()
        (encoder_dir / "1_Pooling" / "config.json").write_text(
            json.dumps({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
        )
        options.append(f"model.embedder={encoder_dir}")
    recipe = prepared(make_recipe(*options))
    assert run_plan(recipe)["reference"]["bytes_per_pair"] == 4 * (
        12 if own else AutoModelForCausalLM.from_pretrained(model_dir).config.hidden_size
    )
    pairs = open_pairs(Run(recipe))
    wanted = [5, 3, 11]
    tokenised = pairs.pairs("train", wanted)
    found = (
        feature_source(run_facts(Run(recipe)), pairs, CPU)
        .features("train", wanted, padded_layout(tokenised))
        .prompt_embedding
    )
    assert found is not None
    for row, pair, vector in zip(wanted, tokenised, found, strict=True):
        if own:
            tokenizer = AutoTokenizer.from_pretrained(encoder_dir)
            ids = tokenizer(
                pairs.values("train", [row], ("prompt",))[0][0], return_tensors="pt"
            ).input_ids
            model: Any = BertModel.from_pretrained(encoder_dir)
        else:
            ids, model = (
                torch.tensor([list(pair.prompt)]),
                AutoModelForCausalLM.from_pretrained(model_dir).base_model,
            )
        with torch.no_grad():
            expected = model(input_ids=ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=0)
    if own:
        (encoder_dir / "1_Pooling" / "config.json").write_text(
            json.dumps({"pooling_mode_max_tokens": True})
        )
        with pytest.raises(
            UserError, match="pooling max_tokens is not supported, only mean, cls or lasttoken"
        ):
            prepared(make_recipe(*options, run_dir=str(tmp_path / "max")))


STEP_PRODUCERS = ("confidence", "surprise", "adversarial", "partition", "transport", "wpo")


def read_of_the_step(kind: str, world: World) -> tuple[str, ...]:
    """Options of five steps over two epochs of such a producer."""
    weighs = ("objective.name=weighted", "objective.alpha=0.5", f"mask.kind={kind}")
    return (
        *(("objective.name=wpo",) if kind == "wpo" else weighs),
        "train.global_batch_size=32", "train.epochs=2", "train.max_steps=5",
        "train.checkpoint_every=2", *world.options,
    )  # fmt: skip


def numbers(kind: str, recipe: Recipe) -> torch.Tensor:
    """Loss, gradient norm and mean weight of every step."""
    names = ("loss", "grad_norm", "weights/pair" if kind == "wpo" else "masks/reward_mean")
    found = torch.tensor([[record[name] for name in names] for record in log(recipe)])
    assert found.shape == (5, 3)
    return found


@pytest.mark.parametrize("kind", members(STEP_PRODUCERS, ("partition",)))
def test_what_producers_read_of_the_step_depends_on_no_layout_or_resume(
    kind: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """In one piece; on padded rows of few pairs; stopped after two steps."""

    def recipe(name: str, *options: str) -> Recipe:
        given = (*read_of_the_step(kind, world), *options)
        return recipe_in(tmp_path / name, *given, paths=world.paths)

    whole, padded, stopped = (
        recipe("whole"),
        recipe("padded", "train.layout=padded", "train.micro_batch_tokens=200"),
        recipe("stopped"),
    )
    assert trained(whole).sampler.steps_per_epoch == 3
    trained(padded)
    stop_at_a_checkpoint(trainer_of(stopped))
    assert trained(stopped).step == 5
    for other in (padded, stopped):
        torch.testing.assert_close(numbers(kind, other), numbers(kind, whole), atol=2e-6, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STEP_PRODUCERS)
def test_what_producers_read_of_the_step_depends_on_no_rank(
    kind: str, recipe_in: MakeRecipe, world: World, ranks: Ranks, tmp_path: Path
) -> None:
    given = read_of_the_step(kind, world)
    one, two = (
        recipe_in(tmp_path / name, *given, *options, paths=world.paths)
        for name, options in (
            ("one", ()),
            ("two", ("train.num_workers=2", "train.cpus_per_worker=1")),
        )
    )
    trained(one)
    ranks.train(two)
    torch.testing.assert_close(numbers(kind, two), numbers(kind, one), atol=2e-6, rtol=2e-4)


def test_two_parts_in_two_epochs_weigh_every_token_twice(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """So the mean weights of two steps over all pairs add up to two; validation's is one."""
    recipe = recipe_in(
        tmp_path, "objective.name=weighted", "mask.kind=partition", "mask.parts=2",
        "train.global_batch_size=500", "train.epochs=2", *world.options, paths=world.paths,
    )  # fmt: skip
    trained(recipe)
    means = [record["masks/reward_mean"] for record in log(recipe)]
    assert len(means) == 2 and sum(means) == pytest.approx(2, abs=1e-6)
    assert means[0] != 1
    validations = log(recipe, "validation")
    assert {r["validation/masks/reward_mean"] for r in validations} == {1.0}
