"""Every layout that people bring is read as what it means: against apply_chat_template of messages
written out by hand, or against the texts themselves.
"""

import itertools
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from chat_tokenizers import KINDS, TEMPLATES
from checkout import ROOT
from runs import MakeRecipe

from pipelines.commands.plan import run_plan
from pipelines.errors import UserError
from pipelines.pairs.conversation import ChatRenderer, PairEncoder, RawPair, RowRejected
from pipelines.pairs.detection import Detected, detect
from pipelines.pairs.prompts import Prompts
from pipelines.pairs.question import Question
from pipelines.pairs.row_readers import SourceRow
from pipelines.pairs.sources import chunks_of, read_rows, sampled_rows
from pipelines.pairs.tokenising import used
from pipelines.pairs.unpaired import pairs_of_rows, stand_alone
from pipelines.recipe.schema import ColumnNames, DataSection, Source

DATA = ROOT / "docs" / "data.md"
Row = dict[str, Any]
Sides = tuple[list[Row], list[Row] | None]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def bot(text: str) -> Row:
    return {"role": "assistant", "content": text}


def system(text: str) -> Row:
    return {"role": "system", "content": text}


def said(sender: str, value: str) -> Row:
    return {"from": sender, "value": value}


ASKED = [system("be brief"), user("boats?"), bot("what of them?"), user("dull?")]
GOOD, BAD = [*ASKED, bot("no")], [*ASKED, bot("yes")]
SHARED = [said("system", "be brief"), said("human", "boats?"), said("gpt", "what of them?")]
SHARED += [said("human", "dull?")]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"at": "sea"}}}
CALLED = [
    user("storm?"),
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "calm"},
]

# Rows as the data sets have them -> the conversations that they mean.
CHATS: dict[str, tuple[Row, Sides]] = {
    "whole conversations": ({"chosen": GOOD, "rejected": BAD}, (GOOD, BAD)),
    "prompt of messages": (
        {"prompt": ASKED, "chosen": GOOD[-1:], "rejected": BAD[-1:]}, (GOOD, BAD)
    ),
    "prompt of one message": (
        {"prompt": user("dull?"), "chosen": [bot("no")], "rejected": [bot("yes")]},
        ([user("dull?"), bot("no")], [user("dull?"), bot("yes")]),
    ),
    "prompt of text": (
        {"prompt": "dull?", "chosen": bot("no"), "rejected": bot("yes")},
        ([user("dull?"), bot("no")], [user("dull?"), bot("yes")]),
    ),
    "answers of text": ({"prompt": ASKED, "chosen": "no", "rejected": "yes"}, (GOOD, BAD)),
    "system beside": (
        {"system": "be brief", "prompt": "dull?", "chosen": [bot("no")], "rejected": [bot("yes")]},
        (
            [system("be brief"), user("dull?"), bot("no")],
            [system("be brief"), user("dull?"), bot("yes")],
        ),
    ),
    "ultrafeedback binarized": (
        {
            "prompt": "dull?", "prompt_id": "f3", "chosen": [user("dull?"), bot("no")],
            "rejected": [user("dull?"), bot("yes")], "messages": [user("dull?"), bot("no")],
            "score_chosen": 8.5, "score_rejected": 8.5,
        },
        ([user("dull?"), bot("no")], [user("dull?"), bot("yes")]),
    ),
    "sharegpt": (
        {"conversations": SHARED, "chosen": said("gpt", "no"), "rejected": said("gpt", "yes")},
        (GOOD, BAD),
    ),
    "sharegpt, lists": (
        {"conversations": SHARED, "chosen": [said("gpt", "no")], "rejected": [said("gpt", "yes")]},
        (GOOD, BAD),
    ),
    "sharegpt, whole": (
        {
            "chosen": [*SHARED, said("gpt", "no")], "rejected": [*SHARED, said("gpt", "yes")],
        },
        (GOOD, BAD),
    ),
    "sharegpt, system and tools beside": (
        {
            "conversations": [
                said("human", "storm?"),
                said("function_call", json.dumps(CALL["function"])),
                said("observation", "calm"),
            ],
            "chosen": said("gpt", "no"), "rejected": said("gpt", "yes"),
            "system": "be brief", "tools": json.dumps(TOOLS),
        },
        (
            [system("be brief"), *CALLED, bot("no")], [system("be brief"), *CALLED, bot("yes")]
        ),
    ),
    "alpaca": (
        {"instruction": "Say", "input": "boats", "chosen": "no", "rejected": "yes"},
        ([user("Say\nboats"), bot("no")], [user("Say\nboats"), bot("yes")]),
    ),
    "alpaca, nothing put in": (
        {"instruction": "Say", "input": "", "chosen": "no", "rejected": "yes"},
        ([user("Say"), bot("no")], [user("Say"), bot("yes")]),
    ),
    "alpaca, system": (
        {
            "instruction": "Say", "input": "boats", "system": "be brief", "chosen": "no",
            "rejected": "yes",
        },
        (
            [system("be brief"), user("Say\nboats"), bot("no")],
            [system("be brief"), user("Say\nboats"), bot("yes")],
        ),
    ),
    "alpaca, chosen only": (
        {"instruction": "Say", "input": "boats", "output": "no"},
        ([user("Say\nboats"), bot("no")], None),
    ),
    "scored": (
        {
            "prompt": ASKED, "responses": ["so", "yes", "no"], "scores": [0.5, 0, 1],
        },
        (GOOD, BAD),
    ),
    "scored, messages": (
        {"prompt": "dull?", "responses": [[bot("yes")], [bot("no")]], "scores": [1, 2]},
        ([user("dull?"), bot("no")], [user("dull?"), bot("yes")]),
    ),
    "messages": ({"messages": GOOD}, (GOOD, None)),
    "conversations": ({"conversations": [*SHARED, said("gpt", "no")]}, (GOOD, None)),
    "messages beside their prompt": ({"prompt": "boats?", "messages": GOOD}, (GOOD, None)),
    "completion of messages": ({"prompt": ASKED, "completion": GOOD[-1:]}, (GOOD, None)),
    "chosen of messages": ({"prompt": "dull?", "chosen": [bot("no")]}, (
        [user("dull?"), bot("no")], None
    )),
}  # fmt: skip

