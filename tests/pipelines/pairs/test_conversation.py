"""A conversation is one text with one encoding, whatever tokenizer and template it meets."""

import itertools
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from chat_tokenizers import KINDS, TEMPLATES, make_tokenizer
from hypothesis import HealthCheck, given, settings, strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from pipelines.errors import UserError
from pipelines.models import chat_template
from pipelines.models.response_ends import end_of_turn
from pipelines.models.time_limit import TimeUp, time_limit
from pipelines.pairs.conversation import (
    ChatRenderer,
    Conversation,
    Encoded,
    PairEncoder,
    RawPair,
    RowRejected,
    decisions,
)
from pipelines.pairs.detection import form_of
from pipelines.pairs.forms import pairs_of_row
from pipelines.recipe.schema import ColumnNames, DataSection, Source

Row = dict[str, Any]
WORDS = st.sampled_from(
    ["boats", "yes", "no", "film", "dull", "x", "42", "  ", "\n", ".", "!", "a b", "ü"]
)
SAYINGS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join).filter(lambda text: text.strip())
quick = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LOSSY = ("word_piece",)


def data(**more: Any) -> DataSection:
    limits = {"max_prompt_tokens": 4000, "max_response_tokens": 4000}
    return DataSection(sources=(Source(path="x"),), **{**limits, **more})


def raw(
    row: Row, tokenizer: Any, form: str = "conversational", columns: Any = None, **more: Any
) -> RawPair:
    names = ColumnNames(**(columns or {}))
    chat = ChatRenderer(tokenizer, data(**more))
    (pair,) = pairs_of_row(row, form_of(form, row, names), data(**more), chat)
    return pair


def encoded(row: Row, tokenizer: Any, form: str = "conversational", **more: Any) -> Encoded:
    return PairEncoder(tokenizer, data(**more)).encode(raw(row, tokenizer, form, **more))


def reason(row: Row, tokenizer: Any, form: str = "conversational", **more: Any) -> str:
    with pytest.raises(RowRejected) as caught:
        raw(row, tokenizer, form, **more)
    return str(caught.value)


