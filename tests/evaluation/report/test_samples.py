"""Samples side by side, tokens and terms: what is marked, in which order, by which scale."""

import re
from dataclasses import replace
from typing import Any

import pytest
from report_views import view

from evaluation.report.samples import marked, samples_by_prompt
from evaluation.report.terms import TERMS, explained, term_id
from evaluation.report.tokens import token_view


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("the film was bad", "the film was good", "the film was <ins>good</ins>"),
        ("a b c", "a b c", "a b c"),
        ("a c", "a b c", "a <ins>b</ins> c"),
        ("a b c", "a c", "a c"),
        ("", "all new", "<ins>all new</ins>"),
        ("gone", "", ""),
        ("x", "  <b>\n& x ", "  <ins>&lt;b&gt;\n&amp;</ins> x "),
        ("a\nb", "a  b", "a  b"),
    ],
)
def test_words_that_are_new_are_marked(before: str, after: str, shown: str) -> None:
    """White space parts words and stays as it is; it is no difference by itself."""
    found = str(marked(before, after))
    assert found == shown
    plain = re.sub("</?ins>", "", found)
    assert plain == after.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def test_a_long_text_is_shown_whole() -> None:
    after = " ".join(f"w{i}" for i in range(2000))
    assert re.sub("</?ins>", "", marked("w0", after)) == after


def sample(prompt: str, reward: float | None, start: str = "s", **more: Any) -> dict[str, Any]:
    rewards = {} if reward is None else {"start_reward": 0.0, "policy_reward": reward}
    return {"prompt": prompt, "start_text": start, "policy_text": "p", **rewards, **more}


def test_prompts_are_grouped_and_none_is_repeated() -> None:
    """By hand: twelve prompts of two runs. The first four come as they are; then those where the
    rewards of both differ most (by 0.9, 0.8, ...), then gains and losses of what is left.
    """
    one = [sample(f"p{i}", 0.5) for i in range(12)]
    gaps = [0, 0, 0, 0, 0.6, 0.9, 0.8, 0.7, -2.0, 0.1, 0, 0.2]
    two = [sample(f"p{i}", 0.5 + gap) for i, gap in enumerate(gaps)]
    runs = [replace(view("one"), samples=one), replace(view("two"), samples=two[::-1])]
    groups = samples_by_prompt(runs)
    assert {name: [s.prompt for s in shown] for name, shown in groups.items()} == {
        "as they come": ["p0", "p1", "p2", "p3"],
        "where the runs differ most": ["p8", "p5", "p6", "p7"],
        "largest gains": ["p4", "p11", "p9", "p10"],
    }
    first = groups["as they come"][0]
    assert [(a.run, a.before, a.after) for a in first.answers] == [
        ("one", 0.0, 0.5),
        ("two", 0.0, 0.5),
    ]
    assert first.starts == [(["one", "two"], "s")]


def test_runs_with_other_starts_show_each() -> None:
    """And a run that was not given a prompt is left out there; temperatures are told apart."""
    one = [sample("a", None, "old"), sample("b", None, temperature=0.5)]
    runs = [
        replace(view("one"), samples=one),
        replace(view("two"), samples=[sample("a", None, "older")]),
    ]
    first, second = samples_by_prompt(runs)["as they come"]
    assert first.starts == [(["one"], "old"), (["two"], "older")]
    assert [a.run for a in second.answers] == ["one"]
    assert (first.temperature, second.temperature) == (1.0, 0.5)


def test_a_model_that_is_compared_with_nothing_has_no_marks() -> None:
    shown = view("one")
    alone = {**shown.recipe, "evaluate": {**shown.recipe["evaluate"], "model": "m"}}
    run = replace(shown, recipe=alone, samples=[sample("a", 1.0, "other words")])
    (group,) = samples_by_prompt([run]).values()
    assert group[0].answers[0].text == "p"


def test_tokens_are_scaled_by_the_largest_shown() -> None:
    """Two responses of one prompt together; weights below 0 and NaN have no colour."""
    shown = view("one")
    response = {**shown.responses[0], "kl_mask": [-1.0, float("nan")], "token_kl": [0.0, 0.0]}
    other = {**response, "side": "rejected", "reward_mask": [3.0, 0.75]}
    view_of = token_view(replace(shown, responses=[response, other]))
    assert view_of is not None
    assert [(s.key, s.top) for s in view_of.scales] == [
        ("reward", 3.0),
        ("kl", 0.0),
        ("token-kl", 0.0),
    ]
    ((prompt, both),) = view_of.prompts
    assert prompt == "<i>asked</i>" and [r["side"] for r in both] == ["chosen", "rejected"]
    styles = [token["style"] for r in both for token in r["tokens"]]
    assert [re.findall(r"--reward:([\d.]+)", style)[0] for style in styles] == [
        "0.0", "0.275", "0.55", "0.138",
    ]  # fmt: skip
    assert all("--kl:0.0;--token-kl:0.0" in style for style in styles)


def test_masks_that_are_one_have_one_scale_and_no_mask_has_none() -> None:
    shown = view("one")
    same = {**shown.responses[0], "kl_mask": shown.responses[0]["reward_mask"]}
    found = token_view(replace(shown, responses=[same]))
    assert found is not None and [s.label for s in found.scales] == [
        "reward and KL mask",
        "token KL",
    ]
    plain = replace(shown, recipe={**shown.recipe, "mask": {"kind": "none"}})
    found = token_view(plain)
    assert found is not None and [s.key for s in found.scales] == ["token-kl"]
    assert token_view(replace(shown, responses=[])) is None


def test_terms_are_found_as_words_and_explained_once() -> None:
    """The longest spelling wins; parts of words are no terms; what is not a term is escaped."""
    text = "<i> KL(policy || reference), distance, AUC & implicit reward; signats nats-like AUC"
    found = str(explained(text))
    assert re.findall(r'href="#([^"]*)"[^>]*>([^<]*)<', found) == [
        ("term-distance", "KL(policy || reference)"),
        ("term-auc", "AUC"),
        ("term-implicit-reward", "implicit reward"),
    ]
    assert re.sub("</?a[^>]*>", "", found) == text.replace("&", "&amp;").replace(
        "<", "&lt;"
    ).replace(">", "&gt;")
    assert len({term_id(name) for name in TERMS}) == len(TERMS)