HEAD = "\n\nHuman: boats?\n\nAssistant: what of them?\n\nHuman: dull?\n\nAssistant:"
TEXTS: dict[str, tuple[Row, RawPair]] = {
    "text": (
        {"prompt": "dull?", "chosen": " no", "rejected": " yes"}, RawPair("dull?", " no", " yes")
    ),
    "hh": ({"chosen": f"{HEAD} no", "rejected": f"{HEAD} yes"}, RawPair(HEAD, " no", " yes")),
    "hh beside its prompt": (
        {"prompt": HEAD, "chosen": f"{HEAD} no", "rejected": f"{HEAD} yes"},
        RawPair(HEAD, " no", " yes"),
    ),
    "hh in parts": (
        {"prompt": HEAD, "chosen": " no", "rejected": " yes"}, RawPair(HEAD, " no", " yes")
    ),
    "scored": (
        {"prompt": "dull?", "responses": [" yes", " no"], "scores": [1, 4]},
        RawPair("dull?", " no", " yes", 4.0, 1.0),
    ),
    "scores": (
        {
            "prompt": "p", "chosen": " no", "rejected": " yes", "score_chosen": 9,
            "score_rejected": 2.5,
        },
        RawPair("p", " no", " yes", 9.0, 2.5),
    ),
    "chosen only": ({"prompt": "dull?", "chosen": " no"}, RawPair("dull?", " no", None)),
    "completion": ({"prompt": "dull?", "completion": " no"}, RawPair("dull?", " no", None)),
    "response": ({"prompt": "dull?", "response": " no"}, RawPair("dull?", " no", None)),
    "text only": ({"text": "boats"}, RawPair("", "boats", None)),
}  # fmt: skip


def source_of(folder: Path, rows: Sequence[Row], **more: Any) -> Source:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path), **more)


def detected(source: Source) -> Detected:
    return detect(source, sampled_rows(chunks_of(source, 100)))