def said(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def row_of(*contents: str, other: str = "no", **more: Any) -> Row:
    """Turns of user and assistant; the last one differs in the rejected."""
    turns = [said(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    return {"chosen": turns, "rejected": [*turns[:-1], said("assistant", other)], **more}


def whole_ids(tokenizer: Any, messages: list[Row], **more: Any) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, return_dict=False, **more)
    return ids


def assert_one_encoding(found: Encoded, row: Row, tokenizer: Any, **more: Any) -> None:
    """Both sides are transformers' ids up to the turn's end; nothing but white space follows."""
    for side, response in (("chosen", found.chosen), ("rejected", found.rejected)):
        expected = whole_ids(tokenizer, row[side], **more)
        ids = [*found.prompt, *(response or ())]
        assert ids == expected[: len(ids)]
        assert not tokenizer.decode(expected[len(ids) :]).strip()


@pytest.mark.parametrize("name", ["chatml", "llama2", "llama3", "gemma", "mistral", "zephyr"])
@pytest.mark.parametrize("kind", KINDS)
@quick
@given(st.lists(SAYINGS, min_size=1, max_size=2), SAYINGS)
def test_chat_ids_are_one_encoding_of_the_whole(
    kind: str, name: str, turns: list[str], other: str
) -> None:
    """A special token is there as often as the template writes it: once for BOS and the end."""
    tokenizer = KINDS[kind](TEMPLATES[name])
    row = row_of(*[text for turn in turns for text in ("why?", turn)], other=other + " then")
    found = encoded(row, tokenizer)
    assert_one_encoding(found, row, tokenizer)
    end = end_of_turn(tokenizer)
    assert found.chosen[-1] == end and found.chosen.count(end) == 1
    has_bos = "bos_token" in TEMPLATES[name]
    assert (found.prompt + found.chosen).count(tokenizer.bos_token_id) == has_bos
    if not kind.startswith(LOSSY):
        text = tokenizer.apply_chat_template(row["chosen"], tokenize=False).rstrip("\n")
        ids = found.prompt + found.chosen
        if not kind.startswith("unigram"):  # it writes a space in front of every part
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(SAYINGS, SAYINGS, st.sampled_from(["", " ", "\n"]))
def test_text_ids_are_the_prompts_and_what_continues_them(
    kind: str, prompt: str, answer: str, between: str
) -> None:
    """The prompt's are those that sampling starts from; the whole decodes as its one encoding."""
    tokenizer = KINDS[kind]()
    encoder = PairEncoder(tokenizer, data())
    text = between + answer
    if kind.startswith("word_piece") and not (between or prompt[-1:].isspace()):
        return  # "boats" + "film" is one word there: see the test below
    found = encoder.encode(RawPair(prompt, text, text + " then"))
    bos = [tokenizer.bos_token_id] * ("bos" in kind)
    assert found.chosen[-1] == tokenizer.eos_token_id
    ids = found.prompt + found.chosen[:-1]
    assert ids[: len(bos)] == bos and ids.count(tokenizer.bos_token_id) == len(bos)

    def decoded(given: list[int]) -> str:
        return str(tokenizer.decode(given, clean_up_tokenization_spaces=False))

    whole = tokenizer(prompt + text, add_special_tokens=False).input_ids
    assert decoded(ids[len(bos) :]) == decoded(whole)
    starts = [*bos, *tokenizer(prompt, add_special_tokens=False).input_ids]
    assert found.prompt == starts[: len(found.prompt)]
    if found.straddling == 0:
        assert found.prompt == starts and ids[len(bos) :] == whole


def test_a_metaspace_response_does_not_begin_with_a_space_of_its_own() -> None:
    tokenizer = make_tokenizer("metaspace", "bos")
    found = PairEncoder(tokenizer, data()).encode(RawPair("answer:\n", "boats", "dull"))
    assert tokenizer.decode(found.prompt[1:] + found.chosen[:-1]) == "answer:\nboats"


def test_a_text_that_ends_itself_ends_once_and_one_that_has_bos_has_it_once() -> None:
    tokenizer = make_tokenizer("byte_level", "bos eos")
    found = PairEncoder(tokenizer, data()).encode(RawPair("<s>why?", " yes</s>", " no"))
    assert found.chosen.count(tokenizer.eos_token_id) == 1
    assert found.rejected is not None and found.rejected.count(tokenizer.eos_token_id) == 1
    assert found.prompt.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(("adds", "name"), [("bos", "gemma"), ("bos", None), ("", "chatml")])
def test_a_cut_prompt_keeps_its_bos(adds: str, name: str | None) -> None:
    tokenizer = make_tokenizer("byte_level", adds, TEMPLATES[name] if name else None)
    row = row_of("tell me about boats please", "yes") if name else {"prompt": "tell me about boats"}
    form = "conversational" if name else "text"
    row |= {} if name else {"chosen": " yes", "rejected": " no"}
    whole = encoded(row, tokenizer, form)
    cut = encoded(row, tokenizer, form, max_prompt_tokens=5)
    head = whole.prompt[:1] if adds else []
    assert cut.prompt == [*head, *whole.prompt[len(head) - 5 :]]
    assert (cut.prompt[0] == tokenizer.bos_token_id) == bool(adds)
    assert cut.chosen == whole.chosen


def test_turns_end_in_tokens_that_have_no_role_by_name() -> None:
    """As Gemma's, after loading; a word of the vocabulary, or white space, ends nothing."""
    tokenizer = make_tokenizer("byte_level", "bos", TEMPLATES["gemma"])
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end not in tokenizer.all_special_ids
    assert encoded(row_of("why?", "yes"), tokenizer).chosen[-1] == end
    for template in (
        TEMPLATES["chatml"].replace("<|im_end|>", " end"),
        TEMPLATES["chatml"].replace("<|im_end|>", ""),
    ):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match="ends the assistant's turn with no special token"):
            encoded(row_of("why?", "yes"), tokenizer)


def test_what_was_decided_is_written_down() -> None:
    def found(adds: str, name: str | None) -> dict[str, Any]:
        template = TEMPLATES[name] if name else None
        return decisions(make_tokenizer("metaspace", adds, template), data(), name is not None)

    assert found("bos", "zephyr") == {
        "text": {"bos": "tokenizer", "end": "</s>"},
        "chat": {"bos": "none", "end": "</s>"},
    }
    assert found("", "gemma")["chat"] == {"bos": "template", "end": "<end_of_turn>"}
    assert found("", None) == {"text": {"bos": "none", "end": "</s>"}}
    with pytest.raises(UserError, match="needs a tokenizer with a chat template"):
        decisions(make_tokenizer("metaspace"), data(), True)


def test_templates_that_open_or_strip_thinking() -> None:
    """The prompt is what both the question and the whole begin with; an answer that begins as the
    open block does is the answer's.
    """
    tokenizer = make_tokenizer("byte_level", "", TEMPLATES["thinking"])
    row = row_of("why?", "<thought> yes", other="<think>hm</think> no")
    pair, found = raw(row, tokenizer), encoded(row, tokenizer)
    assert pair.prompt == "<s>why?<|im_start|>"
    assert (pair.chosen, pair.rejected) == ("<thought> yes</s>", " no</s>")
    assert_one_encoding(found, row, tokenizer)


def spoken(found: Encoded, side: str, tokenizer: Any) -> list[str]:
    """The runs of scored tokens of a side, as text."""
    ids, places = [*found.prompt, *getattr(found, side)], scored(found, side)
    starts = [at for at in places if at - 1 not in places]
    ends = [at + 1 for at in places if at + 1 not in places]
    return [tokenizer.decode(ids[start:end]) for start, end in zip(starts, ends, strict=True)]


def test_turns_that_are_scored() -> None:
    """The last one, or each of the assistant's from where the sides part: by hand."""
    tokenizer = make_tokenizer("byte_level", "", TEMPLATES["chatml"])
    opening = row_of("hi", "hello")["chosen"]
    row = {
        "chosen": [*opening, *row_of("why?", "so", "and?", "yes")["chosen"]],
        "rejected": [*opening, *row_of("why?", "never")["chosen"]],
    }
    last, every = (encoded(row, tokenizer, scored_turns=turns) for turns in ("last", "all"))
    for found in (last, every):
        assert tokenizer.decode(found.prompt).endswith("why?<|im_end|>\n<|im_start|>assistant\n")
        assert_one_encoding(found, row, tokenizer)
        assert spoken(found, "rejected", tokenizer) == ["never<|im_end|>"]
    assert spoken(last, "chosen", tokenizer) == ["yes<|im_end|>"]
    assert spoken(every, "chosen", tokenizer) == ["so<|im_end|>", "yes<|im_end|>"]
    alone = ChatRenderer(tokenizer, data(scored_turns="all")).pair(Conversation(row["chosen"]))
    found = PairEncoder(tokenizer, data()).encode(alone)
    assert spoken(found, "chosen", tokenizer) == [f"{t}<|im_end|>" for t in ("hello", "so", "yes")]
    cut = encoded(row, tokenizer, scored_turns="all", max_response_tokens=4)
    assert spoken(cut, "chosen", tokenizer) == ["so<|im_end|>"]
    assert cut.truncated[0] == "chosen"
    assert reason_of_encoding(row, tokenizer, max_response_tokens=4) == (
        "response truncated to nothing"
    )
    marked = [{**message, "id": number} for number, message in enumerate(row["rejected"])]
    assert encoded({**row, "rejected": marked}, tokenizer) == last, "no template reads the number"
    for other in (row["chosen"][:4], [*row["chosen"][:2], said("user", "no"), *row["chosen"][3:]]):
        assert reason({**row, "rejected": other}, tokenizer) == (
            "chosen and rejected have different prompts"
        )


def reason_of_encoding(row: Row, tokenizer: Any, **more: Any) -> str:
    with pytest.raises(RowRejected) as caught:
        encoded(row, tokenizer, **more)
    return str(caught.value)


def test_a_token_across_the_border_is_scored() -> None:
    """It holds text of the answer; a prompt's token that one side alone has is not."""
    tokenizer = make_tokenizer("byte_level", "", TEMPLATES["parts"])
    found = encoded(row_of("why?", "yes boats", other="yes film"), tokenizer)
    assert tokenizer.decode(found.prompt).endswith("assistant:")
    assert spoken(found, "chosen", tokenizer) == [" yes boats<|im_end|>"]
    assert found.straddling == 2 and not (found.chosen_context or found.rejected_context)
    # "b" + "c" is one token where "b" + "d" are two; the template opens an answer with "b".
    letters = {token: at for at, token in enumerate([*"abcd", "bc", "</s>"])}
    joining = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE(letters, [("b", "c")])), eos_token="</s>"
    )
    joining.chat_template = (
        "{% for m in messages %}{{ ('b' if m.role == 'assistant' else '') + m.content + (eos_token "
        "if m.role == 'assistant' else '') }}{% endfor %}{{ 'b' if add_generation_prompt else '' }}"
    )
    found = encoded(row_of("a", "ca", other="da"), joining)
    assert joining.convert_ids_to_tokens(found.prompt) == ["a"]
    assert joining.convert_ids_to_tokens(found.chosen) == ["bc", "a", "</s>"]
    assert joining.convert_ids_to_tokens(found.rejected) == ["b", "d", "a", "</s>"]
    assert (found.chosen_context, found.rejected_context) == ((), (0, 1))


