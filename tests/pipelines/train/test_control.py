"""sft.control (MEET): what stands in front, what each stage trains and of which loss, and that the
published model is a plain one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, PromptTuningInit, get_peft_model
from ranks import Ranks
from report_views import words
from runs import CPU, MakeRecipe, run_here, silent, trainer_of
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.commands.report import run_report
from pipelines.commands.sft import in_turn, plan_sft, planned_sft, run_sft, sft_recipe
from pipelines.commands.stages import EVALUATE, PREPARE, TRAIN
from pipelines.errors import UserError
from pipelines.evaluate.results import Found, benchmark_results
from pipelines.models.control import Control, ControlText, in_front
from pipelines.models.control_tokens import add_rows, control_of
from pipelines.models.loading import load_tokenizer
from pipelines.pairs.conversation import PairEncoder, RawPair
from pipelines.pairs.table import open_pairs
from pipelines.recipe.evaluation import EvaluateSection
from pipelines.recipe.run_paths import RunPaths
from pipelines.recipe.schema import DataSection, Recipe, Source
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.train.metrics import read_metrics
from pipelines.train.policy import open_policy
from pipelines.train.stage import training_facts
from sparsepo import head_of
from sparsepo.model import cut_head

pytestmark = pytest.mark.usefixtures("ray_cluster")
GOOD, BAD = "a good one", "a bad one"
CONTROL = (
    f"sft.control={{good: {GOOD}, bad: {BAD}, soft_max_steps: 3, soft_learning_rate: 1e-2}}",
    "sft.max_steps=3",
    "sft.learning_rate=1e-3",
)


@pytest.fixture(scope="module")
def tuned(
    recipe_in: MakeRecipe, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    """A preference recipe whose two stages of `sparsepo sft` are done."""
    recipe = recipe_in(tmp_path_factory.mktemp("control") / "run", *CONTROL)
    for part in in_turn(sft_recipe(recipe)):
        run_here(part, (PREPARE, TRAIN))
    return recipe


@pytest.fixture
def on_pairs(tuned: Recipe, recipe_in: MakeRecipe, tmp_path: Path) -> Callable[..., Recipe]:
    """One stage of its own on the same pairs: on_pairs("soft", ...)."""

    def make(stage: str, *overrides: str, name: str = "run") -> Recipe:
        parts = dict(zip(("soft", "model"), in_turn(sft_recipe(tuned)), strict=True))
        made = recipe_in(
            tmp_path / name,
            "objective.name=sft",
            f"sft.control={{good: {GOOD}, bad: {BAD}, stages: [{stage}]}}",
            "train.max_steps=3",
            *overrides,
            paths={"pairs": f"{tuned.run_dir}/sft/pairs"},
        )
        return made.model_copy(update={"model": parts[stage].model})

    return make


def model_of(recipe: Recipe) -> Path:
    return Path(RunPaths.of(recipe).model)


def parts_of(tuned: Recipe) -> tuple[Recipe, Recipe]:
    soft, model = in_turn(sft_recipe(tuned))
    return soft, model


def test_every_response_is_a_row_behind_the_control_of_its_label(tuned: Recipe) -> None:
    """The ids are those that the published tokenizer reads in the plain string."""
    control = control_of(parts_of(tuned)[1])
    assert control is not None
    assert control.good.string == "<|good-1|><|good-2|><|good-3|>"
    tokenizer = AutoTokenizer.from_pretrained(model_of(parts_of(tuned)[1]))
    pairs = open_pairs(Run(parts_of(tuned)[1]))
    rows = range(pairs.num_rows("train"))
    stored = pairs.values("train", rows, ["prompt", "desirable"])
    assert sum(label for _, label in stored) * 2 == len(stored) == 192
    for pair, (prompt, label) in zip(pairs.pairs("train", rows), stored, strict=True):
        text = (control.good if label else control.bad).string + prompt
        assert [int(i) for i in pair.prompt] == tokenizer(text).input_ids
        assert pair.rejected is None


def test_a_long_prompt_is_cut_and_its_control_is_not(model_dir: Path) -> None:
    tokenizer = load_tokenizer(str(model_dir))
    control = Control(ControlText("x", (5, 6)), ControlText("y", (7,)), (5, 6, 7))
    data = DataSection(sources=(Source(path="x"),), max_prompt_tokens=6)
    raw = RawPair(" A journalist met a janitor at the mountain .", " Good .", " Bad .")
    good, bad = map(PairEncoder(tokenizer, data, control).encode, raw.rows())
    whole = PairEncoder(tokenizer, data).prompt(raw.prompt)
    bos = [tokenizer.bos_token_id] if whole[0] == tokenizer.bos_token_id else []
    assert good.prompt == [*bos, 5, 6, *whole[len(bos) - 4 :]]
    assert bad.prompt == [*bos, 7, *whole[len(bos) - 5 :]]
    assert good.truncated == bad.truncated == ("prompt",)


def test_without_a_token_it_is_plain_tuning_on_both_responses(model_dir: Path) -> None:
    """The limit of a control of no length: the rows are those of sft on each response alone."""
    tokenizer = load_tokenizer(str(model_dir))
    empty = Control(ControlText("x", ()), ControlText("y", ()), ())
    data = DataSection(sources=(Source(path="x"),), max_prompt_tokens=8)
    raw = RawPair("A journalist met a janitor .", " Good .", " Bad .")
    for row in raw.rows():
        plain = RawPair(raw.prompt, row.chosen, None)
        assert PairEncoder(tokenizer, data, empty).encode(row) == (
            PairEncoder(tokenizer, data).encode(plain)
        )


@torch.no_grad()
def test_soft_tokens_compute_what_pefts_prompt_tuning_does(
    on_pairs: Callable[..., Recipe], model_dir: Path
) -> None:
    """peft puts virtual tokens in front that begin as the text's embeddings."""
    control = control_of(on_pairs("soft"))
    assert control is not None
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids = torch.tensor([tokenizer(" A good day .", add_special_tokens=False).input_ids])
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
    rows = model.config.vocab_size
    add_rows(model, control)
    for text in (control.good, control.bad):
        virtual = tokenizer(text.text).input_ids  # with BOS, if the tokenizer adds it
        begun = virtual[: len(virtual) - len(text.ids)]
        plain = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
        settings = PromptTuningConfig(
            task_type="CAUSAL_LM",
            prompt_tuning_init=PromptTuningInit.TEXT,
            prompt_tuning_init_text=text.text,
            num_virtual_tokens=len(virtual),
            tokenizer_name_or_path=str(model_dir),
        )
        expected = get_peft_model(plain, settings)(input_ids=ids).logits
        front = torch.tensor([[*begun, *text.ids]])
        found = model(input_ids=torch.cat([front, ids], dim=1)).logits[..., :rows]
        torch.testing.assert_close(found[:, len(virtual) :], expected[:, -ids.shape[1] :])


