"""The page in headless Chromium: what a reader does with it by mouse, keyboard and finger. Nothing
asks the network, nothing is wider than a telephone.
"""

import csv
import io
import json
import re
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
    (response,) = base.responses
    responses = [
        response,
        {
            **response,
            "prompt_hash": "2",
            "prompt": "another: other question",
            "tokens": [" c", " d"],
            "kl_mask": [2.0, 0.0],
            "token_kl": [0.4, 0.0],
        },
    ]
    metrics = [
        {"step": s, "loss": 0.7 - s / 50, "rewards/margins": s / 20 + gain} for s in range(1, 21)
    ]
    return replace(
        base,
        recipe=recipe,
        results=results,
        samples=samples,
        history=history,
        responses=responses,
        metrics=metrics,
    )


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


class Visit:
    """A page that is open, with what it asked for and what went wrong."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text))
        self.page.goto(address)

    def drawn(self, name: str) -> Any:
        """A figure's element, in sight and drawn."""
        figure = self.page.locator(f"#chart-{name}")
        figure.scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#chart-{name}[data-drawn]")
        return figure

    def range_of(self, name: str, axis: str = "xaxis") -> list[float]:
        found: list[float] = self.page.evaluate(
            f"document.querySelector('#chart-{name} .plot')._fullLayout.{axis}.range"
        )
        return found

    def is_still(self, address: str) -> None:
        """Nothing was asked of anyone, and nothing went wrong."""
        asked = [url for url in self.requests if not url.startswith(("blob:", "data:"))]
        assert set(asked) == {address} and not self.errors


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    found = Visit(browser, address, viewport={"width": 1100, "height": 800})
    yield found
    found.is_still(address)
    found.context.close()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1100, "light"),
        (400, "dark"),
        pytest.param(1100, "dark", marks=pytest.mark.slow),
        pytest.param(400, "light", marks=pytest.mark.slow),
    ],
)
def test_nothing_sticks_out(browser: Any, address: str, width: int, scheme: str) -> None:
    """With every section open and every figure drawn, by day and by night; what is wider than a
    telephone scrolls in a place of its own, says so, and takes the keyboard.
    """
    size = {"width": width, "height": 800}
    visit = Visit(browser, address, viewport=size, color_scheme=scheme, has_touch=width == 400)
    page = visit.page
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    for figure in page.locator("figure.chart").all():
        figure.scroll_into_view_if_needed()
        page.wait_for_selector(f"#{figure.get_attribute('id')}[data-drawn]")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.locator(".scroll").evaluate_all(
        "all => all.map(e => [e.scrollWidth > e.clientWidth + 1, e.tabIndex === 0,"
        " e.previousElementSibling?.className === 'scroll-note'])"
    )
    assert all(is_wide == takes_keys == says_so for is_wide, takes_keys, says_so in wide)
    assert any(is_wide for is_wide, _, _ in wide) == (width == 400)
    one, other = (page.locator(".answer").nth(i).bounding_box() for i in (0, 1))
    assert (other["y"] > one["y"] + 20) == (width == 400), "below each other on a telephone"
    assert other["width"] > 300
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 380) == (scheme == "light")
    visit.is_still(address)
    visit.context.close()


def test_a_token_shows_its_values(visit: Visit) -> None:
    """On pointing, on keyboard focus; the Escape key hides them."""
    page = visit.page
    hint, token = page.locator("#hint"), page.locator("[data-hint]").nth(1)
    assert not hint.is_visible()
    token.scroll_into_view_if_needed()
    token.hover()
    assert hint.inner_text().split("\n") == ["reward mask 1.5", "KL mask 1", "token KL 0.2 nats"]
    box, place = hint.bounding_box(), token.bounding_box()
    assert 0 <= box["x"] <= box["x"] + box["width"] <= 1100
    assert abs(box["y"] - place["y"] - place["height"]) < 10
    page.mouse.move(0, 0)
    hint.wait_for(state="hidden")
    page.locator("[data-hint]").nth(0).focus()
    assert hint.inner_text().startswith("reward mask 0\n")
    page.keyboard.press("Escape")
    assert not hint.is_visible()
    page.evaluate(
        "e => window.scrollBy(0, e.getBoundingClientRect().bottom - 795)", token.element_handle()
    )
    token.focus()
    box, place = hint.bounding_box(), token.bounding_box()
    assert place["y"] > 700 and box["y"] + box["height"] <= place["y"], (
        "above, where it is in sight"
    )


