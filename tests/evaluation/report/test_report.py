"""The page holds the numbers it was given, escapes text, and loads nothing from anywhere."""

import html
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from report_views import INTERVAL, own_part, view, words

from evaluation.report import RunView, render_report
from evaluation.report.charts import COLOURS
from evaluation.report.findings import findings
from evaluation.report.runs import compared, over_seeds


def figures(page: str) -> dict[str, dict[str, Any]]:
    """The records of the page's figures by name."""
    texts = re.findall(r'<script type="application/json" class="figure">(.*?)</script>', page, re.S)
    return {record["name"]: record for record in map(json.loads, texts)}


def test_page() -> None:
    page = own_part(render_report([view("one"), view("two")], "Title"))
    assert page.count("0.250 [0.125, 0.375]") >= 8
    assert "1,234" in page
    assert "<script>x</script>" not in page and "<i>asked</i>" not in page
    assert "&lt;script&gt;" in page and "&lt;i&gt;asked&lt;/i&gt;" in page
    assert 'data-hint="reward mask 1.5 | KL mask 1 | token KL 0.2 nats">&lt;b&gt;</span>' in page
    assert not re.search(r'(src|href)="https?://', page)
    assert "url(http" not in page
    data = json.loads(re.search(r'id="results">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    assert data["two"]["sentiment"]["num_prompts"] == 9
    found = figures(page)
    assert set(found) == {
        "frontier", "key-token-auc", "curve-loss", "curve-rewards-margins",
    }  # fmt: skip
    assert [s["y"] for s in found["frontier"]["series"]] == [[0.25]] * 3
    assert found["frontier"]["series"][0]["x_low"] == [0.125]
    assert found["frontier"]["y"]["title"] == "mean reward of samples (vader)"
    margins = found["curve-rewards-margins"]["series"]
    assert [(s["name"], s["faint"], s["y"]) for s in margins][2:] == [
        ("two", True, [0.1, 0.2, 0.3]),
        ("two", False, [0.1, 0.2, 0.3]),
    ]
    with pytest.raises(ValueError, match="at least one run"):
        render_report([], "x")


def test_a_run_has_one_colour_everywhere() -> None:
    """In the tables, the samples and every figure: by its place among the page's runs."""
    page = own_part(render_report([view("one"), view("two")], "Title"))
    for number, name in enumerate(("one", "two")):
        spots = re.findall(rf'<span class="run" style="--run:(#\w+)">{name}</span>', page)
        assert len(spots) >= 5 and set(spots) == {COLOURS[number]}
        drawn = {
            series["colour"]
            for figure in figures(page).values()
            for series in figure["series"]
            if series["name"] == name
        }
        assert drawn == {COLOURS[number]}


def test_the_first_lines_say_what_this_is() -> None:
    """Method, model, data, what it was judged on; and that a toy world is one."""
    shown = view("one")
    data = {"sources": [{"path": "/a/long/way/to/the/pairs.jsonl"}]}
    shown = replace(shown, recipe={**shown.recipe, "data": data})
    page = render_report([shown], "Title")
    first = words(page[page.index("<h1>") : page.index('class="card verdict"')])
    assert first.startswith(
        "Title This page shows one training run that taught a language model preferences, by "
        "sparsepo. Each starts from m and learns from 1,234 preferences of …/to/the/pairs.jsonl. "
        "What came of it was measured on 9 held-out prompts, which no training saw."
    )
    assert "toy world" not in page
    assert "This is a toy world" in words(render_report([replace(shown, is_toy=True)], "Title"))
    untrained = words(render_report([replace(shown, counts=None)], "Title"))
    assert "nothing was trained for it" in untrained and "no training saw" not in untrained


def test_contents_lead_to_what_is_there_and_to_nothing_else() -> None:
    page = own_part(render_report([view("one")], "Title"))
    contents = page[page.index("<nav") : page.index("</nav>")]
    links = re.findall(r'href="#([^"]*)"', contents)
    assert links == re.findall(r'<details class="section" id="([^"]*)"', page)
    assert links == ["run", "help", "samples", "tokens", "curves", "recipes", "words"]
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]*)"', page)) <= set(ids)


def test_warnings_and_the_mask_that_is_one_are_shown() -> None:
    """A KL-only mask colours the tokens and has the AUC bar; the reward mask, ones, does not;
    signed weights do not break the page.
    """
    shown = view("one")
    mask = {**shown.recipe["mask"], "terms": "kl"}
    response = {**shown.responses[0], "kl_mask": [-1.0, 2.0], "reward_mask": [1.0, 1.0]}
    warned = {"steps": 3, "warnings": ["step 21: the kl mask has <collapsed>"]}
    run = replace(shown, recipe={**shown.recipe, "mask": mask}, counts=warned, responses=[response])
    page = render_report([run], "Title")
    assert "one, warning: step 21: the kl mask has <collapsed>" in words(page)
    assert re.findall(r'style="--kl:([\d.]+);--token-kl', page) == ["0.0", "0.55"]
    assert [s["x"] for s in figures(page)["key-token-auc"]["series"]] == [
        ["one\nKL mask"],
        ["token KL"],
        ["random\nweights"],
    ]


