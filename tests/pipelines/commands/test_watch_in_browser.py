"""`sparsepo watch` as a process, its pages in headless Chromium: while a training runs, when it
stops and goes on, for a sweep; who asks what of whom.
"""

import contextlib
import os
import shutil
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from processes import started, wait_for
from runs import MakeRecipe, train_here

from pipelines.recipe.files import write_yaml
from pipelines.recipe.record import StageRecord
from pipelines.recipe.schema import Recipe
from pipelines.storage.presence import present
from pipelines.storage.store import RunStore
from pipelines.sweep.trial_record import Trial, write_trial
from pipelines.train.metrics import MetricsWriter

pytestmark = pytest.mark.slow
ONE_WARNING = {"step": 3, "kind": "warning", "messages": ["the chosen fall <b>"]}


class Watch:
    """The process and what it printed."""

    def __init__(self, process: Any, log: Path) -> None:
        self.process, self.log = process, log
        wait_for(lambda: self.said().count("\n"), 3, process, log)
        self.url = next(word for word in self.said().split() if word.startswith("http"))

    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watch]]:
    """watch(run_dir, option, ...): the command, which is there when its address is printed."""
    with contextlib.ExitStack() as processes:

        def start(run_dir: str, *options: str, **environment: str) -> Watch:
            log = tmp_path / "watch.log"
            given = {**os.environ, **environment}
            return Watch(
                processes.enter_context(started(["watch", run_dir, *options], log, given)), log
            )

        yield start


class Page:
    """A page of the browser that keeps what it asked for and what went wrong."""

    def __init__(self, chromium: Any, width: int = 1280, scheme: str = "light") -> None:
        view = {"width": width, "height": 900}
        self.page = chromium.new_page(viewport=view, color_scheme=scheme)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def text(self, place: str) -> str:
        return str(self.page.locator(place).inner_text())

    def wait(self, condition: str, argument: Any = None) -> None:
        function = condition if argument else f"() => {condition}"  # the page refuses eval
        self.page.wait_for_function(function, arg=argument, timeout=120_000)

    def curve(self, name: str) -> dict[str, list[float]]:
        """Series -> its steps, as Plotly has them."""
        found: dict[str, list[float]] = self.page.evaluate(
            f"Object.fromEntries((document.querySelector('#chart-{name} .plot').data ?? [])"
            ".map((s) => [s.name, s.x]))"
        )
        return found

    def wait_for_step(self, name: str, step: int) -> None:
        """Until the chart's first curve has come to a step."""
        self.wait(
            "([name, step]) => document.querySelector(`#chart-${name} .plot`)?.data?.[0]?.x?.at(-1)"
            " === step",
            [name, step],
        )


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Page]]:
    pages: list[Page] = []

    def make(url: str, **options: Any) -> Page:
        pages.append(Page(chromium, **options))
        pages[-1].page.goto(url)
        return pages[-1]

    yield make
    for page in pages:
        page.page.close()