def made(source: Source, tokenizer: Any = None, **settings: Any) -> list[tuple[str, RawPair | str]]:
    """(place, pair or reason) of all that a source gives."""
    data = DataSection(sources=(source,), **settings)
    chunks = chunks_of(source, 3)
    read = (row for chunk in chunks for row in read_rows(chunk))
    chat, form = ChatRenderer(tokenizer, data), detected(source).form
    found = pairs_of_rows(read, form, data, chat)
    return [
        (row.place, str(pair) if isinstance(pair, RowRejected) else pair) for row, pair in found
    ]


def refused(source: Source) -> str:
    with pytest.raises(UserError) as caught:
        detected(source)
    return str(caught.value).replace(source.path, "FILE")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return KINDS["byte_level"](TEMPLATES["tools"])


@pytest.mark.parametrize("name", CHATS)
def test_conversations_are_what_apply_chat_template_makes_of_the_messages(
    name: str, tokenizer: Any, tmp_path: Path
) -> None:
    row, sides = CHATS[name]
    source = source_of(tmp_path, [row])
    ((_, pair),) = made(source, tokenizer)
    assert isinstance(pair, RawPair)
    tools = TOOLS if "tools" in row else None
    limits = {"max_prompt_tokens": 999, "max_response_tokens": 999}
    found = PairEncoder(tokenizer, DataSection(sources=(source,), **limits)).encode(pair)
    for messages, ids in zip(sides, (found.chosen, found.rejected), strict=True):
        if messages is None:
            assert ids is None
            continue
        assert ids is not None
        whole = tokenizer.apply_chat_template(messages, tools=tools, return_dict=False)
        assert [*found.prompt, *ids] == whole[: len(found.prompt) + len(ids)]
        assert tokenizer.decode(whole[len(found.prompt) + len(ids) :]) == "\n"
        assert tokenizer.decode(ids) == f"{messages[-1]['content']}<|im_end|>"


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_read_as_they_stand(name: str, tmp_path: Path) -> None:
    row, pair = TEXTS[name]
    assert made(source_of(tmp_path, [row])) == [("rows.jsonl:1", pair)]


def test_transcripts_are_taken_apart_into_messages_on_request(
    tokenizer: Any, tmp_path: Path
) -> None:
    """By the packaged template: a system turn without words, then the turns, each with its end."""
    row = {"chosen": f"{HEAD} no\n\nand no", "rejected": f"{HEAD} yes"}
    source = source_of(tmp_path, [row], transcripts="messages")
    settings = {"chat_template": "user-assistant"}
    ((_, pair),) = made(source, tokenizer, **settings)
    end = tokenizer.eos_token
    asked = f"<|system|>\n{end}\n<|user|>\nboats?{end}\n<|assistant|>\nwhat of them?{end}\n"
    asked += f"<|user|>\ndull?{end}\n<|assistant|>\n"
    assert isinstance(pair, RawPair) and pair.prompt == asked
    data = DataSection(sources=(source,), **settings)  # type: ignore[arg-type]
    found = PairEncoder(tokenizer, data).encode(pair)
    assert found.rejected is not None
    assert tokenizer.decode(found.prompt) == asked
    assert tokenizer.decode(found.chosen) == f"no\n\nand no{end}"
    assert tokenizer.decode(found.rejected) == f"yes{end}"
    (prompt,) = Prompts(data, tokenizer)
    assert prompt == Question([user("boats?"), bot("what of them?"), user("dull?")])


def test_only_transcripts_are_taken_apart(tokenizer: Any, tmp_path: Path) -> None:
    text = source_of(tmp_path, [TEXTS["text"][0]], transcripts="messages")
    assert "transcripts = messages, and its form is text: only HH transcripts" in refused(text)
    cut = {"chosen": f"so. {HEAD} no", "rejected": f"so. {HEAD} yes"}
    empty = {"chosen": HEAD, "rejected": f"{HEAD} yes"}
    source = source_of(tmp_path, [cut, empty], transcripts="messages", form="hh")
    assert [why for _, why in made(source, tokenizer)] == [
        "the transcript does not begin with a turn", "empty response"
    ]  # fmt: skip


def test_rows_of_the_documents_table_are_of_the_form_it_says(tmp_path: Path) -> None:
    table = re.findall(r"^\| [^|]+ \| `(\{.*\})` \| `(\w+)` \|$", DATA.read_text(), re.M)
    assert {form for _, form in table} | {"auto"} == set(
        get_args(Source.model_fields["form"].annotation)
    )
    for row, form in table:
        assert detected(source_of(tmp_path, [json.loads(row)])).form.name == form, row