def test_bad_rows_are_rejected_and_the_rest_is_kept() -> None:
    """The template's own message; strings that no file can hold, wherever they stand."""
    tokenizer = make_tokenizer("byte_level", "bos", TEMPLATES["llama2"])
    repeated = {
        side: [said("user", "a"), said("user", "b"), said("assistant", text)]
        for side, text in (("chosen", "c"), ("rejected", "d"))
    }
    assert reason(repeated, tokenizer) == "chat template: turns must alternate"
    tokenizer.chat_template = TEMPLATES["gemma"]
    system = row_of("a", "b", system="be brief")
    assert reason(system, tokenizer) == "chat template: System role not supported"
    tokenizer.chat_template = TEMPLATES["tools"]
    lone = "nice \ud83d"
    for row in (
        row_of("a", lone),
        row_of(lone, "b"),
        row_of("a", "b", tools=[{"name": lone}]),
        row_of("a", "b", tools='[{"name": "\ud83d"}]'),
        row_of("a", "b", system=lone),
        {**row_of("a", "b"), "rejected": [said("user", "a"), said("assistant", [lone])]},
    ):
        assert "is not valid UTF-8" in reason(row, tokenizer)
    scored = {"prompt": "a", "responses": ["b", lone], "scores": [1, 0]}
    assert reason(scored, tokenizer, "scored") == "responses is not valid UTF-8"
    assert raw(row_of("a", "b"), tokenizer).chosen.startswith("b")


