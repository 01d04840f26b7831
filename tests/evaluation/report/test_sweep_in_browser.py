"""The sweep's page in headless Chromium: what a point says, where it leads, both widths."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_sweep_report import KL, REWARD, view

from evaluation.equal_distance import Measured, compare_at
from evaluation.report.sweep import render_sweep

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a page with its files beside it, as `tune` leaves them."""
    root = tmp_path_factory.mktemp("sweep")
    shown = view([(REWARD, "max"), (KL, "min")], "recipe")
    trials = []
    for trial in shown.trials:
        folder = f"trials/{trial.number:04d}-ab"
        (root / folder).mkdir(parents=True)
        (root / folder / "config.yaml").write_text(f"trial: {trial.number}\n")
        trials.append(replace(trial, folder=folder, runs=[folder]))
    (root / "best.yaml").write_text("trial: 1\n")
    measured = {
        name: [Measured(t.metrics[KL], t.metrics[REWARD]) for t in found]
        for name, found in shown.series()
    }
    levels = compare_at(measured, [6.5, 8.0])
    (root / "report").mkdir()
    page = root / "report" / "index.html"
    page.write_text(render_sweep(replace(shown, trials=trials, levels=levels, has_files=True)))
    return f"file://{page}"


@pytest.fixture(params=[1280, 400])
def page(chromium: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """With what it asked for and what went wrong."""
    found = chromium.new_page(viewport={"width": request.param, "height": 900})
    found.asked, found.wrong = [], []
    found.on("request", lambda asked: found.asked.append(asked.url))
    found.on("pageerror", lambda error: found.wrong.append(str(error)))
    found.goto(address)
    yield found
    found.close()


def point(page: Any, series: str, number: int) -> Any:
    """Where a point of the front's figure is on the screen, in its series's order."""
    figure = page.locator("#chart-frontier")
    figure.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#chart-frontier').dataset.drawn === 'true'")
    trace = page.evaluate(
        "(name) => document.querySelector('#chart-frontier .plot').data"
        ".findIndex((s) => s.name === name)",
        series,
    )
    drawn = figure.locator(".scatterlayer .trace").nth(trace).locator(".points path")
    box = drawn.nth(number).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_point_says_its_keys_and_leads_to_its_row(page: Any) -> None:
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    place = point(page, "two", 1)
    page.mouse.move(*place)
    hover = page.locator("#chart-frontier .hoverlayer .hovertext")
    hover.wait_for()
    text = re.sub(r"\s+", " ", " ".join(hover.first.locator("tspan").all_text_contents()))
    for part in ("trial 3", "recipe = two", "objective.beta = 0.1", "reward/after 0.3", "7"):
        assert part in text, part
    page.mouse.click(*place)
    page.wait_for_url("**#trial-3")
    row = page.locator("#trial-3")
    assert row.inner_text().startswith("3\n") or row.inner_text().startswith("3 ")
    labels = page.locator("#chart-frontier .textpoint text").all_text_contents()
    assert sorted(labels) == ["0.1", "0.1", "0.5", "0.5", "2"]
    assert page.wrong == [] and all(url.startswith("file:") for url in page.asked)


def test_links_lead_to_trials_and_to_the_best_recipe(page: Any, address: str) -> None:
    for link, expected in (
        (page.get_by_role("link", name="best.yaml"), "trial: 1\n"),
        (page.locator("#trial-4").get_by_role("link", name="recipe"), "trial: 4\n"),
    ):
        target = link.evaluate("(a) => a.href")
        assert Path(target.removeprefix("file://")).read_text() == expected
    folder = page.locator("#trial-2 a").first.evaluate("(a) => a.href")
    assert Path(folder.removeprefix("file://")).is_dir()
    page.get_by_role("link", name="trial 1", exact=True).click()
    page.wait_for_url(f"{address}#trial-1")
    assert "best.yaml" in page.locator("#trial-1").inner_text()
    table = page.get_by_role("region", name="At equal distance").inner_text()
    assert "not reached" in table and "0.500" in table