def test_without_a_kl_its_mask_is_not_shown() -> None:
    """alpha 0: nothing weighs a KL, so a mask of zeros there is no finding."""
    shown = view("one")
    masks = {**shown.results["masks"], "kl_mask/zero_fraction": 0.995}
    for alpha, is_told in ((0.5, True), (0.0, False)):
        recipe = {**shown.recipe, "objective": {"name": "weighted", "beta": 0.1, "alpha": alpha}}
        run = replace(shown, recipe=recipe, results={**shown.results, "masks": masks})
        assert ("the kl mask is zero on 99.5%" in words(render_report([run], "Title"))) == is_told


def test_a_dead_mask_and_samples_far_away_are_on_the_first_lines() -> None:
    """After the title come what training warned of, 108 nats over 40 tokens, and a mask of 99.5
    % zeros; then the findings.
    """
    shown = view("one")
    sentiment = {
        **shown.results["sentiment"],
        "kl/policy_reference": {"mean": 108.0, "low": 90.0, "high": 120.0, "n": 9},
        "tokens/after": {**INTERVAL, "mean": 40.0},
    }
    masks = {**shown.results["masks"], "kl_mask/zero_fraction": 0.995}
    run = replace(
        shown,
        counts={"steps": 3, "warnings": ["step 20: runs away"]},
        results={"sentiment": sentiment, "masks": masks},
    )
    page = render_report([run], "Title")
    first = page[page.index("<h1>") : page.index('class="card verdict"')]
    lines = re.findall(r"<strong>one, warning:</strong> (.*?)</p>", first)
    assert [words(line) for line in lines] == [
        "step 20: runs away",
        "the samples are 108 nats from the reference, 2.7 per token: read some of them below "
        "before you trust their reward",
        "the kl mask is zero on 99.5% of held-out tokens: it is dead",
    ]
    assert "warning:" not in page[page.index('class="card verdict"') :]
    near = {**sentiment, "kl/policy_reference": {"mean": 79.0, "low": 70.0, "high": 85.0, "n": 9}}
    assert "warning:" not in render_report(
        [
            replace(
                run,
                counts={"steps": 3},
                results={"sentiment": near, "masks": shown.results["masks"]},
            )
        ],
        "T",
    )


def test_a_finding_is_what_its_interval_allows() -> None:
    """Above, below and around what would be no change: a mean alone decides nothing.

    Two runs differ by the second less the first.
    """
    shown = view("one")

    def found(results: dict[str, dict[str, object]]) -> str:
        return " ".join(findings(replace(shown, results=results)))

    def interval(low: float, high: float) -> dict[str, float]:
        return {"mean": (low + high) / 2, "low": low, "high": high, "n": 24}

    for low, high, change in (
        (0.1, 0.3, "rose"),
        (-0.3, -0.1, "fell"),
        (-0.1, 0.3, "did not clearly change"),
        (-0.3, 0.1, "did not clearly change"),
    ):
        sentiment = {**shown.results["sentiment"], "reward/gain": interval(low, high)}
        assert f"The reward of samples {change}: " in found({"sentiment": sentiment})
    for low, high, often, judge in (
        (0.51, 0.6, "more often than", "The judge prefers its replies to"),
        (0.4, 0.49, "less often than", "The judge does not prefer its replies to"),
        (0.45, 0.6, "about as often as", "The judge sees no clear difference between its replies"),
    ):
        rate = interval(low, high)
        assert f"{often} chance" in found({"preference": {"accuracy/implicit_reward": rate}})
        assert judge in found({"dialogue": {"win_rate/chosen": rate}})


def test_a_change_is_called_tiny_by_its_spread() -> None:
    """Rewards that vary by 1 and rise by 0.05 to 0.15: below Cohen's 0.2. Without samples the unit
    is not known, and nothing is said.
    """
    shown = view("one")
    gain = {"mean": 0.1, "low": 0.05, "high": 0.15, "n": 24}
    results = {"sentiment": {**shown.results["sentiment"], "reward/gain": gain}}
    spread = [
        {
            "prompt": str(i),
            "start_reward": float(i % 2 * 2),
            "policy_reward": float(i % 2 * 2) + 0.1,
        }
        for i in range(24)
    ]
    said = findings(replace(shown, results=results, samples=spread))[0]
    assert said.startswith("The reward of samples rose by a tiny amount: 0.250 before")
    narrow = [{**s, "policy_reward": 0.1, "start_reward": i / 100} for i, s in enumerate(spread)]
    assert " rose: " in findings(replace(shown, results=results, samples=narrow))[0]
    assert " rose: " in findings(replace(shown, results=results, samples=[]))[0]
    rate = {"mean": 0.55, "low": 0.52, "high": 0.58, "n": 24}
    (said,) = findings(replace(shown, results={"preference": {"accuracy/implicit_reward": rate}}))
    assert "more often than chance, a tiny difference: in 55.0% of pairs" in said


