"""A trained discriminator: its steps against plain torch, resuming, figures, and what reads it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import kill, started, wait_for
from runs import CPU, MakeRecipe, run_here, silent
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evaluation.metrics.auc import auc
from pipelines.commands.cli import main
from pipelines.commands.discriminator import discriminator_recipe, plan_discriminator
from pipelines.commands.run import run_stages
from pipelines.commands.stages import DISCRIMINATOR, PREPARE, REFERENCE
from pipelines.discriminator.facts import HeadFacts, TrainHead
from pipelines.discriminator.labels import targets_of
from pipelines.discriminator.training import HeadTrainer
from pipelines.errors import UserError
from pipelines.pairs.table import open_pairs
from pipelines.recipe.files import write_yaml
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.features import feature_source
from pipelines.reference.stage import run_facts
from pipelines.storage.records import read_record
from sparsepo import Sampler, TokenDiscriminator
from sparsepo.batching.layouts import TokenizedPair, padded_layout

pytestmark = pytest.mark.usefixtures("ray_cluster")
WEIGHTS = "discriminator.safetensors"


def head_of(recipe: Recipe) -> Path:
    return Path(recipe.run_dir, "discriminator", "head")


def figures_of(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = DISCRIMINATOR.record(
        *_record_of(discriminator_recipe(recipe))
    ).manifest()["counts"]
    return found


def _record_of(recipe: Recipe) -> Any:
    run = Run(recipe)
    earlier = {stage.name: run.record(stage) for stage in (PREPARE, REFERENCE)}
    return recipe, run.inputs(DISCRIMINATOR), earlier


def facts_of(judged: Recipe, store: Path, **section: Any) -> HeadFacts:
    """The facts of the finished discriminator's training, for another one elsewhere."""
    found = DISCRIMINATOR.facts(Run(discriminator_recipe(judged)))
    changed = found.section.model_copy(update=section)
    return replace(found, store=str(store), section=changed)


def states_alone(model: Any, pairs: list[TokenizedPair], layer: int = -1) -> torch.Tensor:
    """What plain transformers make of every response token itself, a sequence at a time."""
    found = []
    for pair in pairs:
        for response in pair.responses():
            ids = torch.tensor([[*map(int, pair.prompt), *map(int, response)]])
            with torch.no_grad():
                states = model(ids, output_hidden_states=True).hidden_states[layer][0]
            found.append(states[len(pair.prompt) :])
    states = torch.cat(found).double()
    spread = states.var(1, keepdim=True, unbiased=False)
    standard: torch.Tensor = (states - states.mean(1, keepdim=True)) / (spread + 1e-5).sqrt()
    return standard


def good_of(weights: Path, states: torch.Tensor) -> torch.Tensor:
    """D as a logistic function of the difference of both classes, in float64."""
    found = {name: value.double() for name, value in load_file(weights).items()}
    logits = states @ found["map.weight"].T + found["map.bias"]
    return torch.sigmoid(logits[:, 1] - logits[:, 0])


@pytest.mark.parametrize("equal", ["left_out", "neutral"])
def test_steps_are_those_of_plain_torch(
    equal: str, judged: Recipe, small_model: Path, tmp_path: Path
) -> None:
    """Four of ten steps on states of plain transformers, in float64, with torch's cross entropy."""
    HeadTrainer(facts_of(judged, tmp_path, equal=equal, checkpoint_every=2))(TrainHead(4, 10))
    written = load_file(tmp_path / "checkpoint-00000004.safetensors")
    pairs, model = open_pairs(Run(judged)), AutoModelForCausalLM.from_pretrained(small_model)
    size = model.config.hidden_size
    head = torch.nn.Linear(size, 2, dtype=torch.float64)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": 0.01}, {"params": [head.bias]}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0)
    sampler = Sampler(pairs.num_rows("train"), 8, 0)
    for step in range(4):
        batch = pairs.pairs("train", sampler.pair_indices(step))
        states = states_alone(model, batch)
        wanted = torch.from_numpy(
            np.concatenate([targets_of(pair, equal) for pair in batch])  # type: ignore[arg-type]
        ).double()
        kept = ~wanted.isnan()
        classes = torch.stack([1 - wanted, wanted], 1)[kept]
        loss = torch.nn.functional.cross_entropy(head(states[kept]), classes)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held = states_alone(model, pairs.pairs("test", [0, 1, 2, 3]))
    expected = head(held).softmax(1)[:, 1].detach()
    found = (held @ written["map.weight"].double().T + written["map.bias"].double()).softmax(1)
    torch.testing.assert_close(found[:, 1], expected, atol=1e-4, rtol=0)
    assert float((expected - 0.5).abs().max()) > 0.02