@pytest.mark.parametrize("score", [10**400, -(10**400), float("inf"), True, "1", None])
def test_scores_that_are_no_numbers(score: Any) -> None:
    tokenizer = make_tokenizer("byte_level", "", TEMPLATES["chatml"])
    scored = {"prompt": "a", "responses": ["b", "c"], "scores": [score, 0]}
    assert "not a finite number" in reason(scored, tokenizer, "scored")
    columns = {"chosen_score": "good", "rejected_score": "bad"}
    row = row_of("a", "b", good=score, bad=0)
    assert reason(row, tokenizer, columns=columns) == "good is not a finite number"
    weights = {"chosen_weights": "w", "rejected_weights": "w"}
    assert reason(row_of("a", "b", w=[score]), tokenizer, columns=weights).startswith("w ")


def test_a_value_that_is_nested_without_end_is_no_row() -> None:
    deep: Any = "x"
    for _ in range(3000):
        deep = [deep]
    tokenizer = make_tokenizer("byte_level", "", TEMPLATES["tools"])
    assert reason(row_of("a", "b", tools=[{"x": deep}]), tokenizer) == "a value is nested too deep"


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{% for m in messages %}", "is no template: line 1"),
        ("\n{{ messages | nosuchfilter }}", "is no template: line 2: No filter named"),
        ("{{ messages | length }}", "does not render a question and its answer"),
        (
            "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
            "takes more than 0.3 seconds for one conversation",
        ),
    ],
)
def test_a_broken_template_is_one_line(
    template: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.3)
    tokenizer = make_tokenizer("byte_level", "", template)
    with pytest.raises(UserError, match=line) as caught:
        raw(row_of("a", "b"), tokenizer)
    assert "the chat template of" in str(caught.value) and "\n" not in str(caught.value)
    assert end_of_turn(tokenizer) is None