@pytest.mark.parametrize("stage", ["soft", "model"])
def test_the_loss_by_plain_transformers(stage: str, on_pairs: Callable[..., Recipe]) -> None:
    """-log p(chosen | good, prompt) and -log p(rejected | bad, prompt), each by its tokens.

    In float64, over the tokens that are no soft ones, of the first global batch.
    """
    recipe = on_pairs(stage, "train.max_steps=1")
    trainer = trainer_of(recipe)
    rows = trainer.rows_of_step(0)
    trainer.run(lambda metrics: None)
    trainer.close()
    control = control_of(recipe)
    assert control is not None
    assert control.first is not None
    directory = recipe.model.name_or_path
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    if stage == "soft":
        model.resize_token_embeddings(control.first + len(control.soft_ids), mean_resizing=False)
        table = model.get_input_embeddings().weight.data
        for own, other in zip(control.soft_ids, control.begins_as, strict=True):
            table[own] = table[other]
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.tokenizer or directory)
    pairs, losses = open_pairs(Run(recipe)), []
    stored = pairs.values("train", rows, ["prompt", "desirable"])
    for pair, (prompt, label) in zip(pairs.pairs("train", rows), stored, strict=True):
        begun = tokenizer(prompt).input_ids
        first = int(begun[0] == tokenizer.bos_token_id)
        front = (control.good if label else control.bad).ids
        asked = [*begun[:first], *front, *begun[first:]]
        answer = [int(i) for i in pair.chosen]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*asked, *answer]])).logits[
                0, :, : control.first
            ]
        losses.append(cross_entropy(logits[len(asked) - 1 : -1], torch.tensor(answer)))
    (record,) = (r for r in read_metrics(RunStore(f"{recipe.run_dir}/train")) if "kind" not in r)
    assert record["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_the_first_stage_changes_the_soft_rows_alone_and_the_second_all(
    tuned: Recipe, model_dir: Path
) -> None:
    soft, model = parts_of(tuned)
    start, first, second = (
        load_file(folder / "model.safetensors")
        for folder in (model_dir, model_of(soft), model_of(model))
    )
    name = "model.embed_tokens.weight"
    control = control_of(model)
    assert control is not None
    rows = len(start[name])
    assert [len(found[name]) for found in (first, second)] == [rows + 6] * 2
    assert torch.equal(first[name][:rows], start[name])
    assert all(torch.equal(first[other], start[other]) for other in start if other != name)
    begun, trained, last = (
        start[name][list(control.begins_as)], first[name][rows:], second[name][rows:]
    )  # fmt: skip
    assert ((trained - begun).abs().amax(dim=1) > 1e-3).all(), "three steps of 1e-2"
    assert ((last - trained).abs().amax(dim=1) > 1e-4).all(), "and three of 1e-3 with the model"
    assert all(not torch.equal(second[other], first[other]) for other in first)


