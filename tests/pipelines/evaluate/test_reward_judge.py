"""A reward model is asked in its own chat template, or reads texts one after the other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import TEMPLATES, make_tokenizer
from text_models import save_reward_model
from transformers import (
    AutoModelForSequenceClassification,
)

from pipelines.errors import UserError
from pipelines.evaluate.reward_judge import RewardJudge, check_reward_judge, judge_warnings
from pipelines.evaluate.sample_scores import compare_scores
from pipelines.pairs.question import Question
from pipelines.recipe.evaluation import RewardModelJudge

WHO = ("chosen", "start", "policy")
NO_END = TEMPLATES["llama3"].replace("<|eot_id|>", "\n")
Messages = list[dict[str, Any]]


def judge_in(folder: Path, template: str | None, adds: str = "bos") -> RewardModelJudge:
    tokenizer = make_tokenizer("byte_level", adds, template)
    save_reward_model(folder, tokenizer, pad_token_id=tokenizer.eos_token_id, initializer_range=0.3)
    return RewardModelJudge(model=str(folder))


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def record(prompt: str, messages: Messages | None, **replies: str) -> dict[str, Any]:
    stored = None if messages is None else json.dumps({"messages": messages})
    texts = dict(
        zip(("chosen_text", "start_text", "policy_text"), ("yes", "no", "boats"), strict=True)
    )
    return {"prompt": prompt, "conversation": stored, **texts, **replies}


def scores(judge: RewardModelJudge, ids: list[int]) -> float:
    """The logit at the last token, by a plain forward of one sequence."""
    model = AutoModelForSequenceClassification.from_pretrained(judge.model).eval()
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits[0, 0])


SYSTEM = [said("system", "be brief"), said("user", "tell me")]
TURNS = [said("user", "why?"), said("assistant", "so"), said("user", "really?")]


@pytest.mark.parametrize("template", [TEMPLATES["llama3"], TEMPLATES["chatml"], NO_END])
def test_a_judge_with_a_template_is_asked_in_it(tmp_path: Path, template: str) -> None:
    """The ids are those of transformers: BOS as the template has it, be it once or never.

    A template whose answers have no end token will do here.
    """
    judge = judge_in(tmp_path, template)
    check_reward_judge(judge)
    rows = [
        record("?", SYSTEM),
        record("?", TURNS, policy_text="so it was"),
        record("the film was", None),
        record("\n\nHuman: why?\n\nAssistant: so\n\nHuman: really?\n\nAssistant:", None),
    ]
    asked: list[Messages] = [SYSTEM, TURNS, [said("user", "the film was")], TURNS]
    found = RewardJudge(judge)
    tokenizer = make_tokenizer("byte_level", "bos", template)
    for who in WHO:
        found.score(rows, who)
        for row, messages in zip(rows, asked, strict=True):
            whole = [*messages, said("assistant", row[f"{who}_text"])]
            ids = tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
            assert row[f"{who}_judge_score"] == pytest.approx(scores(judge, ids), abs=1e-5)
    assert list(judge_warnings(rows)) == [
        "evaluate.judge.model has a chat template: 1 prompts of a text form were put to it as a "
        "turn of the user",
        "evaluate.judge.model has a chat template: 1 prompts of a text form were put to it as "
        "turns of a transcript",
    ]


def test_a_judge_without_a_template_reads_text(tmp_path: Path) -> None:
    """As its tokenizer encodes text: the prompt's and the reply, or turns with their roles."""
    judge = judge_in(tmp_path, None)
    rows = [record("the film was", None, policy_text=" dull"), record("?", SYSTEM)]
    texts = ["the film was dull", "System: be brief\n\nUser: tell me\n\nAssistant: boats"]
    RewardJudge(judge).score(rows, "policy")
    tokenizer = make_tokenizer("byte_level", "bos")
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer(text).input_ids
        assert row["policy_judge_score"] == pytest.approx(scores(judge, ids), abs=1e-5)
    assert list(judge_warnings(rows)) == []


@pytest.mark.parametrize("template", [None, TEMPLATES["chatml"]])
def test_what_is_too_long_keeps_its_reply(tmp_path: Path, template: str | None) -> None:
    """The judge reads the last tokens, and how many prompts lost others is said."""
    judge = judge_in(tmp_path, template, adds="")
    tokenizer = make_tokenizer("byte_level", "", template)
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(tmp_path)
    rows = [record("film", None), record("film " * 40, None)]
    RewardJudge(judge).score(rows, "policy")
    text = f"{'film ' * 40}boats"
    if template is not None:
        turns = [said("user", "film " * 40), said("assistant", "boats")]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert rows[1]["policy_judge_score"] == pytest.approx(scores(judge, ids[-32:]), abs=1e-5)
    line = "evaluate.judge.model reads 32 tokens: 1 of 2 prompts lost their beginning"
    assert line in list(judge_warnings(rows))


def test_a_conversation_that_the_template_refuses_has_no_verdict(tmp_path: Path) -> None:
    """And a template that refuses every one ends the evaluation in one line."""
    found = RewardJudge(judge_in(tmp_path, TEMPLATES["gemma"]))
    rows = [record("?", SYSTEM), record("?", TURNS)]
    for who in WHO:
        found.score(rows, who)
    compare_scores(rows)
    assert [row["start_verdict"] == "failed" for row in rows] == [True, False]
    assert list(judge_warnings(rows)) == [
        "the chat template of evaluate.judge.model refuses 1 of 2 prompts, which have no verdict: "
        "System role not supported"
    ]
    with pytest.raises(UserError, match="refuses every conversation: System role not supported"):
        list(judge_warnings(rows[:1]))


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{ raise_exception('not me') }}", "does not render a question and its answer: not me"),
        ("{% for m in messages %}{{ m.role }", "is no template: line 1"),
        ("hello", "does not render a question and its answer: the answer is not in the text"),
    ],
)
def test_a_template_that_is_none_is_refused_before_anything_runs(
    tmp_path: Path, template: str, line: str
) -> None:
    judge = judge_in(tmp_path, template)
    with pytest.raises(UserError, match=f"^evaluate.judge.model = .*: the chat template .*{line}"):
        check_reward_judge(judge)


def test_conversations_as_a_person_reads_them() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    tool = {"type": "function", "function": {"name": "weather"}}
    used = [said("user", "how is it?"), {"role": "assistant", "tool_calls": [call]}]
    used.append(said("tool", "grey"))
    assert Question([said("user", "why? ")]).read() == "why? "
    assert Question(TURNS).read() == "User: why?\n\nAssistant: so\n\nUser: really?"
    assert Question(used, [tool]).read() == (
        f"Tools:\n{json.dumps(tool)}\n\nUser: how is it?\n\n"
        'Assistant: calls weather {"city": "Ulm"}\n\nTool: grey'
    )


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("the film was", [said("user", "the film was")]),
        ("\n\nHuman: why?\n\nAssistant:", TURNS[:1]),
        ("\n\nHuman: why?\n\nAssistant: so\n\nHuman: really?\n\nAssistant:", TURNS),
        (" it is?\n\nAssistant: so\n\nHuman: really?\n\nAssistant:",
         [said("user", "it is?"), *TURNS[1:]]),
        ("\n\nHuman: why?\n\nAssistant: so", [said("user", "\n\nHuman: why?\n\nAssistant: so")]),
        ("how?\n\nAssistant:", [said("user", "how?")]),
    ],
)  # fmt: skip
def test_texts_as_messages(prompt: str, messages: Messages) -> None:
    assert Question.of_text(prompt).messages == messages
