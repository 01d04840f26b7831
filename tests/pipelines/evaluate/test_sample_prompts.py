"""sample takes its prompts by the forms that prepare reads, and prepare takes up what it writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import TEMPLATES, make_tokenizer
from local_executor import LocalExecutor
from runs import MakeRecipe, silent
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.stages import SAMPLE
from pipelines.errors import UserError
from pipelines.models.loading import load_tokenizer
from pipelines.pairs.conversation import ChatRenderer, PairEncoder
from pipelines.pairs.detection import form_of
from pipelines.pairs.forms import pairs_of_row
from pipelines.pairs.prompts import PromptEncoder, Prompts
from pipelines.pairs.question import Question
from pipelines.recipe.schema import DataSection
from pipelines.recipe.stage import Run

Row = dict[str, Any]


def said(role: str, content: str) -> Row:
    return {"role": role, "content": content}


ASK, SYSTEM = said("user", "how is the film?"), said("system", "be brief")
TOOL = {"type": "function", "function": {"name": "weather"}}
TURNS = [ASK, said("assistant", "lovely"), said("user", "and boats?")]
HH = "\n\nHuman: why?\n\nAssistant: so\n\nHuman: really?\n\nAssistant:"
# rows -> what each asks
FORMS: dict[str, tuple[Row, Any]] = {
    "text": ({"prompt": "the film", "chosen": " was", "rejected": " is"}, "the film"),
    "texts alone": ({"prompt": "the film"}, "the film"),
    "hh": ({"chosen": f"{HH} yes", "rejected": f"{HH} no"}, HH),
    "scored": ({"prompt": "the film", "responses": ["a"], "scores": [1]}, "the film"),
    "messages alone": ({"prompt": TURNS, "system": "be brief"}, [SYSTEM, *TURNS]),
    "tools": ({"prompt": [ASK], "tools": [TOOL]}, ([ASK], [TOOL])),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "how is the film?"}]}, [ASK]
    ),
    "sharegpt sides": (
        {
            "conversations": [{"from": "human", "value": "how is the film?"}],
            "chosen": {"from": "gpt", "value": "fine"},
            "rejected": {"from": "gpt", "value": "dull"},
        },
        [ASK],
    ),
    "alpaca": ({"instruction": "how is", "input": "the film?", "output": "fine"},
               [said("user", "how is\nthe film?")]),
    "instructions alone": ({"instruction": "how is the film?"}, [ASK]),
    "whole": ({"messages": [*TURNS, said("assistant", "yes")]}, TURNS),
    "sides that part in the middle": (
        {
            "chosen": [*TURNS, said("assistant", "yes"), ASK, said("assistant", "fine")],
            "rejected": [*TURNS, said("assistant", "no"), ASK, said("assistant", "fine")],
        },
        TURNS,
    ),
    "sides alike": (
        {"prompt": [ASK], "chosen": [said("assistant", "a")], "rejected": [said("assistant", "a")]},
        [ASK],
    ),
}  # fmt: skip


def data_of(folder: Path, *rows: Any, **more: Any) -> DataSection:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(folder / "rows.jsonl"), **more.pop("source", {})}
    return DataSection.model_validate({"sources": [source], "max_prompt_tokens": 256, **more})


@pytest.mark.parametrize("name", FORMS)
def test_prompts_are_what_every_form_asks(tmp_path: Path, name: str) -> None:
    row, asked = FORMS[name]
    tokenizer = make_tokenizer("byte_level", "bos", TEMPLATES["tools"])
    (found,) = Prompts(data_of(tmp_path, row), tokenizer)
    if isinstance(asked, str):
        assert found == asked
    else:
        messages, tools = asked if isinstance(asked, tuple) else (asked, None)
        assert found == Question(messages, tools)


@pytest.mark.parametrize("adds", ["", "bos", "bos eos"])
@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "zephyr"])
def test_prepared_candidates_have_the_ids_that_were_sampled_from(
    kind: str, adds: str, name: str, tmp_path: Path
) -> None:
    """And those of transformers, with each BOS of the template once and none of the tokenizer."""
    tokenizer = make_tokenizer(kind, adds, TEMPLATES[name])
    data = data_of(tmp_path, {"prompt": TURNS})
    (prompt,) = Prompts(data, tokenizer)
    assert isinstance(prompt, Question)
    ids = PromptEncoder(tokenizer, data)(prompt)
    options = {"add_generation_prompt": True, "return_dict": True}
    assert ids == tokenizer.apply_chat_template(TURNS, **options)["input_ids"]
    row = {"prompt": prompt.messages, "responses": ["yes", "no boats"], "scores": [1, 0]}
    form = form_of("scored", row)
    (pair,) = pairs_of_row(row, form, data, ChatRenderer(tokenizer, data))
    assert PairEncoder(tokenizer, data).encode(pair).prompt == ids


def test_a_bad_row_is_left_out_and_counted(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("byte_level", "bos", TEMPLATES["gemma"])
    rows = [
        {"prompt": [ASK]},
        {"prompt": [SYSTEM, ASK]},
        {"prompt": []},
        {"prompt": [said("user", "nice \ud83d")]},
        {"prompt": [said("user", "boats " * 300)]},
        7,
        {"prompt": [ASK, said("assistant", "fine")]},
    ]
    prompts = Prompts(data_of(tmp_path, *rows, prompt_overflow="drop"), tokenizer)
    assert list(prompts) == [Question([ASK])]
    assert sorted(prompts.reasons) == [
        "chat template: System role not supported",
        "prompt is not valid UTF-8",
        "prompt longer than max_prompt_tokens",
        "the line is not a JSON object",
        "the prompt does not end before a turn of the assistant",
    ]


def test_a_tool_that_the_template_leaves_out_is_said(tmp_path: Path) -> None:
    """As prepare says it of the candidates: they would be dropped there."""
    tokenizer = make_tokenizer("byte_level", "", TEMPLATES["chatml"])
    prompts = Prompts(data_of(tmp_path, {"prompt": [ASK], "tools": [TOOL]}), tokenizer)
    assert list(prompts) == []
    assert [reason.split(" (")[0] for reason in prompts.reasons] == [
        "the chat template leaves out tools"
    ]


def test_texts_and_conversations_are_sampled_apart(tmp_path: Path) -> None:
    """prepare would refuse the file of their candidates, which mixes forms."""
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "the film"}))
    data = data_of(tmp_path, {"prompt": [ASK]}).model_dump(mode="json")
    both = [*data["sources"], {"path": str(tmp_path / "b.jsonl")}]
    with pytest.raises(UserError, match="some sources ask in texts, others in conversations"):
        Prompts(DataSection.model_validate({**data, "sources": both}), make_tokenizer("metaspace"))


@pytest.mark.parametrize(
    ("given", "template", "line"),
    [
        ([{"prompt": [SYSTEM, ASK]}], TEMPLATES["gemma"],
         "no prompt to sample from .chat template: System role not supported: 1"),
        ([{"prompt": "  "}], None, "no prompt to sample from .empty prompt: 1"),
        ([{"prompt": [ASK]}], None, "has none; set data.chat_template"),
        ([{"prompt": [ASK]}, {"prompt": "the film"}], TEMPLATES["chatml"], "mixes forms"),
        ([{"text": "the film"}], None, "has no prompts"),
        ([{"films": "the film"}], None, "fit no form"),
    ],
)  # fmt: skip
def test_sample_refuses_before_any_work_where_nothing_can_be_asked(
    tmp_path: Path, chat_model: Callable[..., Path], recipe_in: MakeRecipe,
    given: list[Row], template: str | None, line: str,
) -> None:  # fmt: skip
    recipe = recipe_in(
        tmp_path / "run",
        f"model.name_or_path={chat_model(template)}",
        data=data_of(tmp_path, *given).model_dump(mode="json"),
    )
    with pytest.raises(UserError, match=line):
        SAMPLE.check(Run(recipe))


@pytest.fixture
def chat_model(tmp_path: Path) -> Callable[..., Path]:
    def write(template: str | None) -> Path:
        tokenizer = make_tokenizer("byte_level", "bos", template)
        torch.manual_seed(4)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return write


def test_candidates_of_chats_are_prepared_with_their_prompt(
    tmp_path: Path, chat_model: Callable[..., Path], recipe_in: MakeRecipe
) -> None:
    """Through the stage: messages and tools stay what they are; the template is the recipe's."""
    (tmp_path / "tools.jinja").write_text(TEMPLATES["tools"])
    rows = [{"prompt": [SYSTEM, said("user", f"film {n}?")], "tools": [TOOL]} for n in range(3)]
    data = data_of(tmp_path, *rows, rows[0], {"prompt": 3})
    overrides = (
        f"model.name_or_path={chat_model(None)}",
        f"data.chat_template={tmp_path / 'tools.jinja'}",
        "sample={num_candidates: 3, batch_prompts: 2, generation: {max_new_tokens: 4}}",
    )
    recipe = recipe_in(tmp_path / "run", *overrides, data=data.model_dump(mode="json"))
    with executed_by(LocalExecutor()):
        counts = SAMPLE.run(Run(recipe), silent, True)["counts"]
    folder = tmp_path / "run" / "sample"
    assert (counts["prompts"], counts["candidates"]) == (3, 9)
    assert counts["rejected"] == {"prompt is neither a string nor a list of messages": 1}
    found = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    asked = sorted(json.dumps([row["prompt"], row["tools"]]) for row in found)
    assert asked == sorted(json.dumps([row["prompt"], row["tools"]]) for row in rows)
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    encoder, chat = PairEncoder(tokenizer, recipe.data), ChatRenderer(tokenizer, recipe.data)
    pairs = 0
    for row in found:
        row |= {"responses": ["yes", "no"], "scores": [1, 0]}
        expected = tokenizer.apply_chat_template(
            row["prompt"], tools=row["tools"], chat_template=TEMPLATES["tools"],
            add_generation_prompt=True, return_dict=True,
        )["input_ids"]  # fmt: skip
        for pair in pairs_of_row(row, form_of("scored", row), recipe.data, chat):
            assert encoder.encode(pair).prompt == expected
            pairs += 1
    assert pairs == 3


def test_what_changes_the_prompts_makes_another_sample(
    tmp_path: Path, chat_model: Callable[..., Path], recipe_in: MakeRecipe
) -> None:
    data = data_of(tmp_path, {"prompt": [ASK]}).model_dump(mode="json")
    model = f"model.name_or_path={chat_model(TEMPLATES['chatml'])}"

    def record(*overrides: str) -> str:
        recipe = recipe_in(tmp_path / "run", model, *overrides, data=data)
        return Run(recipe).record(SAMPLE).fingerprint()

    (tmp_path / "t.jinja").write_text(TEMPLATES["llama3"])
    file = f"data.chat_template={tmp_path / 't.jinja'}"
    found = [record(), record(file), record("data.chat_template_kwargs={a: 1}")]
    found += [record("data.max_prompt_tokens=3"), record("data.prompt_overflow=drop")]
    (tmp_path / "t.jinja").write_text(TEMPLATES["gemma"])
    found.append(record(file))
    assert len(set(found)) == 6
    assert record() == found[0]