@pytest.mark.parametrize("name", [*CHATS, *TEXTS])
def test_rows_that_say_nothing_do_not_decide(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """Nulls, missing columns and no objects first: the form is that of the row that has all."""
    row = (CHATS.get(name) or TEXTS[name])[0]
    alone = detected(source_of(tmp_path, [row]))
    poor = [dict.fromkeys(row), *({**row, column: None} for column in row), 7, {}]
    assert detected(source_of(tmp_path, [*poor, row])) == alone


def test_a_first_row_with_a_null_is_dropped_and_no_other(tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": None, "chosen": " a", "rejected": " b"}]
    rows += [{"prompt": f"p{n}", "chosen": " a", "rejected": " b"} for n in range(4)]
    found = made(source_of(tmp_path, rows))
    assert found[0] == ("rows.jsonl:1", "prompt is NoneType, not a string")
    assert [pair for _, pair in found[1:]] == [RawPair(f"p{n}", " a", " b") for n in range(4)]


def test_empty_texts_do_not_decide_either(tokenizer: Any, tmp_path: Path) -> None:
    row = CHATS["prompt of text"][0]
    blank = {"prompt": "dull?", "chosen": "", "rejected": " "}
    found = [why for _, why in made(source_of(tmp_path, [blank, row, blank]), tokenizer)]
    (alone,) = (pair for _, pair in made(source_of(tmp_path, [row]), tokenizer))
    assert found == ["empty response", alone, "empty response"]
    assert detected(source_of(tmp_path, [blank])).form.name == "text"


PLAIN = {"prompt": "p", "chosen": "a", "rejected": "b"}
MIXTURES: dict[str, tuple[list[Row], str]] = {
    "text and messages": (
        [PLAIN, CHATS["whole conversations"][0]],
        "mixes forms: text (prompt, chosen, rejected) at rows.jsonl:1, conversational (chosen, "
        "rejected) at rows.jsonl:2; give each kind a source of its own, or set "
        "data.sources[].form to one and the rows of the other are dropped",
    ),
    "pairs and chosen alone": (
        [{"messages": GOOD}, PLAIN],
        "chosen_only of messages (messages) at rows.jsonl:1, text (prompt, chosen, rejected) at",
    ),
    "pairs and candidates": (
        [PLAIN, TEXTS["scored"][0]], "scored of text (prompt, responses, scores) at rows.jsonl:2"
    ),
    "transcripts and texts": ([PLAIN, TEXTS["hh"][0]], "hh (chosen, rejected) at rows.jsonl:2"),
    "candidates of text and messages": (
        [TEXTS["scored"][0], CHATS["scored, messages"][0]],
        "scored of text (prompt, responses, scores) at rows.jsonl:1, scored of messages (prompt, "
        "responses, scores) at rows.jsonl:2; give each kind a source of its own",
    ),
    "far behind": (
        [PLAIN] * 400 + [CHATS["alpaca"][0]],
        "alpaca (instruction, chosen, rejected) at rows.jsonl:401",
    ),
    "questions in two columns": (
        [{**CHATS["prompt of text"][0]}, CHATS["sharegpt"][0]],
        "prompt asks at rows.jsonl:1, conversations at rows.jsonl:2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_refused_with_both_places(name: str, tmp_path: Path) -> None:
    rows, line = MIXTURES[name]
    assert line in refused(source_of(tmp_path, rows))


def test_files_of_a_folder_are_looked_into(tmp_path: Path) -> None:
    """The first file alone fills the first rows."""
    (tmp_path / "a.jsonl").write_text((json.dumps(PLAIN) + "\n") * 600)
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": GOOD}) + "\n")
    with pytest.raises(UserError, match=r"at a.jsonl:1, chosen_only of messages .* at b.jsonl:1"):
        detected(Source(path=str(tmp_path)))


def test_a_named_form_drops_the_rows_of_others(tmp_path: Path) -> None:
    rows = [PLAIN, CHATS["whole conversations"][0]]
    assert made(source_of(tmp_path, rows, form="text")) == [
        ("rows.jsonl:1", RawPair("p", "a", "b")),
        ("rows.jsonl:2", "chosen is list, not a string"),
    ]


def test_texts_become_turns_where_the_recipe_asks_for_conversations(
    tokenizer: Any, tmp_path: Path
) -> None:
    ((_, pair),) = made(source_of(tmp_path, [PLAIN], form="conversational"), tokenizer)
    messages = {"prompt": [user("p")], "chosen": [bot("a")], "rejected": [bot("b")]}
    assert [("rows.jsonl:1", pair)] == made(source_of(tmp_path, [messages]), tokenizer)


def test_alpaca_is_text_where_the_recipe_says_so(tmp_path: Path) -> None:
    row = CHATS["alpaca"][0]
    text = RawPair("Say\nboats", "no", "yes")
    for source in (
        source_of(tmp_path, [row], form="text"),
        source_of(tmp_path, [row], form="text", columns=ColumnNames(prompt="instruction")),
    ):
        assert made(source) == [("rows.jsonl:1", text)]
    named = ColumnNames(prompt="ask", input="more")
    row = {"ask": "Say", "more": "boats", "chosen": "no", "rejected": "yes"}
    assert made(source_of(tmp_path, [row], columns=named)) == [("rows.jsonl:1", text)]
    beside = {**PLAIN, "input": "boats"}
    assert made(source_of(tmp_path, [beside])) == [("rows.jsonl:1", RawPair("p", "a", "b"))]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {**PLAIN, "responses": ["a", "b"], "scores": [1, 2]},
            "FILE', rows.jsonl:1: two forms fit, text (prompt, chosen, rejected) and scored of "
            "text (prompt, responses, scores); say which with data.sources[].form",
        ),
        (
            {"prompt": "p", "response": "a", "completion": "b", "label": True},
            "two forms fit, unpaired of text (prompt, response, label) and unpaired of text "
            "(prompt, completion, label); leave completion out",
        ),
        (
            {"question": "p", "chosen": "a", "rejected": "b"},
            "chosen and rejected are texts and nothing asks for them: there is no 'prompt', and "
            r"they are no transcripts ('\n\nAssistant:'). Name the column that asks with "
            "data.sources[].columns.prompt: one of question",
        ),
        (
            {"prompt": "p", "response": "a", "label": "safe"},
            "label is 'safe', neither true nor false (1 nor 0); data.sources[].form = chosen_only "
            "reads the responses without it",
        ),
        (
            {**PLAIN, "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)},
            "FILE', rows.jsonl:1: chosen is the text of messages (JSON), not a list of them",
        ),
        (
            {"prompt": "p", "chosen": str(said("gpt", "no")), "rejected": "b"},
            "FILE', rows.jsonl:1: chosen is the text of messages (JSON), not a list of them",
        ),
        ({"a": 1, "b": 2}, "columns ['a', 'b'] fit no form: want prompt/chosen/rejected"),
    ],
)
def test_what_fits_no_form_or_two_is_refused(row: Row, line: str, tmp_path: Path) -> None:
    assert line in refused(source_of(tmp_path, [row]))


@pytest.mark.parametrize(
    ("form", "missing"),
    [
        ("text", "prompt"), ("conversational", "chosen"), ("hh", "chosen"), ("scored", "prompt"),
        ("unpaired", "response"), ("alpaca", "instruction"), ("chosen_only", "chosen"),
        ("text_only", "text"),
    ],
)  # fmt: skip
def test_a_named_form_says_which_column_is_not_there(
    form: Any, missing: str, tmp_path: Path
) -> None:
    line = f"(form {form}) has no column {missing!r}: its columns are a"
    assert line in refused(source_of(tmp_path, [{"a": 1}], form=form))


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (PLAIN, "text (prompt, chosen, rejected: text)"),
        (
            CHATS["ultrafeedback binarized"][0],
            "conversational (prompt: text; chosen, rejected: messages; score_chosen, "
            "score_rejected: scores; not read: messages)",
        ),
        (
            CHATS["sharegpt, system and tools beside"][0],
            "conversational (conversations, chosen, rejected: messages (from, value); also read: "
            "system, tools)",
        ),
        (
            {**CHATS["alpaca"][0], "history": [["a", "b"]]},
            "alpaca (instruction, chosen, rejected: text; made turns of a conversation; input: "
            "joined to instruction; not read: history)",
        ),
        (
            {**PLAIN, "system": "s", "tools": "[]", "images": ["i"], "weight": 2, "id": 7},
            "text (prompt, chosen, rejected: text; not read: system, tools, images, weight)",
        ),
        (
            {**PLAIN, "score_chosen": "high", "score_rejected": "low"},
            "text (prompt, chosen, rejected: text; not read: score_chosen, score_rejected)",
        ),
        (TEXTS["hh"][0], "hh (chosen, rejected: transcripts)"),
        (
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2], "input": "x"},
            "scored (prompt: text; responses: candidates of text; scores: scores; not read: input)",
        ),
        ({"text": "a", "images": None}, "text_only (text: text)"),
    ],
)
def test_a_line_says_what_was_taken_and_what_was_not_read(
    row: Row, line: str, tmp_path: Path
) -> None:
    source = source_of(tmp_path, [row] * 3)
    assert detected(source).line == f"data source {source.path!r}: {line}"
    named = Source(path=source.path, form=detected(source).form.name)  # type: ignore[arg-type]
    assert detected(named).line == detected(source).line.replace(
        " (", ", as data.sources[].form says (", 1
    )


