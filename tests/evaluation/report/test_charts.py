"""Figures as records: what they refuse, what the page gets, and colours that everyone can tell."""

import itertools
import json
import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import evaluation.report
from evaluation.report.charts import (
    COLOURS,
    DASHES,
    NEUTRAL,
    SYMBOLS,
    Figure,
    RunStyle,
    Series,
    chart_html,
    embedded_json,
    library_html,
    run_styles,
)

WHITE, DARK = "#ffffff", "#1c2025"  # cards of the page
# Machado, Oliveira and Fernandes (2009), severity 1; of linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.072175],
        [0.0193339, 0.119192, 0.9503041],
    ]
)


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2: of relative luminances."""
    low, high = sorted(float(XYZ[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    x, y, z = (
        float(np.cbrt(v)) if v > 0.008856 else 7.787 * v + 16 / 116
        for v in XYZ @ rgb / np.array([0.95047, 1, 1.08883])
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_stand_out_on_white_and_on_dark() -> None:
    assert min(contrast(c, ground) for c in COLOURS for ground in (WHITE, DARK)) >= 2.8
    assert min(contrast(c, WHITE) for c in (*COLOURS, NEUTRAL)) >= 3


@pytest.mark.parametrize("sight", SIGHT)
def test_any_two_colours_differ_for_every_sight(sight: str) -> None:
    seen = [lab(np.clip(SIGHT[sight] @ linear(c), 0, 1)) for c in COLOURS]
    nearest = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))
    assert nearest >= 20, sight


def test_a_run_looks_the_same_wherever_it_is_named() -> None:
    """By its place among all runs; beyond eight colours the line differs, so no two are alike."""
    names = [f"run {i}" for i in range(30)]
    styles = run_styles(names)
    assert [styles[n] for n in names[:2]] == [
        RunStyle(COLOURS[0], SYMBOLS[0], "solid"),
        RunStyle(COLOURS[1], SYMBOLS[1], "solid"),
    ]
    assert run_styles([*names[:3], names[0]]) == {n: styles[n] for n in names[:3]}
    assert len(set(styles.values())) == 30 and {s.dash for s in styles.values()} == set(DASHES)


def test_a_series_has_as_many_of_everything() -> None:
    for wrong in ({"y": [1.0]}, {"y": []}, {"y_low": [1.0]}, {"hover": ["a"]}, {"links": ["#a"]}):
        with pytest.raises(ValueError, match=f"'a' has 2 x and . {next(iter(wrong))}"):
            Series("a", **{"x": [1, 2], "y": [1.0, 2.0]} | wrong)


@pytest.mark.parametrize(
    "link",
    ["javascript:alert(1)", "https://a.b/c", "//a.b/c", "/etc/passwd", "\\\\a\\b", " x", "a\tb"],
)
def test_a_point_leads_nowhere_else(link: str) -> None:
    with pytest.raises(ValueError, match="must be an anchor or a relative path"):
        Series("a", [1], [1.0], links=[link])


def test_links_within_the_report_are_kept() -> None:
    links = ["#trial-3", "", "trials/3/index.html#a:b", "best.yaml?a=b:c"]
    assert Series("a", [1, 2, 3, 4], [1.0] * 4, links=links).links == links


def test_a_figure_s_name_is_an_anchor() -> None:
    for name in ("", "a b", 'x"onload', "<b>", "a/b"):
        with pytest.raises(ValueError, match="a figure's name may hold"):
            Figure(name, "t", "x", "y", [])


HOSTILE = ["</script><script>alert(1)</script>", "\u2028", "\ud800", "<!--", "a & b", '"']


def test_what_the_page_holds_is_what_was_given() -> None:
    """Names as they are; numbers to six digits; what JSON has no word for is null."""
    y = [1 / 3, math.nan, math.inf, -math.inf, 1e-9]
    figure = Figure("f", "T <b>", "x", "y", [Series(name, range(5), y) for name in HOSTILE])
    html = str(chart_html(figure))
    (text,) = re.findall(r'<script type="application/json" class="figure">(.*?)</script>', html)
    assert not set("<>&\u2028") & set(text)
    record = json.loads(text)
    assert [s["name"] for s in record["series"]] == HOSTILE
    assert record["series"][0]["y"] == [0.333333, None, None, None, 1e-9]
    assert "<figcaption>T &lt;b&gt;</figcaption>" in html and html.count("<script") == 1
    assert "NaN" not in embedded_json({"a": [math.nan], 3: np.float64("inf")})


def test_points_that_a_logarithmic_axis_leaves_out_are_told() -> None:
    def shown(**axes: bool) -> str:
        series = [Series("a", [0, 1, 2], [1.0, -1.0, 2.0]), Series("b", [-1], [0.0], is_faint=True)]
        return str(chart_html(Figure("f", "t", "x", "y", series, **axes)))

    assert "logarithmic" not in shown()
    assert "1 of its points lies at or below 0" in shown(x_log=True)
    assert "2 of its points lie at or below 0" in shown(x_log=True, y_log=True)


def test_without_scripts_a_figure_names_the_file_of_its_numbers() -> None:
    def told(csv: str) -> str:
        html = chart_html(Figure("f", "t", "x", "y", [Series("a", [1], [1.0])], csv=csv))
        return re.findall(r"<noscript>(.*?)</noscript>", html)[0]

    assert '<a href="curves.csv">curves.csv</a>' in told("curves.csv")
    assert "in the tables of this page" in told("") and "href" not in told("")


def test_the_library_is_one_script_with_its_licence_that_nothing_ends() -> None:
    library = str(library_html())
    assert library.count("</script") == 2 and "<!--" not in library
    assert "Licensed under the MIT license" in library[:300]


def test_an_installed_page_has_all_its_files() -> None:
    """Templates, styles, scripts, the library and its licence: pyproject.toml names each."""
    root = Path(evaluation.report.__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["evaluation"]
    named = {path for pattern in patterns for path in (root / "evaluation").glob(pattern)}
    files = {path for path in (root / "evaluation" / "report").rglob("*.*") if path.is_file()}
    left = {path.name for path in files - named if path.suffix not in (".py", ".pyc", ".pyi")}
    assert not left
    assert {"plotly-basic.min.js", "plotly-basic.LICENSE.txt"} <= {path.name for path in named}