def test_a_time_limit_reaches_what_handles_exceptions_and_ends_with_its_block() -> None:
    def stubborn() -> Iterator[int]:
        while True:
            try:
                yield sum(range(1000))
            except Exception:
                continue

    with pytest.raises(TimeUp), time_limit(0.1):
        for _ in stubborn():
            pass
    with time_limit(0.2):
        assert sum(range(10)) == 45
    assert sum(1 for _ in zip(range(20_000), stubborn(), strict=False)), "no limit any more"


CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "of a city", "parameters": CITY},
}


def call(**arguments: Any) -> Row:
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


def test_tools_calls_and_reasoning_reach_the_template() -> None:
    """As objects, as JSON text, and with the empty fields that Parquet gives every row."""
    tokenizer = make_tokenizer("byte_level", "", TEMPLATES["tools"])
    asked = [said("user", "how is it?")]
    chosen = [*asked, {"role": "assistant", "tool_calls": [call(city="Bern")]}]
    rejected = [*asked, {"role": "assistant", "tool_calls": [call(city="Rome")]}]
    row = {"chosen": chosen, "rejected": rejected, "tools": [WEATHER]}
    found = encoded(row, tokenizer)
    assert_one_encoding(found, row, tokenizer, tools=[WEATHER])
    assert tokenizer.decode(found.chosen) == '<call>weather {"city": "Bern"}</call><|im_end|>'
    assert encoded({**row, "tools": json.dumps([WEATHER])}, tokenizer) == found
    assert encoded(with_text_arguments(row), tokenizer) == found
    empty = {"role": "assistant", "content": None, "name": None}
    padded = {
        **row,
        "chosen": [
            *asked,
            {**chosen[1], **empty, "tool_calls": [{**call(city="Bern"), "id": None}]},
        ],
    }
    assert encoded(padded, tokenizer) == found
    thinking = {
        side: [*asked, said("assistant", "fine", reasoning_content=text)]
        for side, text in (("chosen", "sun"), ("rejected", "rain"))
    }
    found = encoded(thinking, tokenizer)
    assert tokenizer.decode(found.chosen) == "<think>sun</think>fine<|im_end|>"
    tokenizer.chat_template = TEMPLATES["chatml"]
    assert reason(thinking, tokenizer) == "chosen and rejected are identical"
    assert "leaves out tool_calls" in reason(row, tokenizer)
    assert reason(row_of("a", "b", tools=[WEATHER]), tokenizer) == (
        "the chat template leaves out tools ('weather')"
    )


def test_contents_are_given_as_the_template_takes_them() -> None:
    """Strings and parts are the same conversation; whatever is no text is refused by name."""

    def parts(text: str) -> list[Row]:
        return [{"type": "text", "text": text, "image": None}]

    strings = row_of("why?", "yes")
    lists = {
        side: [said(m["role"], parts(m["content"])) for m in turns]
        for side, turns in strings.items()
    }
    for name in ("parts", "chatml", "gemma"):
        tokenizer = make_tokenizer("byte_level", "", TEMPLATES[name])
        assert raw(strings, tokenizer) == raw(lists, tokenizer)
        assert "why?" in raw(lists, tokenizer).prompt
        image = [said("user", [{"type": "image", "url": "x"}]), said("assistant", "b")]
        assert reason({"chosen": image, "rejected": image}, tokenizer) == (
            "chosen holds a part of type 'image': only text is read"
        )


def test_scores_and_the_system_column_are_read_in_chat_form() -> None:
    tokenizer = make_tokenizer("byte_level", "", TEMPLATES["chatml"])
    columns = {"chosen_score": "good", "rejected_score": "bad"}
    row = row_of("why?", "yes", good=0.9, bad=0.4, system="be brief")
    pair = raw(row, tokenizer, columns=columns, min_gap=0.5)
    assert (pair.chosen_score, pair.rejected_score) == (0.9, 0.4)
    assert pair.prompt.startswith("<|im_start|>system\nbe brief<|im_end|>")
    assert reason(row, tokenizer, columns=columns, min_gap=0.6) == "score gap below min_gap"
    own = {**row, "chosen": [said("system", "other"), *row["chosen"]]}
    assert reason(own, tokenizer) == "system is not the system turn of the conversation"
    asked = row_of("why?", "yes", good=0.9, bad=0.4)
    assert raw({**asked, "system": ""}, tokenizer) == raw(asked, tokenizer)


