"""What models are asked, and the reply that a pair has: ids and texts against direct ones."""

from typing import Any

import pytest
from chat_tokenizers import KINDS, TEMPLATES, make_tokenizer

from evaluation.benchmarks.code import chat_question
from pipelines.evaluate.prompts import CodePrompts
from pipelines.models.chat_template import ChatSettings, ChatTemplate
from pipelines.models.response_ends import ResponseEnds
from pipelines.pairs.conversation import ChatRenderer, PairEncoder, answer_ids
from pipelines.pairs.detection import form_of
from pipelines.pairs.forms import pairs_of_row
from pipelines.recipe.evaluation import CodeSection
from pipelines.recipe.schema import DataSection

TASK = "def boats():\n    return 'the film'\n"
ADDS = ("", "bos", "eos", "bos eos")


@pytest.mark.parametrize("adds", ADDS)
@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "unigram", "word_piece"])
def test_programs_are_asked_as_the_text_of_a_pair(kind: str, adds: str) -> None:
    """BOS as the tokenizer's own encoding has it, and no end before the answer."""
    tokenizer = make_tokenizer(kind, adds)
    section = CodeSection(tasks="t.jsonl")
    own = tokenizer(TASK).input_ids
    found = CodePrompts(tokenizer, section, ChatSettings())(TASK)
    assert found == (own[:-1] if "eos" in adds else own)
    assert found.count(tokenizer.bos_token_id) == ("bos" in adds)
    pair = PairEncoder(tokenizer, data()).prompt(TASK)
    assert found == pair


@pytest.mark.parametrize("adds", ADDS)
@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma"])
@pytest.mark.parametrize("is_the_recipes", [False, True])
def test_programs_are_asked_in_the_template(name: str, adds: str, is_the_recipes: bool) -> None:
    """The ids of transformers: BOS once if the template writes it, whatever the tokenizer adds."""
    own, chat = (None, ChatSettings(TEMPLATES[name])) if is_the_recipes else (name, ChatSettings())
    tokenizer = make_tokenizer("byte_level", adds, own and TEMPLATES[own])
    section = CodeSection(tasks="t.jsonl", apply_chat_template=True)
    question = [{"role": "user", "content": chat_question(TASK)}]
    expected = tokenizer.apply_chat_template(
        question,
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    assert CodePrompts(tokenizer, section, chat)(TASK) == expected
    assert expected.count(tokenizer.bos_token_id) == (name != "chatml")


def data(**more: Any) -> DataSection:
    return DataSection.model_validate({"sources": [{"path": "x"}], **more})


def replies(row: dict[str, Any], form: str, tokenizer: Any, **more: Any) -> tuple[str, str]:
    """The text of the chosen reply, and that of the ids that the pair stores of it."""
    ends = ResponseEnds((tokenizer.eos_token_id,))
    if tokenizer.chat_template:
        ends = ResponseEnds((tokenizer.eos_token_id, ChatTemplate(tokenizer).form.end))
    settings = data(**more)
    chat = ChatRenderer(tokenizer, settings)
    (pair,) = pairs_of_row(row, form_of(form, row), settings, chat)
    encoded = PairEncoder(tokenizer, settings).encode(pair)
    whole = answer_ids(tokenizer, pair.prompt, pair.chosen, pair.is_chat)
    return tuple(ends.text(tokenizer, ends.cut(ids)) for ids in (whole, encoded.chosen))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["chatml", "llama2", "gemma", "zephyr"])
def test_a_reply_is_read_as_samples_are(kind: str, name: str) -> None:
    """Of its first turn, without end marks; the same from the whole text and the stored ids."""
    tokenizer = KINDS[kind](TEMPLATES[name])

    def turns(*texts: str) -> list[dict[str, str]]:
        roles = ("user", "assistant") * 2
        return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]

    for rest in ((), ("and boats?", "no")):
        row = {
            "chosen": turns("the film?", "yes please", *rest),
            "rejected": turns("the film?", "dull", *rest),
        }
        for scored in ("last", "all"):
            found, stored = replies(row, "conversational", tokenizer, scored_turns=scored)
            assert found == stored
            assert found.strip() == "yes please"
    cut, stored = replies(
        row, "conversational", tokenizer, max_response_tokens=1, scored_turns="all"
    )
    assert cut.strip() == "yes please", "all of it, although the pair keeps one token"
    assert len(stored) < len(cut)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_reply_is_read_as_samples_are(kind: str) -> None:
    """A text that writes its end itself has none either."""
    tokenizer = KINDS[kind]()
    for prompt, answer in (("the film was", " lovely"), ("tell me\n", "boats, yes</s>")):
        row = {"prompt": prompt, "chosen": answer, "rejected": " no"}
        found, stored = replies(row, "text", tokenizer)
        assert found == stored
        assert "".join(found.split()) == "".join(answer.removesuffix("</s>").split())
