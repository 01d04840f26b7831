"""Names and texts that mean something to HTML, scripts or matplotlib are shown as they are."""

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_views import own_part, view
from test_sweep_report import KL, REWARD, view as sweep_view

from evaluation.report import render_report
from evaluation.report.figures import literal
from evaluation.report.sweep import SweepView, render_sweep
from evaluation.report.sweep_png import sweep_figures
from evaluation.report.sweep_view import BETA

pytestmark = pytest.mark.filterwarnings("ignore:Glyph|constrained_layout:UserWarning")

# As a run's name, a method's, a value's: what HTML, scripts and matplotlib read their own way.
HOSTILE = [
    "<!--<script>", "-->", "</script><script>alert(1)</script>", "</SCRIPT >", "<![CDATA[", "]]>",
    "a & b &lt; c", '"onload="x', "'", "{{ 7 * 7 }}", "{% raw %}", "\u2028line\u2029",
    "$x$", "$", "a $b$ c $d", r"\$x\$", "$\\frac{1}{0}$", "$\\nonsense$", "_hidden", "_", "",
    "\ud800", "a\udfffb", "\ud83d\ude00", "tab\tnew\nline", "{x}", "%s", "\\u003c",
]  # fmt: skip


def readable(text: str) -> str:
    """What such a text is on a page: pairs of surrogates are a character, single ones a mark."""
    whole = text.replace("\ud83d\ude00", "\U0001f600")
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in whole)


class Page(HTMLParser):
    """What a browser makes of a page: its scripts, the texts of its cells and of its figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.cells: list[str] = []
        self.comments: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag in ("td", "th"):
            self.cells.append("")
        assert not any(name.startswith("on") for name, _ in attributes), attributes

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif self.cells and "td" in self._open:
            self.cells[-1] += data


AS_JSON = [json.loads(json.dumps(name)) for name in HOSTILE]  # a pair of surrogates is one there
ONE_LINE = {readable(name) for name in HOSTILE if name and "\n" not in name}


def test_a_report_shows_names_as_they_are() -> None:
    """In its table, in its figures and in its data, which is one script that nothing ends."""
    plain_names = [f"run {number}" for number in range(len(HOSTILE))]
    plain = Page(own_part(render_report([view(name) for name in plain_names], "Title")))
    hostile = [
        replace(
            view(name),
            samples=[{**view("x").samples[0], "policy_text": name}],
            responses=[{**view("x").responses[0], "prompt": name, "tokens": [name, name]}],
        )
        for name in HOSTILE
    ]
    text = own_part(render_report(hostile, "".join(HOSTILE)))
    page = Page(text)
    assert len(page.scripts) == len(plain.scripts)
    assert page.comments == plain.comments == []
    assert len(page.cells) == len(plain.cells)
    assert {readable(name) for name in HOSTILE} <= set(page.cells)
    data = [script for script in page.scripts if script.lstrip()[:1] in ("{", '"')]
    assert not set("<>&\u2028\u2029") & set("".join(data))
    held = [json.loads(script) for script in data]
    figures = [record for record in held if "series" in record]
    for figure in figures:
        named = {series["name"] for series in figure["series"]}
        assert named >= set(AS_JSON), figure["name"]
    assert len(figures) == 4
    (results,) = [
        record for record in held if not isinstance(record, str) and "series" not in record
    ]
    assert list(results) == AS_JSON
    (numbers,) = [record for record in held if isinstance(record, str)]
    rows = list(csv.reader(io.StringIO(numbers)))
    no_formula = {f"'{name}" if name == "-->" else readable(name) for name in HOSTILE}
    assert {row[0] for row in rows[1:]} == no_formula
    text.encode()


@pytest.mark.slow
def test_a_sweep_shows_names_as_they_are() -> None:
    """Of its methods: in the table, in the figures, in the figures' own files."""

    def sweep(names: list[str]) -> SweepView:
        base = sweep_view([(REWARD, "max"), (KL, "min")], "recipe")
        trials = [
            replace(base.trials[number % 5], number=number, point={"recipe": name, BETA: 0.1})
            for number, name in enumerate(names)
        ]
        return replace(base, trials=trials, title=names[0], rule=names[-1])

    first, hostile = sweep([f"method {n}" for n in range(len(HOSTILE))]), sweep(HOSTILE)
    text = own_part(render_sweep(hostile))
    plain, page = Page(own_part(render_sweep(first))), Page(text)
    assert page.comments == plain.comments == [] and len(page.scripts) == len(plain.scripts)
    assert len(page.cells) == len(plain.cells)
    data = [script for script in page.scripts if script.startswith("{")]
    assert not set("<>&\u2028\u2029") & set("".join(data))
    labels = {name.rsplit("/", 1)[-1] for name in ONE_LINE}  # as the page abbreviates recipes
    shown = {name.rsplit("/", 1)[-1] for name in AS_JSON}
    figures = [json.loads(script) for script in data]
    assert len(figures) == 5
    for figure in figures[:3]:  # of the others one has a series per trial, one lacks a method
        assert {series["name"] for series in figure["series"]} >= shown, figure["name"]
    assert all(any(label in cell for cell in page.cells) for label in labels)
    text.encode()
    assert sweep_figures(hostile).keys() == sweep_figures(first).keys()


def test_a_literal_dollar_is_no_formula() -> None:
    from matplotlib.text import Text

    for name in HOSTILE:
        shown, is_formula = Text(0, 0, "")._preprocess_math(literal(name))
        assert (shown.removeprefix("\u200b"), is_formula) == (readable(name), False)


def test_pages_load_nothing() -> None:
    """Neither page names another file, nor does its style: what it shows is inside."""
    sweep = sweep_view([(REWARD, "max"), (KL, "min")], "recipe")
    beside = {"data:image/png", "results.json", "numbers.csv", "curves.csv"}
    for page in (own_part(render_report([view("one")], "Title")), own_part(render_sweep(sweep))):
        named = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']([^"']*)""", page)
        assert {name.partition(";")[0] for name in named if name[:1] != "#"} <= beside
        assert not re.search(r"url\((?!#)|@import|<(link|iframe|object|embed|base)\b", page)