def test_scores_that_nobody_named_are_no_reason_to_drop_a_row(tmp_path: Path) -> None:
    """Ties, a gap the wrong way, none at all; with min_gap they are one, as named ones are."""
    scores: list[tuple[Any, Any]] = [(2, 1), (1, 1), (1, 2), (None, 1), (2, None)]
    rows = [{**PLAIN, "score_chosen": a, "score_rejected": b} for a, b in scores]
    source = source_of(tmp_path, rows)
    pairs = [pair for _, pair in made(source) if isinstance(pair, RawPair)]
    assert [(pair.chosen_score, pair.rejected_score) for pair in pairs] == [
        (2, 1), (1, 1), (1, 2), (None, None), (None, None)
    ]  # fmt: skip
    kept = RawPair("p", "a", "b", 2.0, 1.0)
    assert [pair for _, pair in made(source, min_gap=0.5)] == [
        kept, "score gap below min_gap", "score gap below min_gap",
        "score_chosen is not a finite number", "score_rejected is not a finite number",
    ]  # fmt: skip
    named = ColumnNames(chosen_score="score_chosen", rejected_score="score_rejected")
    strict = Source(path=source.path, columns=named)
    assert [pair for _, pair in made(strict)][2:4] == [
        "score gap below min_gap", "score_chosen is not a finite number"
    ]  # fmt: skip