def test_the_published_model_is_a_plain_one(tuned: Recipe) -> None:
    """transformers alone reads the control as a string, and never draws its tokens."""
    folder = model_of(parts_of(tuned)[1])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert "## Control" in (folder / "README.md").read_text()
    texts = json.loads((folder / "control.json").read_text())
    ids = tokenizer("".join(texts["good"]["names"]), add_special_tokens=False).input_ids
    assert ids == texts["good"]["ids"]
    assert tokenizer.decode([*ids, 9], skip_special_tokens=True) == tokenizer.decode([9])
    given = tokenizer("".join(texts["bad"]["names"]) + "A journalist", return_tensors="pt")
    with torch.no_grad():
        model.get_input_embeddings().weight[[*ids, *texts["bad"]["ids"]]] *= (
            50  # and the tied head's
        )
    drawn = model.generate(**given, max_new_tokens=20, do_sample=True)[
        0, given.input_ids.shape[1] :
    ]
    assert not {*ids, *texts["bad"]["ids"]} & set(drawn.tolist())


@pytest.mark.parametrize("stage", ["soft", "model"])
def test_a_stage_that_was_interrupted_ends_with_the_same_bits(
    stage: str, on_pairs: Callable[..., Recipe]
) -> None:
    whole = on_pairs(stage, name="whole")
    cut = on_pairs(stage, name="cut")
    trainer = trainer_of(cut)
    trainer.optimizer_step()
    trainer._checkpoint({})
    assert trainer.checkpoints.failure(wait=True) is None
    ids = torch.tensor([[1458, 1460, 5, 9]])
    opened = open_policy(training_facts(Run(cut)), 1, None, torch.float32, CPU).causal_lm
    with torch.no_grad():
        expected = trainer.model.causal_lm(input_ids=ids).logits
        torch.testing.assert_close(opened(input_ids=ids).logits, expected)
    trainer.close()
    for recipe in (cut, whole):
        trainer = trainer_of(recipe)
        assert trainer.step == int(recipe is cut)
        trainer.run(lambda metrics: None)
        trainer.close()
    one, other = (load_file(model_of(recipe) / "model.safetensors") for recipe in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_the_same_soft_tokens(
    strategy: str, on_pairs: Callable[..., Recipe], ranks: Ranks
) -> None:
    alone, both = on_pairs("soft", name="alone"), on_pairs("soft", f"train.strategy={strategy}")
    trainer = trainer_of(alone)
    trainer.run(lambda metrics: None)
    trainer.close()
    ranks.train(both)
    one, other = (load_file(model_of(recipe) / "model.safetensors") for recipe in (alone, both))
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-5)
    assert torch.equal(other[name][:-6], one[name][:-6])