def test_the_recipe_names_template_and_options(tmp_path: Any) -> None:
    tokenizer = make_tokenizer(
        "byte_level", "", {"default": TEMPLATES["chatml"], "g": TEMPLATES["gemma"]}
    )
    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATES["chatml"].replace("assistant\n", "{{ who }}\n"))
    row = row_of("why?", "yes")
    assert raw(row, tokenizer).prompt.startswith("<|im_start|>user")
    assert raw(row, tokenizer, chat_template="g").prompt.startswith("<s><start_of_turn>user")
    for name in ("nothing", str(tmp_path / "gone.jinja")):
        with pytest.raises(
            UserError, match="neither a file nor a template of the tokenizer: .*default, g"
        ):
            raw(row, tokenizer, chat_template=name)
    assert raw(row, make_tokenizer("byte_level"), chat_template=str(file))
    wanted = "{% if loud %}LOUD {% endif %}" + TEMPLATES["chatml"]
    file.write_text(wanted)
    loud = {"chat_template": str(file), "chat_template_kwargs": {"loud": True}}
    assert raw(row, tokenizer, **loud).prompt.startswith("LOUD <|im_start|>")


SHIPPED = sorted(
    file.name.removesuffix(".jinja")
    for file in files("trl").joinpath("chat_templates").iterdir()
    if file.name.endswith(".jinja") and not file.name.endswith("_training.jinja")
)
NO_END = {"glm4moe": "ends the assistant's turn with no special token"}
CONVERSATIONS = {
    "one": row_of("why?", "yes"),
    "several": row_of("why?", "so", "really?", "yes"),
    "system": {
        side: [said("system", "be brief"), *turns] for side, turns in row_of("why?", "yes").items()
    },
    "thinking": {
        side: [said("user", "why?"), said("assistant", text, reasoning_content="hm")]
        for side, text in (("chosen", "yes"), ("rejected", "no"))
    },
    "tools": {
        **{
            side: [
                said("user", "how is it?"),
                {"role": "assistant", "tool_calls": [call(city=city)]},
            ]
            for side, city in (("chosen", "Bern"), ("rejected", "Rome"))
        },
        "tools": [WEATHER],
    },
}


CONVERSATIONS["calls"] = {side: CONVERSATIONS["tools"][side] for side in ("chosen", "rejected")}


def shipped(name: str) -> str:
    return files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")


def stand_in(name: str) -> Any:
    """A tokenizer to which all that looks like a special token in a template is one."""

    from tokenizers import AddedToken

    tokenizer = make_tokenizer("byte_level", "bos", shipped(name))
    bar = "[|\uff5c]"  # also the wide one of DeepSeek
    marks = re.findall(
        rf"<{bar}[^<>\s'\"+~{{}}]{{1,40}}{bar}>|</?[a-z_]{{2,30}}[|]?>|<\|[a-z_]+>", shipped(name)
    )
    tokens = [t for t in dict.fromkeys(marks) if t not in ("<s>", "</s>")]
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    return tokenizer


REFUSALS = ("chat template: ", "the chat template leaves out tool", "the chat template ends this")


def outcome(row: Row, tokenizer: Any, **more: Any) -> tuple[Encoded | None, str]:
    """The encoded pair, or why there is none."""
    try:
        return encoded(row, tokenizer, **more), ""
    except (UserError, RowRejected) as why:
        return None, str(why)


def with_text_arguments(row: Row) -> Row:
    found: Row = json.loads(json.dumps(row))
    for side in ("chosen", "rejected"):
        for call in found[side][-1].get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return found