def test_columns_of_few_rows_are_read_where_they_are(tokenizer: Any, tmp_path: Path) -> None:
    """The form is seen from 500 rows; row 600 alone has a system turn and tools."""
    row = CHATS["sharegpt, system and tools beside"][0]
    bare = {key: value for key, value in row.items() if key not in ("system", "tools")}
    found = made(source_of(tmp_path, [bare] * 599 + [row]), tokenizer)
    assert found[-1][1] == made(source_of(tmp_path, [row]), tokenizer)[0][1] != found[0][1]
    named = source_of(tmp_path, [bare], columns=ColumnNames(system="sys"))
    assert detected(named).line.endswith("messages (from, value); not there: sys)")


def test_a_gap_without_scores_is_said(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    lines = {}
    for name in ("text", "scores", "scored"):
        (folder := tmp_path / name).mkdir()
        source = source_of(folder, [TEXTS[name][0]])
        given = (f"data.sources=[{{path: {source.path}}}]", "data.min_gap=0.1")
        recipe = make_recipe(*given, "data.test_fraction=0", evaluate={"benchmarks": []})
        (lines[name],) = run_plan(recipe)["data"]["layouts"]
    assert lines["text"].endswith("; no scores: data.min_gap is not applied")
    assert not any("min_gap" in lines[name] for name in ("scores", "scored"))


def test_scores_of_a_csv_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("prompt,chosen,rejected,chosen_score,rejected_score\np,4,5,0.5,1e-1\n")
    assert made(Source(path=str(path))) == [("f.csv:2", RawPair("p", "4", "5", 0.5, 0.1))]


def test_sharegpt_rows_that_make_no_sense_say_so(tokenizer: Any, tmp_path: Path) -> None:
    good = CHATS["sharegpt"][0]
    rows = [
        good,
        {**good, "conversations": [said("narrator", "x")]},
        {**good, "chosen": said("function_call", "{nothing")},
        {**good, "chosen": said("function_call", "[]")},
        {**good, "chosen": {"from": "gpt", "value": 7}},
        {**good, "chosen": said("human", "no")},
    ]
    reasons = [why for _, why in made(source_of(tmp_path, rows), tokenizer)][1:]
    assert [str(why).split(" is none of ")[0] for why in reasons] == [
        "conversations: from = 'narrator'",
        "chosen: a function_call is text that is no JSON",
        "chosen: a function_call is no call",
        "chosen: a content is int, neither a string nor text parts",
        "chosen is a whole conversation that does not begin with conversations",
    ]


def nested(depth: int) -> Any:
    found: Any = "x"
    for _ in range(depth):
        found = [found]
    return found


BAD_CELLS: list[Any] = [
    "", 7, 10**400, float("nan"), b"\xff", "\ud83d", [], {}, [None], [7, "x"], nested(20_000),
    user("x"), said("function_call", "{}"), said("narrator", "x"), {"role": 7},
    {"role": "assistant", "tool_calls": [{}]}, [[bot("x")], [user("x")]], "{nothing",
]  # fmt: skip


@pytest.mark.parametrize("name", [*CHATS, *TEXTS])
def test_a_bad_cell_drops_its_row_alone(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """Nothing but RowRejected is raised, and rows beside it give what they gave."""
    row = (CHATS.get(name) or TEXTS[name])[0]
    source = source_of(tmp_path, [row])
    data = DataSection(sources=(source,))
    form, chat = detected(source).form, ChatRenderer(tokenizer, data)
    encode = PairEncoder(tokenizer, data).encode

    def found(rows: Sequence[Row]) -> list[Any]:
        read = [SourceRow(number, values, "") for number, values in enumerate(rows)]
        pairs = pairs_of_rows(read, form, data, chat)
        return [made for _, made in used(pairs, encode, stand_alone(form, is_labelled=False))]

    (good,) = found([row])
    assert not isinstance(good, RowRejected)
    for column, bad in itertools.product((*form.needed, *form.besides), BAD_CELLS):
        first, between, last = found([row, {**row, column: bad}, row])
        assert first == last == good
        assert isinstance(between, RowRejected) or column not in form.answers or between != good


def labelled(prompts: str, labels: str) -> list[Row]:
    """A row per character: its prompt, its label (t or f), and a response of its own."""
    return [
        {"prompt": prompt, "response": f" r{number}", "label": label == "t"}
        for number, (prompt, label) in enumerate(zip(prompts, labels, strict=True))
    ]


LABELLED = labelled("abacabadbbd", "tfffttfttfx")


def by_hand(rows: Sequence[Row], is_all: bool) -> tuple[set[tuple[str, str, str]], set[int]]:
    """(prompt, chosen, rejected) of every pair, and the numbers of rows in none."""
    pairs, used = set(), set()
    for prompt in {row["prompt"] for row in rows}:
        mine = [n for n, row in enumerate(rows) if row["prompt"] == prompt]
        good = [n for n in mine if rows[n]["label"]]
        bad = [n for n in mine if not rows[n]["label"]]
        for one, other in itertools.product(good, bad) if is_all else zip(good, bad, strict=False):
            pairs.add((prompt, rows[one]["response"], rows[other]["response"]))
            used |= {one, other}
    return pairs, set(range(len(rows))) - used


@pytest.mark.parametrize("is_all", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_labelled_rows_are_paired_by_prompt(is_all: bool, parts: int, tmp_path: Path) -> None:
    """In any number of parts, each with pairs of its own."""
    source = source_of(tmp_path, LABELLED)
    pairing: Any = "all" if is_all else "best_worst"
    data = DataSection(sources=(source,), pairing=pairing)
    form = detected(source).form
    chat: Any = None
    found = []
    for part in range(parts):
        read = (row for chunk in chunks_of(source, 3) for row in read_rows(chunk))
        found += list(pairs_of_rows(read, form, data, chat, part, parts))
    pairs = [(row, pair) for row, pair in found if isinstance(pair, RawPair)]
    alone = {row.number for row, why in found if isinstance(why, RowRejected)}
    expected, unused = by_hand(LABELLED, is_all)
    assert len(pairs) == len(expected) and alone == unused
    assert {(pair.prompt, pair.chosen, str(pair.rejected)) for _, pair in pairs} == expected
    for row, pair in pairs:
        assert LABELLED[row.number]["response"] == pair.chosen, "the row of the better one"
    assert {str(why) for _, why in found if isinstance(why, RowRejected)} == {
        "no response with the other label is left for this prompt"
    }


@pytest.mark.parametrize("num_prompts", [40, 900])
def test_plan_counts_labelled_pairs(
    num_prompts: int, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Exactly where it looks at all of them, else by some prompts."""
    rng = random.Random(num_prompts)
    names = [f"p{rng.randrange(num_prompts)}" for _ in range(3 * num_prompts)]
    rows = [
        {"prompt": name, "response": f" r{n}", "label": rng.random() < 0.5}
        for n, name in enumerate(names)
    ]
    source = source_of(tmp_path, rows)
    recipe = make_recipe(
        f"data.sources=[{{path: {source.path}}}]", "data.test_fraction=0", "data.rows_per_task=99",
        evaluate={"benchmarks": []},
    )  # fmt: skip
    found = run_plan(recipe)["data"]
    pairs, unused = by_hand(rows, False)
    tolerance = 0 if num_prompts == 40 else 0.15
    assert found["pairs"]["train"] == pytest.approx(len(pairs), rel=tolerance)
    (dropped,) = found["rejected"].values()
    assert dropped == pytest.approx(len(unused), rel=tolerance)
    assert found["layouts"] == [detected(source).line]


@pytest.mark.parametrize(
    ("true", "false"), [(True, False), (1, 0), (1.0, 0.0), ("true", "false"), ("True", "0")]
)
def test_labels_may_be_numbers_or_text(true: Any, false: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completion": " a", "label": false},
        {"prompt": "p", "completion": " b", "label": true},
        {"prompt": "p", "completion": " c", "label": "maybe"},
        {"prompt": None, "completion": " c", "label": true},
    ]
    found = dict(made(source_of(tmp_path, rows)))
    assert found == {
        "rows.jsonl:2": RawPair("p", " b", " a"),
        "rows.jsonl:3": "label is neither true nor false (1 nor 0)",
        "rows.jsonl:4": "prompt is NoneType, not a string",
    }
    path = tmp_path / "f.csv"
    path.write_text(f"prompt,response,label\np, a,{false}\np, b,{true}\n")
    assert made(Source(path=str(path))) == [("f.csv:3", RawPair("p", " b", " a"))]


@pytest.mark.parametrize(
    "rows",
    [
        [
            {"prompt": ASKED, "completion": [bot("yes")], "label": False},
            {"prompt": ASKED, "completion": [bot("no")], "label": True},
        ],
        [{"messages": BAD, "label": 0}, {"messages": GOOD, "label": 1}],
        [
            {"conversations": [*SHARED, said("gpt", "yes")], "label": "false"},
            {"conversations": [*SHARED, said("gpt", "no")], "label": "true"},
        ],
        [
            {"prompt": ASKED[1:], "system": "be long", "response": "so", "label": True},
            {"prompt": ASKED[1:], "system": "be brief", "response": "yes", "label": False},
            {"prompt": ASKED[1:], "system": "be brief", "response": "no", "label": True},
        ],
    ],
)
def test_labelled_conversations_are_the_pairs_of_their_messages(
    rows: list[Row], tokenizer: Any, tmp_path: Path
) -> None:
    """A prompt with another system turn is another prompt."""
    pairs = [p for _, p in made(source_of(tmp_path, rows), tokenizer) if isinstance(p, RawPair)]
    whole = made(source_of(tmp_path, [{"chosen": GOOD, "rejected": BAD}]), tokenizer)
    assert pairs == [pair for _, pair in whole]