def status_of(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def interrupt(found: Watch) -> None:
    """Ctrl-C."""
    found.process.send_signal(signal.SIGINT)
    assert found.process.wait(timeout=60) == 0
    assert "Traceback" not in found.said() and "error" not in found.said()


def writer(run: str, resume_step: int = 0) -> MetricsWriter:
    return MetricsWriter(RunStore(f"{run}/train"), resume_step, [], lambda: True)


def begin(root: str, stage: str, **settings: Any) -> StageRecord:
    record = StageRecord(stage, RunStore(root), settings, {})
    record.begin()
    return record


def steps(metrics: MetricsWriter, first: int, last: int) -> None:
    for step in range(first, last + 1):
        fields = {"loss": 1 / step, "rewards/margins": step / 10, "masks/reward_zero_fraction": 0.5}
        metrics.add({"step": step, **fields, "rewards/chosen": 1.0, "rewards/rejected": -1.0})
    metrics.flush()


def test_a_training_is_seen_from_before_its_start_to_its_end(
    watch: Callable[..., Watch],
    open_page: Callable[..., Page],
    scored: Recipe,
    recipe_in: MakeRecipe,
    tmp_path: Path,
) -> None:
    """A real one in this process; the page is loaded once, before there is a run."""
    run = tmp_path / "run"
    found = watch(str(run))
    page = open_page(found.url)
    page.wait("document.getElementById('headline').textContent.startsWith('Waiting')")
    page.page.evaluate("window.isTheSamePage = true")
    shutil.copytree(scored.run_dir, run)
    train_here(recipe_in(run, "objective.name=tdpo1", "train.max_steps=6"))
    page.wait_for_step("loss", 6)
    assert page.page.evaluate("window.isTheSamePage"), "nothing was loaded again"
    assert page.curve("loss") == {"training": [1, 2, 3, 4, 5, 6]}
    page.wait_for_step("kl-reference-policy", 6)
    page.wait("document.getElementById('headline').textContent.includes('not started: evaluate')")
    assert "sparsepo schedule" in page.text("#absent")
    assert "mask.kind = none" in page.text("#absent")
    assert {urlsplit(url).netloc for url in page.requests} == {urlsplit(found.url).netloc}
    assert page.errors == []

    assert status_of(found.url) == 200
    assert status_of(found.url[:-2] + "x/") == 403
    assert status_of(found.url, Host="sparsepo.example.org") == 403
    interrupt(found)
    page.wait("document.getElementById('pace').textContent.includes('has ended')")
    assert page.curve("loss")["training"][-1] == 6, "what was known stays"


def test_a_curve_grows_goes_back_and_goes_on(
    watch: Callable[..., Watch],
    open_page: Callable[..., Page],
    make_recipe: MakeRecipe,
    tmp_path: Path,
) -> None:
    """Written as a trainer does, by its own writer; what the reader zoomed to and hid stays."""
    run = str(tmp_path / "run")
    RunStore(run).write_bytes("config.yaml", write_yaml(make_recipe("train.epochs=5")).encode())
    begin(f"{run}/train", "train")
    first = writer(run)
    steps(first, 1, 10)
    first.checkpoint()
    steps(first, 11, 14)
    first.add_apart(ONE_WARNING)
    for step, loss in ((0, 0.75), (10, 0.5)):
        first.add_apart({"step": step, "kind": "validation", "validation/loss": loss})
    page = open_page(watch(run).url, width=400, scheme="dark")
    page.wait_for_step("loss", 14)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 400
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, background[4:-1].split(","))) < 80, "dark"
    assert "step 3: the chosen fall <b>" in page.text("#problems")

    assert page.curve("loss") == {"training": list(range(1, 15)), "validation": [0, 10]}
    rows = [line.split("\t") for line in page.text("#validation").splitlines()]
    assert rows == [["metric", "step 0", "step 10"], ["loss", "0.75", "0.5"]]
    chart = page.page.locator("#chart-rewards-chosen")
    chart.scroll_into_view_if_needed()
    page.wait_for_step("rewards-chosen", 14)
    chart.get_by_role("button", name="rejected").click()
    zoom = "[document.querySelector('#chart-rewards-chosen .plot').layout.xaxis.range[0]]"
    page.page.evaluate(
        "Plotly.relayout(document.querySelector('#chart-rewards-chosen .plot'),"
        "{'xaxis.range': [2, 5]})"
    )
    sizes: list[int] = []
    page.page.on("response", lambda answer: sizes.append(int(answer.headers["content-length"])))
    with present(RunStore(f"{run}/train"), stage="train"):
        steps(first, 15, 15)
        page.wait_for_step("rewards-chosen", 15)
    assert page.page.evaluate(zoom) == [2]
    hidden = page.page.evaluate(
        "document.querySelector('#chart-rewards-chosen .plot').data.map((s) => s.visible)"
    )
    assert hidden == [True, False]
    page.page.wait_for_timeout(2500)
    assert min(sizes) < 400, "without news the answer is short"

    second = writer(run, resume_step=10)  # the first was killed
    page.wait_for_step("rewards-chosen", 10)
    steps(second, 11, 12)
    page.wait_for_step("rewards-chosen", 12)
    second.close()
    assert page.errors == []


def test_a_sweep_shows_its_trials_and_leads_to_each(
    watch: Callable[..., Watch],
    open_page: Callable[..., Page],
    make_recipe: MakeRecipe,
    tmp_path: Path,
) -> None:
    root, config = str(tmp_path / "sweep"), write_yaml(make_recipe())
    begin(root, "tune", space={"objective.beta": {"grid": [0.1, 0.5]}})
    writers = []
    for name in ("0000-aa", "0001-bb"):
        RunStore(f"{root}/trials/{name}").write_bytes("config.yaml", config.encode())
        begin(f"{root}/trials/{name}/train", "train")
        writers.append(writer(f"{root}/trials/{name}"))
        steps(writers[-1], 1, 3)
    ended = RunStore(f"{root}/trials/0000-aa")
    point = {"objective.beta": 0.5}
    write_trial(ended, Trial(number=0, point=point, run_dir=ended.root, status="finished"))
    page = open_page(watch(root).url, width=400)
    page.wait("document.querySelectorAll('#trials tr').length === 3")
    page.wait_for_step("trials", 3)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 400
    lines = page.text("#trials").splitlines()
    assert [line.split("\t")[:3] for line in lines] == [
        ["trial", "state", "objective.beta"], ["0", "finished", "0.5"], ["1", "stopped", "0.1"]
    ]  # fmt: skip
    steps(writers[1], 4, 5)
    page.wait("document.querySelector('#chart-trials .plot').data[1].x.at(-1) === 5")
    assert page.curve("trials") == {"trial 0": [1, 2, 3], "trial 1": [1, 2, 3, 4, 5]}
    page.page.locator("#metric").select_option("rewards/margins")
    page.wait("document.querySelector('#chart-trials .plot').data[1]?.y?.at(-1) === 0.5")
    page.page.get_by_role("link", name="1", exact=True).click()
    page.wait_for_step("loss", 5)
    assert page.text("h1").endswith("0001-bb")
    page.page.get_by_role("link", name="all trials of the sweep").click()
    page.wait("document.querySelectorAll('#trials tr').length === 3")
    assert page.errors == []


def test_a_browser_is_opened_with_an_address_that_opens_once(
    watch: Callable[..., Watch], open_page: Callable[..., Page], tmp_path: Path
) -> None:
    """The browser is a script that keeps the address it was started with."""
    kept = tmp_path / "kept"
    browser = tmp_path / "browser"
    browser.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(kept)!r}, 'w').write(sys.argv[1])"
    )
    browser.chmod(0o755)
    found = watch(str(tmp_path / "run"), "--open", BROWSER=f"{browser} %s")
    wait_for(lambda: int(kept.exists() and kept.stat().st_size > 0), 1, found.process, found.log)
    address = kept.read_text()
    assert urlsplit(found.url).path.strip("/") not in address
    assert open_page(address).page.url == found.url
    assert status_of(address) == 403
    interrupt(found)