def test_a_word_is_explained_by_keyboard_and_pointer(visit: Visit) -> None:
    """The explanation is what the list says, read out with the word; the pointer may enter it."""
    page, hint = visit.page, visit.page.locator("#hint")
    word = page.locator(".verdict .term", has_text="nats").first
    meaning = page.locator("#term-nats").text_content()
    assert meaning.startswith("The unit of KL")
    assert word.get_attribute("aria-describedby") == "term-nats"
    page.locator(".verdict .term").first.focus()
    for _ in range(30):
        if page.evaluate("document.activeElement.textContent") == "nats":
            break
        page.keyboard.press("Tab")
    assert hint.inner_text() == meaning
    page.keyboard.press("Escape")
    assert not hint.is_visible()
    word.blur()
    word.hover()
    assert hint.inner_text() == meaning
    hint.hover()
    page.wait_for_timeout(300)
    assert hint.is_visible(), "it can be read while the pointer is on it"
    page.mouse.move(0, 0)
    hint.wait_for(state="hidden")
    word.click()
    assert hint.is_visible() and "#" not in page.url, "a click explains and leads nowhere"


@pytest.mark.slow
def test_a_word_is_explained_by_a_tap(browser: Any, address: str) -> None:
    size = {"width": 400, "height": 800}
    visit = Visit(browser, address, viewport=size, has_touch=True, is_mobile=True)
    page, hint = visit.page, visit.page.locator("#hint")
    page.locator(".verdict .term", has_text="nats").first.tap()
    assert hint.inner_text().startswith("The unit of KL")
    box = hint.bounding_box()
    assert 0 <= box["x"] <= box["x"] + box["width"] <= 400
    page.locator("h1").tap()
    assert not hint.is_visible()
    page.locator("[data-hint]").nth(1).tap()
    assert hint.inner_text().startswith("reward mask 1.5")
    visit.is_still(address)
    visit.context.close()


@pytest.mark.slow
def test_a_name_hides_its_points(visit: Visit) -> None:
    """By mouse and by keyboard; raw values and their mean go together, the other run stays."""
    figure, page = visit.drawn("curve-loss"), visit.page
    curves = figure.locator(".scatterlayer .trace")
    assert curves.count() == 4
    name = figure.get_by_role("button", name="first", exact=True)
    name.click()
    page.wait_for_function("document.querySelectorAll('#chart-curve-loss .trace').length === 2")
    assert name.get_attribute("aria-pressed") == "false"
    figure.get_by_role("button", name="first", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#chart-curve-loss .trace').length === 4")
    assert page.evaluate("document.activeElement.textContent").strip().endswith("first")


@pytest.mark.slow
def test_a_figure_is_zoomed_and_comes_back(visit: Visit) -> None:
    """Drag over a part; hide a run, which keeps it; double click."""
    figure, page = visit.drawn("curve-rewards-margins"), visit.page
    whole = visit.range_of("curve-rewards-margins")
    box = figure.locator(".nsewdrag").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.25, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, middle, steps=5)
    page.mouse.up()
    low, high = zoomed = visit.range_of("curve-rewards-margins")
    assert high - low == pytest.approx((whole[1] - whole[0]) / 2, rel=0.05)
    figure.get_by_role("button", name="second").click()
    assert visit.range_of("curve-rewards-margins") == zoomed
    page.mouse.dblclick(box["x"] + box["width"] / 2, middle)
    page.wait_for_function(
        "document.querySelector('#chart-curve-rewards-margins .plot')._fullLayout.xaxis.range[0]"
        f" < {low} - 0.01"
    )
    assert visit.range_of("curve-rewards-margins") == pytest.approx(whole, abs=0.1)


@pytest.mark.slow
def test_a_point_says_what_it_is(visit: Visit) -> None:
    figure, page = visit.drawn("frontier"), visit.page
    cold = "T=0.5 (other samples)"  # than the policy's own
    assert {"first", f"first, {cold}", "second", f"second, {cold}", "starting model"} == {
        text.split(" ", 1)[1] for text in figure.locator(".legend button").all_inner_texts()
    }
    box = figure.locator(".point").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown = figure.locator(".hovertext").first.text_content()
    assert shown.startswith("starting model") and "0.25 [0.125, 0.375]" in shown


@pytest.mark.slow
def test_files_to_save(visit: Visit, tmp_path: Path) -> None:
    """Out of the page alone: nothing lies beside it here. A figure comes without the night."""
    page, held = visit.page, {}
    for name in ("results.json", "numbers.csv"):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        assert download.value.suggested_filename == name
        held[name] = Path(download.value.path()).read_text()
    results = json.loads(held["results.json"])
    assert results["second"]["dialogue"]["win_fraction/start"] == 0.5
    rows = {tuple(row[:4]): row[4:] for row in csv.reader(io.StringIO(held["numbers.csv"]))}
    assert rows["first", "", "sentiment", "reward/gain"] == ["0.25", "0.125", "0.375", "24"]
    figure = visit.drawn("frontier")
    for form, begins in (("PNG", b"\x89PNG"), ("SVG", b"<svg"), ("CSV", b"series,x,")):
        label = "save the numbers as CSV" if form == "CSV" else f"save as {form}"
        with page.expect_download() as download:
            figure.get_by_role("button", name=label).click()
        assert download.value.suggested_filename == f"frontier.{form.lower()}"
        content = Path(download.value.path()).read_bytes()
        assert content.startswith(begins)
        if form == "SVG":
            assert b"starting model" in content and b"KL(policy || reference)" in content
        if form == "CSV":
            table = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
            assert (table[0]["series"], table[0]["y_low"]) == ("first", "0.125")