@pytest.mark.slow
def test_adapters_are_trained_beside_the_soft_tokens_and_merged(
    on_pairs: Callable[..., Recipe],
) -> None:
    recipe = on_pairs("model", "train.lora={rank: 4, save: merged}")
    trainer = trainer_of(recipe)
    trainer.run(lambda metrics: None)
    policy = trainer.model.causal_lm
    trainer.close()
    before = load_file(Path(recipe.model.name_or_path) / "model.safetensors")
    after = load_file(model_of(recipe) / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert torch.equal(after[name][:-6], before[name][:-6])
    assert ((after[name] - before[name])[-6:].abs().amax(dim=1) > 1e-4).all()
    ids = torch.tensor([[1458, 1459, 1460, 5, 9]])
    with torch.no_grad():
        expected = policy(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(model_of(recipe))(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_labelled_rows_train_and_one_label_is_plain_tuning_behind_its_text(
    rows: list[dict[str, str]], recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """Rows that are all wanted: the loss is that of sft on prompts that begin with the text."""
    text = "a good one ."  # before a space its tokens stay what they are
    given = [{"prompt": f" {r['prompt']}", "response": r["chosen"], "label": True} for r in rows]
    plain = [{"prompt": f"{text} {r['prompt']}", "chosen": r["chosen"]} for r in rows]
    options = ("objective.name=sft", "train.max_steps=2", "data.max_prompt_tokens=40")
    losses = []
    for name, source, more in (
        ("labelled", given, [f"sft.control={{good: '{text}', bad: {BAD}, stages: [model]}}"]),
        ("plain", plain, ["data.sources[0].form=chosen_only"]),
    ):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in source))
        recipe = recipe_in(
            tmp_path / name, *options, f"data.sources[0].path={file}", "data.test_fraction=0", *more
        )
        run_here(recipe, (PREPARE, TRAIN))
        losses.append(
            [r["loss"] for r in read_metrics(RunStore(f"{recipe.run_dir}/train")) if "loss" in r]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len(losses[0]) == 2


@pytest.mark.slow
def test_an_evaluation_puts_each_control_in_front(tuned: Recipe, recipe_in: MakeRecipe) -> None:
    """Greedy answers are transformers' own behind the string; differences are paired by prompt."""
    folder = model_of(parts_of(tuned)[1])
    recipe = recipe_in(
        tuned.run_dir,
        f"evaluate.model={folder}",
        "evaluate.control=[good, bad, none]",
        "evaluate.benchmarks=[preference, sentiment]",
        "evaluate.temperatures=[1, 0]",
        "evaluate.num_prompts=6",
    )
    run_here(recipe, (PREPARE, EVALUATE))
    place = Path(recipe.run_dir, "evaluation")
    samples = {
        name: [json.loads(line) for line in (place / f"samples/{name}.jsonl").open()]
        for name in ("samples", "controlled")
    }
    by: dict[str, list[dict[str, Any]]] = {}
    for sample in (*samples["samples"], *samples["controlled"]):
        by.setdefault(sample["control"], []).append(sample)
    assert [one["control"] for one in samples["samples"]] == ["good"] * 12
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    texts = json.loads((folder / "control.json").read_text())
    for control, own in by.items():
        string = "" if control == "none" else "".join(texts[control]["names"])
        for sample in own:
            if sample["temperature"] == 0:
                given = tokenizer(string + sample["prompt"], return_tensors="pt")
                drawn = model.generate(**given, max_new_tokens=8, do_sample=False)
                drawn = drawn[0, given.input_ids.shape[1] :]
                assert sample["policy_text"] == tokenizer.decode(drawn, skip_special_tokens=True)
    numbers = json.loads((place / "sentiment.json").read_text())
    warm = {name: [s for s in own if s["temperature"] == 1] for name, own in by.items()}
    for name in ("bad", "none"):
        gains = [
            one["policy_reward"] - other["policy_reward"]
            for one, other in zip(warm["good"], warm[name], strict=True)
        ]
        found = numbers[f"control={name}/reward/first_control_gain"]
        assert found["mean"] == pytest.approx(sum(gains) / len(gains), abs=1e-12)
        assert found["low"] <= found["mean"] <= found["high"]
        assert [s["start_text"] for s in warm[name]] == [s["start_text"] for s in warm["good"]]
    page = words(Path(run_report([recipe.run_dir])).read_text())
    assert "Behind each control" in page


def test_the_first_controls_gain_by_hand() -> None:
    """Behind good 0.9 and 0.1, without 0.5 and -0.3: (0.4 + 0.4) / 2 = 0.4 more."""
    settings = EvaluateSection(control=("good", "none"), benchmarks=("sentiment",))
    rewards = {"good": (0.9, 0.1), "none": (0.5, -0.3)}
    samples = [
        {
            "prompt": f"prompt {at}", "order": at, "sample": 0, "temperature_number": 0,
            "control": name, "control_number": number, "kl_policy_reference": 1.0,
            "policy_text": "a b", "start_text": "a b", "policy_tokens": 2, "start_tokens": 2,
            "policy_reward": reward, "start_reward": 0.0,
        }
        for number, (name, values) in enumerate(rewards.items())
        for at, reward in enumerate(values)
    ]  # fmt: skip
    found = benchmark_results(settings, Found(samples=samples), {})["sentiment"]
    assert (found["control"], found["control=none/control"]) == ("good", "none")
    assert found["reward/after"]["mean"] == pytest.approx(0.5)
    assert found["control=none/reward/after"]["mean"] == pytest.approx(0.1)
    assert found["control=none/reward/first_control_gain"]["mean"] == pytest.approx(0.4)
    assert "reward/first_control_gain" not in found


def test_preferences_are_scored_behind_the_first_control(
    tuned: Recipe, recipe_in: MakeRecipe
) -> None:
    """Log-probabilities of the whole response, by transformers alone, over the plain tokens."""
    folder = model_of(parts_of(tuned)[1])
    recipe = recipe_in(
        tuned.run_dir,
        f"evaluate.model={folder}",
        "evaluate.control=[bad]",
        "evaluate.benchmarks=[preference]",
        "evaluate.name=behind-bad",
        "evaluate.max_pairs=4",
    )
    run_here(recipe, (PREPARE, EVALUATE))
    found = json.loads(
        Path(recipe.run_dir, "evaluation/named/behind-bad/preference.json").read_text()
    )
    control = control_of(parts_of(tuned)[1])
    assert control is not None
    tuned_lm, start = (
        AutoModelForCausalLM.from_pretrained(name, dtype=torch.float64)
        for name in (folder, recipe.model.name_or_path)
    )
    cut_head(tuned_lm, control.first or 0)
    assert len(head_of(tuned_lm).weight) == control.first
    pairs, margins = open_pairs(Run(recipe)), []
    for pair in pairs.pairs("test", range(4)):
        sides = []
        for answer in (pair.chosen, pair.rejected):
            assert answer is not None
            prompt = [int(i) for i in pair.prompt]
            asked = in_front(control.bad.ids, prompt, load_tokenizer(str(folder)).bos_token_id)
            logps = [
                -cross_entropy(
                    model(input_ids=torch.tensor([[*front, *map(int, answer)]])).logits[
                        0, len(front) - 1 : -1
                    ],
                    torch.tensor(list(map(int, answer))),
                    reduction="sum",
                )
                for model, front in ((tuned_lm, asked), (start, prompt))
            ]
            sides.append(float((logps[0] - logps[1]).detach()))
        margins.append(sides[0] - sides[1])
    accuracy = sum((m > 0) + 0.5 * (m == 0) for m in margins) / 4
    assert found["accuracy/implicit_reward"]["mean"] == pytest.approx(accuracy)
    assert found["rewards/margins"]["mean"] == pytest.approx(0.1 * sum(margins) / 4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.actors
def test_the_command_trains_both_stages_under_ray_train(
    tuned: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """The weights are those that the test's own process trains; a second call has no work."""
    recipe = recipe_in(tmp_path / "run", *CONTROL)
    folder = run_sft(recipe, silent, quiet=True)
    one, other = (
        load_file(Path(at) / "model.safetensors") for at in (folder, model_of(sft_recipe(tuned)))
    )
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)
    said: list[str] = []
    run_sft(recipe, said.append, quiet=True)
    assert [line for line in said if "skipped" not in line] == []


def test_plan_tells_of_both_stages_before_and_after(
    tuned: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    fresh = recipe_in(tmp_path / "fresh", *CONTROL)
    found = plan_sft(fresh, None, "x")
    assert (found["soft"]["steps"], found["train"]["steps"]) == (3, 3)
    assert found["total"]["seconds"] > found["soft"]["seconds"] + found["train"]["seconds"]
    assert list(planned_sft(found)) == ["data", "soft", "train"]
    assert found["total"]["run_dir"] == f"{fresh.run_dir}/sft"
    assert not Path(fresh.run_dir).exists()
    done = plan_sft(tuned, None, "x")
    assert done["train"]["done"]
    assert done["soft"]["done"]
    assert done["total"]["seconds"] == 0


def test_a_second_stage_is_refused_before_the_first_has_begun(
    recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """`sft` and `plan --sft` say the same, of what only the model's training has."""
    recipe = recipe_in(
        tmp_path / "run", *CONTROL, "train.lora={rank: 2, target_modules: [no_such_layer]}"
    )
    said = []
    for command in (
        lambda: plan_sft(recipe, None, "x"),
        lambda: run_sft(recipe, silent, quiet=True),
    ):
        with pytest.raises(UserError) as refused:
            command()
        said.append(str(refused.value))
    assert said[0] == said[1]
    assert "no_such_layer" in said[0]
    assert not Path(recipe.run_dir).exists()
