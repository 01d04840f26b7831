"""Conversations that part before their last turn, through every stage, on a tiny chat model."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import TEMPLATES, make_tokenizer
from runs import MakeRecipe, run_here, train_here
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, TRAIN
from pipelines.evaluate.benchmarks import SAMPLES
from pipelines.evaluate.history import read_results
from pipelines.evaluate.response_weights import encoded_texts
from pipelines.evaluate.stage import ends_of
from pipelines.models.response_ends import ResponseEnds, response_ends
from pipelines.pairs.table import open_pairs
from pipelines.recipe import TOKENS
from pipelines.recipe.files import validate_recipe
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run, RunPaths
from pipelines.reference.stage import run_facts
from pipelines.reference.store import open_reference
from pipelines.storage.store import RunStore
from pipelines.train.metrics import read_metrics

ANSWERS = ["the film was lovely", "boats", "yes please", "no, dull and moving", "about the weather"]
Messages = list[dict[str, str]]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversations() -> list[dict[str, Messages]]:
    """Three turns of the assistant; the sides part at the second one."""
    rng = random.Random(1)
    rows = []
    for number in range(16):
        start = [
            said("system", "tell me yes or no"),
            said("user", f"question {number} about boats"),
            said("assistant", rng.choice(ANSWERS)),
            said("user", "and the film?"),
        ]
        sides = []
        for answer in rng.sample(ANSWERS, 2):
            end = said("assistant", rng.choice(ANSWERS))
            sides.append([*start, said("assistant", answer), said("user", "really?"), end])
        rows.append(dict(zip(("chosen", "rejected"), sides, strict=True)))
    return rows


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("chat") / "model"
    tokenizer = make_tokenizer("byte_level", "bos", TEMPLATES["chatml"])
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


OTHER = TEMPLATES["chatml"].replace("<|im_end|>\n", "<|eot_id|>")
MARKS = {"all": "<|im_end|>", "last": "<|eot_id|>"}


@pytest.fixture(scope="module", params=["all", "last"])
def trained(
    request: pytest.FixtureRequest,
    chat_model: Path,
    recipe_in: MakeRecipe,
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: None,
) -> Recipe:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "template.jinja").write_text(OTHER)
    own = f"chat_template: {folder}/template.jinja, " if request.param == "last" else ""
    lines = (json.dumps(row) + "\n" for row in conversations())
    (folder / "rows.jsonl").write_text("".join(lines))
    (folder / "key_words.txt").write_text("boats film")
    recipe = recipe_in(
        folder / "run",
        f"model.name_or_path={chat_model}",
        f"data={{{own}sources: [{{path: {folder}/rows.jsonl}}], test_fraction: 0.4, scored_turns: "
        f"{request.param}, max_prompt_tokens: 128, max_response_tokens: 128}}",
        "objective.name=dpo",
        "reference.mode=stored",
        "train.global_batch_size=4",
        "train.max_steps=2",
        "train.layout=packed",
        f"evaluate={{benchmarks: [preference, masks, summarization], num_prompts: 4, key_words: "
        f"{folder}/key_words.txt, generation: {{max_new_tokens: 4}}, bootstrap_samples: 100}}",
    )
    run_here(recipe, (PREPARE, REFERENCE, TRAIN, EVALUATE))
    return recipe


def scored_of(tokenizer: Any, messages: Messages, wanted: str) -> tuple[list[int], list[int]]:
    """Ids of a conversation as transformers makes them, and the places of what is scored."""

    def ids(some: Messages, **more: Any) -> list[int]:
        found = tokenizer.apply_chat_template(some, return_dict=True, **more)
        return [int(id_) for id_ in found["input_ids"]]

    whole, places = ids(messages), []
    for turn in (4, 6) if wanted == "all" else (6,):
        first = len(ids(messages[:turn], add_generation_prompt=True))
        after = len(ids(messages[: turn + 1]))
        # The line's end after the mark is no answer.
        places += range(first, after - (wanted == "all"))
    return whole, places


def test_reference_and_numbers_of_tokens_are_those_of_transformers(trained: Recipe) -> None:
    """Log-softmax at the assistant's tokens from the turn in which the sides part."""
    tokenizer = AutoTokenizer.from_pretrained(trained.model.name_or_path)
    wanted = trained.data.scored_turns
    tokenizer.chat_template = OTHER if wanted == "last" else tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(trained.model.name_or_path).eval()
    rows, pairs = conversations(), open_pairs(Run(trained))
    numbers: list[int] = []
    for split in ("train", "test"):
        logps = []
        origins = pairs.column(split, "row")
        for row, pair in zip(origins, pairs.pairs(split, range(len(origins))), strict=True):
            for side, response in zip(("chosen", "rejected"), pair.responses(), strict=True):
                whole, places = scored_of(tokenizer, rows[row][side], wanted)
                kept = places[-1] + 1
                assert [*pair.prompt, *response] == whole[:kept]
                with torch.no_grad():
                    found = model(torch.tensor([whole])).logits[0].log_softmax(-1)
                logps += [float(found[at - 1, whole[at]]) for at in places]
                numbers += [len(places)] if split == "test" else []
        stored = open_reference(run_facts(Run(trained)), pairs)
        features = stored.features(split, range(len(origins)), ["reference_logps"])
        assert features.reference_logps is not None
        assert features.reference_logps.tolist() == pytest.approx(logps, abs=1e-4)
    store = RunStore(f"{trained.run_dir}/evaluation")
    assert read_results(store)["masks"]["num_tokens"] == sum(numbers)
    shown = [json.loads(line) for line in store.read_bytes(TOKENS).splitlines()]
    sides = [rows[row][side] for row in origins for side in ("chosen", "rejected")]
    for record, messages, number in zip(shown, sides, numbers, strict=False):
        turns = (4, 6) if wanted == "all" else (6,)
        text = "".join(messages[n]["content"] + MARKS[wanted] for n in turns)
        assert "".join(record["tokens"]) == text
        assert messages[0]["content"] in record["prompt"] and text not in record["prompt"]
        assert all(len(record[key]) == number for key in ("reward_mask", "kl_mask", "is_key"))
        at, is_key = 0, [False] * len(text)
        for token, key in zip(record["tokens"], record["is_key"], strict=True):
            is_key[at : at + len(token)] = [key] * len(token)
            at += len(token)
        words = [found.span() for found in re.finditer("boats|film", text)]
        inside = [any(start <= at < end for start, end in words) for at in range(len(text))]
        assert all(is_key[at] for at in range(len(text)) if inside[at])
        assert not any(is_key[at] and not inside[at] for at in range(len(text)) if text[at] != " ")


