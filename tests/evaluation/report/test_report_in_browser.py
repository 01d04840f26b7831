"""The page in headless Chromium: values on pointing, focus and tap, frontier, comparison, width
of a telephone, no request to anywhere.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_views import INTERVAL, view

from evaluation.report import render_report

BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


def full_view(name: str, gain: float) -> Any:
    """A run with every benchmark; its samples' rewards are `gain` above the other's."""
    base = view(name)
    recipe = {**base.recipe, "evaluate": {**base.recipe["evaluate"], "judge": {"kind": "openai"}}}
    sentiment = {**base.results["sentiment"]}
    sentiment |= {f"temperature=0.5/{key}": value for key, value in sentiment.items()} | {
        "temperature=0.5/temperature": 0.5
    }
    dialogue: dict[str, Any] = {"num_prompts": 8}
    for opponent in ("chosen", "start"):
        dialogue |= {
            f"win_rate/{opponent}": {"mean": 0.75, "low": 0.6, "high": 0.9, "n": 8},
            f"extra_words/{opponent}": INTERVAL,
        }
        dialogue |= {
            f"{k}_fraction/{opponent}": v
            for k, v in (("win", 0.5), ("tie", 0.25), ("loss", 0.125), ("failed", 0.125))
        }
    summary = {
        f"{k}/{w}": INTERVAL
        for k in ("rouge1", "rouge2", "rougeL", "self_bleu")
        for w in ("before", "after", "gain")
    }
    code = {
        "num_tasks": 3,
        "num_samples": 5,
        **{f"pass@1/{w}": INTERVAL for w in ("before", "after", "gain")},
    }
    samples = [
        {
            "prompt": f"p{i} <b>",
            "start_text": "s",
            "policy_text": "word " * 30,
            "start_reward": 0.0,
            "policy_reward": i / 10 + gain,
        }
        for i in range(5)
    ]
    history = [
        {
            "step": s,
            "preference/accuracy/implicit_reward": 0.5 + s / 100,
            "sentiment/reward/after": s / 10,
            "passed": s < 4,
            "failed": "x is below 1",
        }
        for s in (2, 4)
    ]
    results = {
        **base.results,
        "sentiment": sentiment,
        "dialogue": dialogue,
        "summarization": summary,
        "code": code,
    }
    return replace(base, recipe=recipe, results=results, samples=samples, history=history)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    page = tmp_path_factory.mktemp("page") / "index.html"
    page.write_text(render_report([full_view("first", 0.0), full_view("second", 0.25)], "Two runs"))
    return f"file://{page}"


@pytest.mark.parametrize("width", [1100, 400])
def test_page_in_the_browser(browser: Any, address: str, width: int, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, (
        "nothing sticks out to the side"
    )

    hint, token = page.locator("#hint"), page.locator("[data-hint]").nth(1)
    assert not hint.is_visible()
    token.scroll_into_view_if_needed()
    token.hover()
    assert hint.inner_text().split("\n") == ["reward mask 1.5", "KL mask 1", "token KL 0.2 nats"]
    box, place = hint.bounding_box(), token.bounding_box()
    assert (
        box["x"] >= 0
        and box["x"] + box["width"] <= width
        and abs(box["y"] - place["y"] - place["height"]) < 10
    )
    page.mouse.move(0, 0)
    assert not hint.is_visible()
    page.locator("[data-hint]").nth(0).focus()
    assert hint.inner_text().startswith("reward mask 0\n")

    labels = page.locator("#frontier svg text").all_text_contents()
    assert {"first", "first, T=0.5", "second", "second, T=0.5", "starting model"} <= set(labels)
    text = page.locator("body").inner_text()
    assert "reward of second less that of first +0.250 [+0.250, +0.250] over 5 prompts" in text
    assert "The reward of samples rose: 0.250 before, 0.250 after (+0.250 [+0.125, +0.375])" in text
    assert (
        "The judge prefers its replies to the starting model's replies: win rate 0.750 [0.600, "
        "0.900]." in text
    )
    assert "step 4: a gate failed: x is below 1" in text and "step 2: a gate failed" not in text
    assert "p0 <b>" in text
    bar = page.locator(".bar").first.locator("span")
    assert bar.all_inner_texts() == ["50%", "25%", "12%", "12%"]
    assert bar.nth(0).bounding_box()["width"] > 1.5 * bar.nth(1).bounding_box()["width"]
    data = json.loads(page.locator("#results").text_content())
    assert data["second"]["dialogue"]["win_fraction/start"] == 0.5
    assert requests == [address] and not errors
    if width == 400:
        page.locator("[data-hint]").nth(1).click()
        assert hint.is_visible()
        cell = page.locator(".samples td").nth(2).bounding_box()
        assert cell["width"] > 300, "samples stand below each other on a telephone"
    page.screenshot(path=tmp_path / f"page-{width}.png", full_page=True)
    page.close()