def test_two_runs_are_compared_on_the_first_lines() -> None:
    """The second less the first, on the prompts that both have, before anything of one run."""
    samples = [
        {
            "prompt": f"p{i}",
            "policy_reward": i / 10,
            "start_reward": 0.0,
            "kl_policy_reference": 2.0,
        }
        for i in range(20)
    ]
    better = [
        {**s, "policy_reward": s["policy_reward"] + 0.25, "kl_policy_reference": 1.0}
        for s in samples
    ]
    runs = [replace(view("one"), samples=samples), replace(view("two"), samples=better)]
    page = own_part(render_report(runs, "Title"))
    first = words(page[page.index("<h1>") : page.index("<ul>")])
    assert "two against one: more reward at 0.5 of the distance [0.5, 0.5]Better on both" in first
    assert "reward +0.250 [+0.250, +0.250], Cohen's d +0.423" in first
    assert "over 20 prompts; distance 0.500 [0.500, 0.500] times." in first


def _shown(page: str) -> str:
    """The page's text, without its tags."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_a_kl_stands_beside_its_floor_and_says_along_what() -> None:
    """Own samples with a floor; samples at another temperature; and an evaluation from before,
    which measured no floor and called every KL the policy's.
    """
    own, other, before = view("own"), view("other"), view("before")
    numbers = other.results["sentiment"]
    tempered = {key: value for key, value in numbers.items() if "policy_reference" not in key}
    tempered |= {"temperature": 0.5, "kl/policy_reference_off_policy": INTERVAL}
    old = {key: value for key, value in numbers.items() if not key.endswith(("_floor", "top_p"))}
    old |= {"temperature": 0.5, "distinct_2/before": 0.5, "distinct_2/after": 0.375}
    runs = [own, replace(other, results={"sentiment": tempered}),
            replace(before, results={"sentiment": old})]  # fmt: skip
    text = _shown(render_report(runs, "Title"))
    assert "0.250 [0.125, 0.375] floor 0.0625" in text
    along = "0.250 [0.125, 0.375] along samples at temperature 0.5, top_p 1, not the policy's own"
    assert text.count(f"{along} floor not measured") == 2
    assert text.count("along samples at temperature 0.5, top_p 1, which are not the policy's") == 2
    assert "0.5 → 0.375" in text and "0.250 [0.125, 0.375] → 0.250" in text
    assert "T=0.5" not in text, "the first temperature has the plain names"


def _seeded(name: str, method: str, seed: int, reward: float) -> RunView:
    samples = [
        {"prompt": str(i), "start_text": "", "policy_text": "", "start_reward": 0.0,
         "policy_reward": reward + i / 10} for i in range(4)
    ]  # fmt: skip
    numbers = {**view(name).results["sentiment"]}
    numbers["reward/gain"] = {**INTERVAL, "mean": reward}
    results = {"sentiment": numbers}
    return replace(view(name), method=method, seed=seed, samples=samples, results=results)


def test_methods_are_compared_over_their_seeds() -> None:
    """Gains of 0.5 and 0.7 over the same seeds: 0.6, t with one degree of freedom 12.706 times
    0.1. A seed of one method alone is named; one shared seed gives an interval over prompts.
    """
    runs = [_seeded("dpo-0", "dpo", 0, 0.0), _seeded("dpo-1", "dpo", 1, 0.1),
            _seeded("map-0", "mapo", 0, 0.5), _seeded("map-1", "mapo", 1, 0.8),
            _seeded("map-2", "mapo", 2, 9.0), _seeded("one", "tdpo", 1, 0.4),
            _seeded("far", "ipo", 7, 0.4)]  # fmt: skip
    rows = compared(runs)
    assert [row["name"] for row in rows] == ["map-0 and 2 more seeds", "one", "far"]
    over_two, over_one, over_none = rows
    assert (over_two["over"], over_two["difference"]["n"]) == ("seeds", 2)
    assert over_two["difference"]["mean"] == pytest.approx(0.6)
    assert over_two["difference"]["high"] == pytest.approx(0.6 + 1.2706205)
    assert over_two["note"] == "left out: seed 2 of map-0 and 2 more seeds alone"
    assert (over_one["over"], over_one["difference"]["n"]) == ("prompts", 4)
    assert over_one["note"].startswith("seeds were not varied: 1 alone; left out: seed 0 of dpo-0")
    assert over_none["note"] == "of dpo-0 and far alone, which share no seed"
    assert [row["seeds"] for row in over_seeds(runs)] == ["0, 1", "0, 1, 2"]
    assert over_seeds(runs)[0]["gain"]["mean"] == pytest.approx(0.05)
    text = _shown(render_report(runs, "Title"))
    assert "reward of one less that of dpo-0 and 1 more seeds" in text
    assert "over 4 prompts (seeds were not varied: 1 alone" in text
    assert "Over seeds: reward gain of dpo-0 and 1 more seeds" in text
