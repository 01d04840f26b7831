"""Every form a row can have, and every reason to drop one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.models.loading import load_tokenizer
from pipelines.pairs.conversation import ChatRenderer, PairEncoder, RawPair, RowRejected
from pipelines.pairs.detection import form_of
from pipelines.pairs.forms import pairs_of_row
from pipelines.pairs.sources import chunks_of, read_chunk
from pipelines.recipe.schema import ColumnNames, DataSection, Source

NAMES = ColumnNames()
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}{% if "
    "add_generation_prompt %}<s>assistant: {% endif %}"
)


def data(**settings: Any) -> DataSection:
    return DataSection(sources=(Source(path="x"),), **settings)


@pytest.fixture
def tokenizer(model_dir: Path) -> Any:
    import copy

    return copy.deepcopy(load_tokenizer(str(model_dir)))


def pairs(row: dict[str, Any], form: str, tokenizer: Any = None, **settings: Any) -> list[RawPair]:
    chat = ChatRenderer(tokenizer, data(**settings))
    return list(pairs_of_row(row, form_of(form, row), data(**settings), chat))


def reason(row: dict[str, Any], form: str, tokenizer: Any = None, **settings: Any) -> str:
    with pytest.raises(RowRejected) as caught:
        pairs(row, form, tokenizer, **settings)
    return str(caught.value)


def test_text_rows_and_why_they_are_dropped() -> None:
    assert pairs({"prompt": "a", "chosen": " b", "rejected": " c"}, "text") == [
        RawPair("a", " b", " c")
    ]
    assert reason({"prompt": "a", "chosen": " ", "rejected": "c"}, "text") == "empty response"
    assert reason({"prompt": " ", "chosen": "b", "rejected": "c"}, "text") == "empty prompt"
    assert (
        reason({"prompt": "a", "chosen": "b", "rejected": "b"}, "text")
        == "chosen and rejected are identical"
    )
    assert (
        reason({"prompt": "a", "chosen": 3, "rejected": "b"}, "text")
        == "chosen is int, not a string"
    )
    assert (
        reason({"prompt": "a", "chosen": None, "rejected": "b"}, "text")
        == "chosen is NoneType, not a string"
    )
    assert (
        reason({"prompt": b"\xff", "chosen": "x", "rejected": "b"}, "text")
        == "prompt is not valid UTF-8"
    )
    assert (
        reason({"prompt": "\ud800", "chosen": "x", "rejected": "b"}, "text")
        == "prompt is not valid UTF-8"
    )


def test_hh_transcripts_split_at_the_last_assistant_turn() -> None:
    head = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"
    assert pairs({"chosen": head + " because", "rejected": head + " no"}, "hh") == [
        RawPair(head, " because", " no")
    ]
    assert (
        reason({"chosen": head + " x", "rejected": "\n\nHuman: b\n\nAssistant: y"}, "hh")
        == "chosen and rejected have different prompts"
    )
    assert (
        reason({"chosen": "no turns", "rejected": head}, "hh")
        == "no assistant turn in the transcript"
    )


def test_scored_candidates_become_pairs_with_a_margin() -> None:
    row = {"prompt": "p", "responses": [" a", " b", " c"], "scores": [0.1, 0.9, 0.5]}
    assert pairs(row, "scored") == [RawPair("p", " b", " a", 0.9, 0.1)]
    assert [(p.chosen, p.rejected) for p in pairs(row, "scored", pairing="all", min_gap=0.4)] == [
        (" b", " c"),
        (" b", " a"),
        (" c", " a"),
    ]
    assert reason({**row, "scores": [0.5, 0.5, 0.5]}, "scored") == "score gap below min_gap"
    assert (
        reason({**row, "scores": [0.1, 0.2]}, "scored")
        == "responses and scores must be lists of one length"
    )
    assert (
        reason({**row, "scores": [0.1, float("nan"), 1]}, "scored")
        == "scores holds something that is not a finite number"
    )


def test_conversations_follow_the_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    row = {
        "prompt": [{"role": "user", "content": "why ?"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
    (pair,) = pairs(row, "conversational", tokenizer)
    assert pair.prompt == "<s>user: why ?</s>\n<s>assistant: "
    assert pair.chosen == "good</s>\n"
    implicit = {side: [*row["prompt"], *row[side]] for side in ("chosen", "rejected")}
    assert pairs(implicit, "conversational", tokenizer) == [pair]
    encoded = PairEncoder(tokenizer, data()).encode(pair)
    assert tokenizer.decode(encoded.prompt + encoded.chosen) == f"{pair.prompt}good</s>", (
        "no second BOS, up to and including the end-of-turn token, nothing after it"
    )
    assert tokenizer.decode(encoded.prompt) == pair.prompt.rstrip()
    assert tokenizer.decode(encoded.chosen) == " good</s>", "one token as in the whole"
    assert encoded.straddling == 2, "of both sides"
    assert encoded.chosen.count(tokenizer.eos_token_id) == 1
    assert "not a list of messages" in reason({**row, "chosen": ["x"]}, "conversational", tokenizer)


def turns(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """Messages of user and assistant in turn, after a system turn if there is one."""
    first = [{"role": "system", "content": system}] if system else []
    return first + [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]


def test_whole_conversations_beside_a_prompt_say_it_once(tokenizer: Any) -> None:
    """UltraFeedback binarized: `prompt` a string, both sides the conversation that begins with it.

    The reference is what no prompt gives.
    """
    tokenizer.chat_template = TEMPLATE
    for sides in (
        {"chosen": turns("why ?", "good"), "rejected": turns("why ?", "bad")},
        {
            "chosen": turns("why ?", "so", "really ?", "good"),
            "rejected": turns("why ?", "so", "really ?", "bad"),
        },
    ):
        (alone,) = pairs(sides, "conversational", tokenizer)
        assert alone.prompt.count("why ?") == 1
        prompts: list[Any] = [
            "why ?",
            " why ?\n",
            turns("why ?"),
            [{"role": "user", "content": "why ?", "name": "x"}],
            [],
        ]
        if len(sides["chosen"]) == 4:
            prompts.append(turns("why ?", "so", "really ?"))
        for prompt in prompts:
            assert pairs({"prompt": prompt, **sides}, "conversational", tokenizer) == [alone], (
                prompt
            )
    system = {
        side: turns("why ?", answer, system="be brief")
        for side, answer in (("chosen", "good"), ("rejected", "bad"))
    }
    (alone,) = pairs(system, "conversational", tokenizer)
    assert pairs(
        {"prompt": turns("why ?", system="be brief"), **system}, "conversational", tokenizer
    ) == [alone]
    added = {side: messages[1:] for side, messages in system.items()}
    assert pairs({"prompt": [system["chosen"][0]], **added}, "conversational", tokenizer) == [
        alone
    ], "after a system turn comes the user's"
    mixed = {"prompt": "why ?", "chosen": turns("why ?", "good"), "rejected": turns("", "bad")[1:]}
    assert len(pairs(mixed, "conversational", tokenizer)) == 1, "each side by itself"


@pytest.mark.parametrize(
    ("prompt", "chosen", "why"),
    [
        (
            "why ?",
            turns("why ?", "a", system="s"),
            "chosen is a whole conversation with a system turn that prompt lacks",
        ),
        (
            turns("why ?"),
            turns("why ?", "a", system="s"),
            "chosen is a whole conversation with a system turn that prompt lacks",
        ),
        (
            "how ?",
            turns("why ?", "a"),
            "chosen is a whole conversation that does not begin with prompt",
        ),
        (
            "really ?",
            turns("why ?", "so", "really ?", "a"),
            "chosen is a whole conversation that does not begin with prompt",
        ),
        (
            turns("why ?", system="other"),
            turns("why ?", "a", system="s"),
            "chosen is a whole conversation that does not begin with prompt",
        ),
        (
            turns("why ?", system="s"),
            turns("why ?", "a"),
            "chosen is a whole conversation that does not begin with prompt",
        ),
        ("why ?", turns("why ?"), "chosen is a whole conversation that does not begin with prompt"),
    ],
)
def test_conversations_that_contradict_their_prompt_are_dropped(
    tokenizer: Any, prompt: Any, chosen: Any, why: str
) -> None:
    tokenizer.chat_template = TEMPLATE
    rejected = [*chosen[:-1], {"role": "assistant", "content": "bad"}]
    assert reason(
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}, "conversational", tokenizer
    ).startswith(why)


def test_transcripts_beside_their_prompt_are_dropped() -> None:
    """The same layout in text: the prompt would stand there twice.

    A response that happens to repeat a prompt without turns is none.
    """
    head = "\n\nHuman: hi\n\nAssistant:"
    why = (
        "the response is a whole transcript that repeats the prompt (form hh takes transcripts "
        "apart)"
    )
    assert reason({"prompt": head, "chosen": head + " a", "rejected": head + " b"}, "text") == why
    assert reason({"prompt": head, "chosen": head + " a"}, "chosen_only") == why
    assert (
        reason(
            {"prompt": head, "responses": [head + " a", head + " b"], "scores": [1, 0]}, "scored"
        )
        == why
    )
    assert pairs(
        {"prompt": "def f():", "chosen": "def f(): return", "rejected": "def f(): pass"}, "text"
    )


def test_templates_that_hide_the_prompt_are_refused_by_name(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    row = {
        "prompt": "q",
        "chosen": {"role": "assistant", "content": "a"},
        "rejected": {"role": "assistant", "content": "b"},
    }
    with pytest.raises(UserError, match="does not render a prompt as a prefix"):
        pairs(row, "conversational", tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="chat template"):
        pairs(row, "conversational", tokenizer)


def test_encoding_ends_with_one_eos_and_truncated_with_none(tokenizer: Any) -> None:
    pair = RawPair("The plot was good .", " I loved the cast and the score .", " bad")
    whole = PairEncoder(tokenizer, data()).encode(pair)
    assert whole.prompt[0] == tokenizer.bos_token_id
    assert whole.prompt.count(tokenizer.bos_token_id) == 1
    assert whole.chosen[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(whole.prompt[1:] + whole.chosen[:-1]) == pair.prompt + pair.chosen
    cut = PairEncoder(tokenizer, data(max_response_tokens=4, max_prompt_tokens=3)).encode(pair)
    assert cut.chosen == whole.chosen[:4]
    assert tokenizer.eos_token_id not in cut.chosen
    assert cut.prompt == [whole.prompt[0], *whole.prompt[-2:]], "BOS stays"
    assert cut.truncated == ("prompt", "chosen")
    assert (
        PairEncoder(tokenizer, data(max_prompt_tokens=3, prompt_overflow="keep_start"))
        .encode(pair)
        .prompt
        == whole.prompt[:3]
    )
    for settings, why in (
        (
            {"max_prompt_tokens": 3, "prompt_overflow": "drop"},
            "prompt longer than max_prompt_tokens",
        ),
        (
            {"max_response_tokens": 4, "response_overflow": "drop"},
            "response longer than max_response_tokens",
        ),
        ({"max_tokens": len(whole.prompt)}, "response truncated to nothing"),
    ):
        with pytest.raises(RowRejected, match=why):
            PairEncoder(tokenizer, data(**settings)).encode(pair)
    same_start = RawPair("x", " good good good one", " good good good two")
    with pytest.raises(RowRejected, match="identical after truncation"):
        PairEncoder(tokenizer, data(max_response_tokens=2)).encode(same_start)


def test_weights_are_cut_with_their_response(tokenizer: Any) -> None:
    """The end token's weight may be left out, and is 1; other numbers of weights do not fit."""
    pair = RawPair("The plot was good .", " I loved the cast and the score .", " bad cast")
    whole = PairEncoder(tokenizer, data()).encode(pair)
    given, short = [0.5 + i for i in range(len(whole.chosen))], [0.5] * (len(whole.rejected) - 1)
    weighted = replace(pair, chosen_weights=given, rejected_weights=short)
    found = PairEncoder(tokenizer, data()).encode(weighted)
    assert (found.chosen_weights, found.rejected_weights) == (given, [*short, 1.0])
    cut = PairEncoder(tokenizer, data(max_response_tokens=2)).encode(weighted)
    assert (cut.chosen, cut.chosen_weights) == (whole.chosen[:2], given[:2])
    assert (cut.rejected, cut.rejected_weights) == (whole.rejected[:2], [*short, 1.0][:2])
    with pytest.raises(RowRejected, match="token weights for a response of"):
        PairEncoder(tokenizer, data()).encode(replace(weighted, chosen_weights=[*given, 1.0]))


def test_a_tokenizer_without_bos_or_pad_works(tokenizer: Any) -> None:
    """Neither token is needed: nothing is prepended, and padding is never a token of its own."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.bos_token = None
    assert tokenizer.pad_token_id is None
    encoded = PairEncoder(tokenizer, data()).encode(RawPair("good", " x", " y"))
    assert tokenizer.decode(encoded.prompt) == "good"
    text = PairEncoder(tokenizer, data()).encode(RawPair("", "good cast .", None))
    assert len(text.prompt) == 1, (
        "without BOS the first token of bare text has nothing to be predicted from"
    )


def test_local_data_sets_load_through_the_hub_library(tmp_path: Path) -> None:
    """A directory in the hub's layout goes through datasets.load_dataset, the code path of a hub
    name.
    """
    folder = tmp_path / "name"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    chunks = chunks_of(Source(path=str(folder), format="huggingface"), 10)
    assert [row for chunk in chunks for _, row in read_chunk(chunk)] == [
        {"text": "one"},
        {"text": "two"},
    ]


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.jsonl.*no such file"):
        chunks_of(Source(path=str(tmp_path / "missing.jsonl")), 10)