@pytest.mark.slow
def test_search_among_tokens(visit: Visit) -> None:
    """Tokens that have the text are marked, prompts without it hidden; nothing typed shows all."""
    page = visit.page
    field, items = page.get_by_label("Find a token or a prompt"), page.locator("#tokens .searched")
    assert items.count() == 4
    field.fill("<B>")
    assert page.locator(".found").inner_text() == "2 tokens, 2 prompts"
    assert [item.is_visible() for item in items.all()] == [True, False, True, False]
    assert page.locator(".token.hit").all_inner_texts() == ["<b>", "<b>"]
    field.fill("other question")
    assert [item.is_visible() for item in items.all()] == [False, True, False, True]
    field.fill("")
    assert all(item.is_visible() for item in items.all())
    assert page.locator(".token.hit").count() == 0


@pytest.mark.slow
def test_tokens_are_coloured_by_either_mask(visit: Visit) -> None:
    """The second token weighs 1.5 of at most 1.5 in the reward, 1 of at most 2 in the KL."""
    page = visit.page
    token = page.locator(".token").nth(1)

    def strength() -> float:
        colour = token.evaluate("e => getComputedStyle(e).backgroundColor")
        return float(re.findall(r"[\d.]+", colour)[3])

    assert strength() == pytest.approx(0.55, abs=0.01)
    assert page.locator(".scale").first.inner_text().split() == ["0", "1.5"]
    page.locator(".scales").get_by_label("KL mask").first.check()
    assert strength() == pytest.approx(0.275, abs=0.01)
    shown = [
        scale.inner_text().split() for scale in page.locator(".scale").all() if scale.is_visible()
    ]
    assert shown[0] == ["0", "2"]
    page.locator(".scales").get_by_label("token KL").first.check()
    assert strength() == pytest.approx(0.55 * 0.2 / 0.4, abs=0.01)


@pytest.mark.slow
def test_a_link_opens_its_section(visit: Visit, browser: Any, address: str) -> None:
    """From the contents, and in the address; a word's meaning lies in a closed section, too."""
    page, words = visit.page, visit.page.locator("details#words")
    assert words.get_attribute("open") is None
    page.locator(".contents a", has_text="What the words mean").click()
    page.wait_for_function("document.getElementById('words').open")
    there = Visit(browser, f"{address}#term-auc")
    assert there.page.locator("#term-auc").is_visible()
    there.context.close()


def test_what_the_page_says(visit: Visit) -> None:
    text = visit.page.locator("body").inner_text()
    assert "second against first: too few prompts for a verdict: 5 in common" in text
    assert "The reward of samples rose: 0.250 before, 0.250 after (+0.250 [+0.125, +0.375])" in text
    assert (
        "The judge prefers its replies to the starting model's replies: win rate 0.750 [0.600, "
        "0.900]." in text
    )
    assert "step 4: a gate failed: x is below 1" in text and "step 2: a gate failed" not in text
    assert "p0 <b>" in text
    sample = visit.page.locator(".sample").first
    answers = sample.locator(".answer").all_inner_texts()
    assert [text.split()[0] for text in answers] == ["before", "first", "second"]
    assert sample.locator("ins").all_inner_texts()[0].startswith("word word")
    bar = visit.page.locator(".bar").first.locator("span")
    assert bar.all_inner_texts() == ["50%", "25%", "12%", "12%"]
    assert bar.nth(0).bounding_box()["width"] > 1.5 * bar.nth(1).bounding_box()["width"]


def test_without_scripts_the_page_is_there(browser: Any, address: str) -> None:
    """Texts, tables, tokens and meanings; each figure says where its numbers are."""
    visit = Visit(browser, address, java_script_enabled=False)
    text = visit.page.locator("body").inner_text()
    assert "This figure is drawn by a script" in text and "Its numbers are in curves.csv" in text
    assert "The reward of samples rose" in text
    visit.page.locator(".verdict .term", has_text="nats").first.click()
    assert visit.page.url.endswith("#term-nats")
    visit.context.close()