def test_an_interrupted_training_comes_to_the_same_bytes(
    judged: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted at a checkpoint and beyond one, with a torn checkpoint, and with none."""
    whole = (head_of(judged) / WEIGHTS).read_bytes()
    steps = figures_of(judged)["num_steps"]
    assert steps > 12
    facts = facts_of(judged, tmp_path / "a")
    HeadTrainer(facts)(TrainHead(7, steps))  # two steps beyond the checkpoint of step 5
    again = HeadTrainer(facts)
    assert again(TrainHead(5, steps)) == {}, "a task that is done already"
    figures = again(TrainHead(steps, steps))
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == whole
    assert figures == figures_of(judged)
    for number, harm in enumerate((b"torn", None)):
        facts = facts_of(judged, tmp_path / f"harm{number}")
        HeadTrainer(facts)(TrainHead(5, steps))
        file = Path(facts.store, "checkpoint-00000005.safetensors")
        file.unlink() if harm is None else file.write_bytes(harm)
        HeadTrainer(facts)(TrainHead(steps, steps))
        assert Path(facts.store, WEIGHTS).read_bytes() == whole
        assert "trained again from the start" in capsys.readouterr().err
    other = replace(facts_of(judged, tmp_path / "a"), fingerprint="another")
    HeadTrainer(other)
    assert "is of another recipe: trained again from the start" in capsys.readouterr().err


def test_figures_are_those_of_plain_states(
    judged: Recipe, small_model: Path, tmp_path: Path
) -> None:
    """Accuracy, AUC, ECE and the key words' AUC of held-out tokens, from plain transformers."""
    figures = figures_of(judged)
    pairs, model = open_pairs(Run(judged)), AutoModelForCausalLM.from_pretrained(small_model)
    rows = range(pairs.num_rows("test"))
    held = pairs.pairs("test", rows)
    good = good_of(head_of(judged) / WEIGHTS, states_alone(model, held)).numpy()
    labels = np.concatenate([targets_of(pair, "left_out") for pair in held])
    own = ~np.isnan(labels)
    right = (good[own] > 0.5) == (labels[own] == 1)
    assert figures["num_tokens"] == own.sum() and figures["num_equal"] == (~own).sum()
    assert figures["num_prompts"] == len(held)
    assert figures["accuracy"]["mean"] == pytest.approx(right.mean(), abs=1e-3)
    assert figures["auc"]["mean"] == pytest.approx(auc(good[own], labels[own] == 1), abs=1e-3)
    bins = np.minimum((good[own] * 10).astype(int), 9)
    ece = (
        sum(abs((good[own] - labels[own])[bins == number].sum()) for number in range(10))
        / own.sum()
    )
    assert figures["ece"]["mean"] == pytest.approx(ece, abs=2e-3)
    # What can be learned is: a word of praise is good, one of blame is bad.
    assert figures["auc"]["low"] > 0.9 > figures["accuracy/majority"]["high"]
    assert figures["auc/key_words"]["low"] > 0.5
    assert figures["loss"][0]["loss"] > figures["loss"][-1]["loss"]
    assert read_record(_store(head_of(judged)), "figures.json") == figures


def _store(folder: Path) -> Any:
    from pipelines.storage.store import RunStore

    return RunStore(str(folder))


@pytest.mark.slow
def test_a_run_reads_its_values_and_another_layer_is_another_store(
    judged: Recipe, recipe_in: MakeRecipe, liked_options: tuple[str, ...], small_model: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """D of a stored and of an online reference against plain states; then a head of layer 1."""
    reads = (
        "objective.name=weighted", "mask.kind=discriminator",
        f"model.discriminator={head_of(judged)}",
    )  # fmt: skip
    paths = {"pairs": f"{judged.run_dir}/pairs"}
    recipe = recipe_in(tmp_path / "run", *liked_options, *reads, paths=paths)
    run_here(recipe, (PREPARE, REFERENCE))
    online = recipe_in(
        tmp_path / "online", *liked_options, *reads, "reference.mode=online", paths=paths
    )
    run_here(online, (REFERENCE,))
    pairs, model = open_pairs(Run(recipe)), AutoModelForCausalLM.from_pretrained(small_model)
    rows = [3, 11]
    tokenised = pairs.pairs("train", rows)
    expected = good_of(head_of(judged) / WEIGHTS, states_alone(model, tokenised))
    for one in (recipe, online):
        source = feature_source(run_facts(Run(one)), pairs, CPU)
        found = source.features("train", rows, padded_layout(tokenised)).discriminator_values
        assert found is not None
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
    assert float(expected.std()) > 0.1
    layered = recipe_in(tmp_path / "run", *liked_options, "discriminator.layer=1", paths=paths)
    run_here(discriminator_recipe(layered), (REFERENCE, DISCRIMINATOR))
    assert read_record(_store(head_of(layered)), "discriminator.json")["layer"] == 1
    first = good_of(head_of(layered) / WEIGHTS, states_alone(model, tokenised, 1))
    other = recipe_in(
        tmp_path / "run", *liked_options, *reads[:2], f"model.discriminator={head_of(layered)}",
        paths=paths,
    )  # fmt: skip
    with pytest.raises(UserError, match="holds discriminator_values made with"):
        run_stages(other, (REFERENCE,), silent)
    own = other.model_copy(update={"run_dir": str(tmp_path / "own")})
    run_here(own, (REFERENCE,))
    source = feature_source(run_facts(Run(own)), pairs, CPU)
    found = source.features("train", rows, padded_layout(tokenised)).discriminator_values
    torch.testing.assert_close(found.double(), first, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("discriminator.held_out=validation",), "data.validation_fraction = 0: keep pairs back"),
        (("objective.name=sft",), "objective.name=sft: a discriminator learns from pairs"),
        (("discriminator.layer=3",), "discriminator.layer = 3: .* has layers 1 to 2"),
        (("evaluate.key_words=/nowhere/words.txt",), "evaluate.key_words = '/nowhere/words.txt'"),
    ],
)
def test_what_the_command_refuses_its_plan_refuses(
    options: tuple[str, ...], said: str, recipe_in: MakeRecipe, liked_options: tuple[str, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    recipe = recipe_in(tmp_path / "run", *liked_options, *options)
    with pytest.raises(UserError, match=said):
        plan_discriminator(recipe, None, "mine")
    with pytest.raises(UserError, match=said):
        run_stages(discriminator_recipe(recipe), (PREPARE, REFERENCE, DISCRIMINATOR), silent)
    assert not Path(recipe.run_dir, "discriminator").exists()


def test_a_plan_says_what_will_be_made(
    judged: Recipe, recipe_in: MakeRecipe, liked_options: tuple[str, ...], tmp_path: Path
) -> None:
    recipe = recipe_in(tmp_path / "run", *liked_options, paths={"pairs": f"{judged.run_dir}/pairs"})
    found = plan_discriminator(recipe, None, "mine")
    made = figures_of(judged)
    assert found["discriminator"]["steps"] == made["num_steps"]
    assert found["reference"]["features"] == ["token_states"]
    size = sum(file.stat().st_size for file in head_of(judged).iterdir())
    assert 0.3 < found["discriminator"]["disk_bytes"] / size < 3


@pytest.mark.actors
@pytest.mark.slow
def test_an_actor_of_ray_makes_the_same_bytes(
    judged: Recipe, recipe_in: MakeRecipe, liked_options: tuple[str, ...], tmp_path: Path
) -> None:
    recipe = recipe_in(tmp_path / "run", *liked_options, paths={"pairs": f"{judged.run_dir}/pairs"})
    run_stages(discriminator_recipe(recipe), (REFERENCE, DISCRIMINATOR), silent, quiet=True)
    for name in (WEIGHTS, "figures.json"):
        assert (head_of(recipe) / name).read_bytes() == (head_of(judged) / name).read_bytes()
    assert not list(head_of(recipe).glob("checkpoint*"))
    assert TokenDiscriminator.from_pretrained(head_of(recipe)).layer == 2


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bytes(
    judged: Recipe, recipe_in: MakeRecipe, liked_options: tuple[str, ...], tmp_path: Path,
    ray_environment: dict[str, str], capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """kill -9 of the driver between two checkpoints, and the same command in this process, against
    steps that nobody interrupted.
    """
    shutil.copytree(judged.run_dir, tmp_path / "run")
    recipe = recipe_in(tmp_path / "run", *liked_options, "discriminator.epochs=100")
    head, log = head_of(recipe), tmp_path / "log"
    shutil.rmtree(head)
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    command = ["discriminator", str(tmp_path / "recipe.yaml"), "--quiet"]
    facts = facts_of(judged, tmp_path / "whole", epochs=100)
    with started(command, log, ray_environment) as process:
        wait_for(lambda: int((head / "checkpoint.json").exists()), 1, process, log)
        kill(process)
    assert not (head / WEIGHTS).exists(), "it was killed too late"
    kept = int(json.loads((head / "checkpoint.json").read_text())["step"])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    assert capfd.readouterr().out.splitlines()[-1] == f"discriminator: {head}"
    steps = figures_of(recipe)["num_steps"]
    assert 0 < kept < steps == 100 * figures_of(judged)["num_steps"] / 3
    HeadTrainer(facts)(TrainHead(steps, steps))
    assert (head / WEIGHTS).read_bytes() == Path(facts.store, WEIGHTS).read_bytes()