def as_given(row: Row, tokenizer: Any) -> Row:
    """The row with contents of the kind that the template takes."""
    template = str(tokenizer.chat_template)
    if "tool\u2581calls\u2581begin" in template:  # DeepSeek-V3's wants a content beside calls
        sides = ("chosen", "rejected")
        row = {**row, **{s: [{"content": "", **message} for message in row[s]] for s in sides}}
    if "['arguments'] + " in template:  # and arguments as JSON text
        row = with_text_arguments(row)
    if chat_template.ChatTemplate(tokenizer).form.takes_strings:
        return row

    def parts(message: Row) -> Row:
        return {**message, "content": [{"type": "text", "text": message.get("content", "")}]}

    return {**row, **{side: list(map(parts, row[side])) for side in ("chosen", "rejected")}}


@pytest.mark.parametrize("shape", CONVERSATIONS)
@pytest.mark.parametrize("name", SHIPPED)
def test_templates_that_trl_ships_are_right_or_refused_by_name(name: str, shape: str) -> None:
    tokenizer, row = stand_in(name), CONVERSATIONS[shape]
    found, why = outcome(row, tokenizer)
    if name in NO_END:
        assert NO_END[name] in why
        return
    if found is None:
        assert shape != "one" and why.startswith(REFUSALS), why
        return
    row = as_given(row, tokenizer)
    assert_one_encoding(found, row, tokenizer, tools=row.get("tools"))
    asked = tokenizer.apply_chat_template(
        row["chosen"][:-1], tokenize=False, add_generation_prompt=True, tools=row.get("tools")
    )
    assert asked.startswith(tokenizer.decode(found.prompt))


TWINS = sorted(
    file.name.removesuffix("_training.jinja")
    for file in files("trl").joinpath("chat_templates").iterdir()
    if file.name.endswith("_training.jinja")
)


def scored(found: Encoded, side: str) -> list[int]:
    """Places of the scored tokens in a side's ids, prompt first."""
    response, context = getattr(found, side), getattr(found, f"{side}_context")
    left_out = {
        place for span in zip(context[::2], context[1::2], strict=True) for place in range(*span)
    }
    return [len(found.prompt) + at for at in range(len(response)) if at not in left_out]


PARTED = {  # also where the sides part before the last turn
    **CONVERSATIONS,
    "several": {
        side: [said("user", "why?"), said("assistant", text), *row_of("really?", "yes")["chosen"]]
        for side, text in (("chosen", "so"), ("rejected", "never"))
    },
}


@pytest.mark.parametrize("shape", PARTED)
@pytest.mark.parametrize("name", TWINS)
def test_what_is_scored_is_what_trl_marks_as_generated(name: str, shape: str) -> None:
    """Of every turn of the assistant, in the twin that marks them for training.

    The twins mark more than a model is asked for: white space after the token that ends a turn, and
    some mark the opening that add_generation_prompt writes.
    """
    tokenizer, row = stand_in(name), PARTED[shape]
    tokenizer.chat_template = shipped(f"{name}_training")
    found, why = outcome(row, tokenizer, scored_turns="all")
    if found is None:
        assert name in NO_END or why.startswith(REFUSALS), why
        return
    row = as_given(row, tokenizer)
    tools = row.get("tools")
    for side in ("chosen", "rejected"):
        marked = tokenizer.apply_chat_template(
            row[side], tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = marked["input_ids"], marked["assistant_masks"]
        whole = tokenizer.apply_chat_template(row[side], tools=tools, tokenize=False)
        spans = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        openings = []
        for number, message in enumerate(row[side]):
            if message["role"] == "assistant":
                before, asked = (
                    tokenizer.apply_chat_template(
                        row[side][:number],
                        tools=tools,
                        tokenize=False,
                        add_generation_prompt=has_opening,
                    )
                    for has_opening in (False, True)
                )
                same = (one == other for one, other in zip(asked, whole, strict=False))
                openings.append((len(before), sum(itertools.takewhile(bool, same))))
        places: list[int] = []
        for at in reversed(range(len(ids))):
            start, stop = spans.offset_mapping[at]
            ends_run = not places or places[-1] != at + 1
            is_blank = ends_run and not whole[start:stop].strip()
            if mask[at] and not is_blank and not any(b <= start and stop <= a for b, a in openings):
                places.append(at)
        if name == "diffusion_gemma" and shape in ("tools", "calls"):
            # The mark after a call opens its result: it is where the model stops, as in Gemma 4's
            # own list of end tokens.
            places.insert(0, len(ids) - 1)
        assert places[::-1] == scored(found, side)
