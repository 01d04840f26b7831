"""The page holds the numbers it was given, escapes text, and loads nothing from anywhere."""

import json
import re
from dataclasses import replace

import pytest
from report_views import INTERVAL, view

from evaluation.report import render_report
from evaluation.report.page import _verdict


def test_page() -> None:
    page = render_report([view("one"), view("two")], "Title")
    assert page.count("0.250 [0.125, 0.375]") >= 8
    assert "1,234" in page
    assert "<script>x</script>" not in page
    assert "&lt;script&gt;" in page
    assert 'data-hint="reward mask 1.5 | KL mask 1 | token KL 0.2 nats">&lt;b&gt;</span>' in page
    assert not re.search(r'(src|href)="https?://', page)
    assert "url(http" not in page
    data = json.loads(re.search(r'id="results">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    assert data["two"]["sentiment"]["num_prompts"] == 9
    assert page.count("<svg") == 4, "frontier, AUC, loss, margins"
    with pytest.raises(ValueError, match="at least one run"):
        render_report([], "x")


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
    assert "warning:</strong> step 21: the kl mask has &lt;collapsed&gt;" in page
    assert re.findall(r"rgba\([^)]*,\s*([\d.]+)\)", page)[-2:] == ["0.0", "0.85"]
    assert (
        "KL mask" in page[: page.index("random")]
        and "reward mask" not in page[page.index("Do the weights") : page.index("random")]
    )


def test_without_a_kl_its_mask_is_not_shown() -> None:
    """alpha 0: nothing weighs a KL, so a mask of zeros there is no finding."""
    shown = view("one")
    masks = {**shown.results["masks"], "kl_mask/zero_fraction": 0.995}
    for alpha, is_told in ((0.5, True), (0.0, False)):
        recipe = {**shown.recipe, "objective": {"name": "weighted", "beta": 0.1, "alpha": alpha}}
        run = replace(shown, recipe=recipe, results={**shown.results, "masks": masks})
        assert ("the kl mask is zero on 99.5%" in render_report([run], "Title")) == is_told


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
    assert re.findall(r"<strong>one, warning:</strong> (.*?)</p>", first) == [
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
        return " ".join(_verdict(replace(shown, results=results)))

    def interval(low: float, high: float) -> dict[str, float]:
        return {"mean": (low + high) / 2, "low": low, "high": high, "n": 9}

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
    better = [{**sample, "policy_reward": 0.75} for sample in shown.samples]
    page = render_report([shown, replace(view("two"), samples=better)], "Title")
    assert "reward of two less that of one +0.250 [+0.250, +0.250] over 1 prompts" in page