def test_a_response_of_ones_own_is_encoded_as_a_pairs(trained: Recipe) -> None:
    """As transformers renders a turn of the user and the reply, with what follows the reply."""
    tokenizer = AutoTokenizer.from_pretrained(trained.model.name_or_path)
    if trained.data.chat_template is not None:
        tokenizer.chat_template = OTHER
    asked = [said("user", "question 3 about boats")]
    texts = ("the film was lovely", "boats")
    prompt, answers = encoded_texts(tokenizer, trained.data, asked[0]["content"], texts, True)
    for text, answer in zip(texts, answers, strict=True):
        whole = tokenizer.apply_chat_template([*asked, said("assistant", text)], tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False).input_ids
        assert [*prompt, *answer] == ids[: len(prompt) + len(answer)]
        mark = MARKS[trained.data.scored_turns]
        assert tokenizer.decode(answer).rstrip("\n") == text + mark
    alone = encoded_texts(tokenizer, trained.data, asked[0]["content"], texts[1:], True)
    assert alone == (prompt, answers[1:])


def test_layouts_and_places_of_the_reference_train_alike(trained: Recipe, tmp_path: Path) -> None:
    """From the same steps: the loss starts at ln 2 and moves alike."""

    def losses(recipe: Recipe) -> list[float]:
        return [r["loss"] for r in read_metrics(RunPaths.of(recipe).train) if "loss" in r]

    expected = losses(trained)
    assert expected[0] == pytest.approx(0.6931, abs=1e-3) and len(expected) == 2
    for number, (layout, mode) in enumerate((("padded", "stored"), ("packed", "online"))):
        folder = tmp_path / str(number)
        for stage in ("pairs", "reference"):
            shutil.copytree(f"{trained.run_dir}/{stage}", folder / stage)
        settings = {**trained.model_dump(mode="json"), "run_dir": str(folder)}
        overrides = [f"train.layout={layout}", f"reference.mode={mode}"]
        recipe = validate_recipe(settings, overrides)
        train_here(recipe)
        assert losses(recipe) == pytest.approx(expected, rel=1e-4), (layout, mode)


def test_replies_are_read_without_marks_on_either_side(trained: Recipe) -> None:
    """The turn at which sampling starts, of a conversation that goes on after it."""
    rows = conversations()
    store = RunStore(f"{trained.run_dir}/evaluation")
    samples = [json.loads(line) for line in store.read_bytes(SAMPLES).splitlines()]
    by_question = {row["chosen"][1]["content"]: row["chosen"] for row in rows}
    assert len(samples) == 4
    for sample in samples:
        asked = json.loads(sample["conversation"])["messages"]
        conversation = by_question[asked[1]["content"]]
        assert asked == conversation[:4]
        assert sample["chosen_text"] == conversation[4]["content"]
        assert sample["prompt"].startswith("System: tell me yes or no\n\nUser: question")
        assert not re.search(r"<\|[a-z_]+\|>|</?s>", sample["policy_text"] + sample["start_text"])


def test_the_published_model_speaks_in_the_recipes_template(trained: Recipe) -> None:
    """Whoever loads it has the template and the ends that it was trained and sampled with."""
    model = f"{trained.run_dir}/train/model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    wanted = trained.data.scored_turns
    assert tokenizer.chat_template == (OTHER if wanted == "last" else TEMPLATES["chatml"])
    ends = (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(MARKS[wanted]))
    assert response_ends(model) == ends_of(Run(trained)) == ResponseEnds(ends)
    pairs = open_pairs(Run(trained)).pairs("test", [0, 1])
    assert {int(ids[-1]) for pair in pairs for ids in pair.responses()} == {ends[1]}
