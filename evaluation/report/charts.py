"""Figures that a reader can zoom, search by pointing, and save; all of it inside the page.

A figure is a plain record. `chart_html` writes it as JSON beside an empty place, and charts.js
draws it there with Plotly's basic bundle (vendor/). A page calls `library_html` once, at its end.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

# Each has a contrast of 3:1 to white and 2.8:1 to a dark card. Any two differ by 20 (CIE76) for
# readers with normal sight, protanopia, deuteranopia and tritanopia. A test computes both.
COLOURS = (
    "#3468a9", "#c34e0d", "#1aa941", "#b675ea", "#a94175", "#756841", "#c38282", "#8f8fb6",
)  # fmt: skip
NEUTRAL = "#7d8590"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class RunStyle:
    """How a run looks in every chart and table of a page: colour, mark and kind of line."""

    colour: str = NEUTRAL
    symbol: str = "circle"
    dash: str = "solid"


def run_styles(names: Sequence[str]) -> dict[str, RunStyle]:
    """A style per run, in the order given; of more than eight the lines differ as well.

    Pass all runs of the page in one order, so that a run looks the same everywhere.
    """
    return {
        name: RunStyle(
            COLOURS[i % len(COLOURS)],
            SYMBOLS[i % len(SYMBOLS)],
            DASHES[i // len(COLOURS) % len(DASHES)],
        )
        for i, name in enumerate(dict.fromkeys(names))
    }


@dataclass(frozen=True)
class Series:
    """Points of one name.

    Attributes:
        name: in the legend. x: numbers, or texts for an axis of categories. y: numbers. Of NaN and
            infinite values nothing is drawn.
        kind: a line, marks, both, or bars.
        y_low, y_high, x_low, x_high: ends of intervals in the axis's unit, one per point; empty
            without intervals.
        hover: text per point, lines parted by "\\n"; empty means name, x and y.
        links: where a click on the point leads: an anchor ("#trial-3") or a relative address.
            "" leads nowhere. Whoever gives links gives them in a table as well, for the keyboard.
        labels: a short text beside each mark.
        is_faint: raw values behind a smoothed line; not in the legend. It hides with the series
            of the same name.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    style: RunStyle = RunStyle()
    kind: Literal["lines", "marks", "lines+marks", "bars"] = "lines"
    y_low: Sequence[float] = ()
    y_high: Sequence[float] = ()
    x_low: Sequence[float] = ()
    x_high: Sequence[float] = ()
    hover: Sequence[str] = ()
    links: Sequence[str] = ()
    labels: Sequence[str] = ()
    is_faint: bool = False

    def __post_init__(self) -> None:
        for field_name in ("y", "y_low", "y_high", "x_low", "x_high", "hover", "links", "labels"):
            values = getattr(self, field_name)
            if len(values) != len(self.x) and (values or field_name == "y"):
                raise ValueError(
                    f"series {self.name!r} has {len(self.x)} x and {len(values)} {field_name}"
                )
        for link in self.links:
            if not _is_local(link):
                raise ValueError(f"a point's link must be an anchor or a relative path: {link!r}")


@dataclass(frozen=True)
class Figure:
    """A chart: its title stands above it, its axes name their units.

    Attributes:
        name: of its anchor and of the files that a reader saves: letters, digits, - and _; one
            figure of that name per page.
        y_from_zero: the y axis begins at 0 even if all values are far above.
        levels: horizontal lines that mean something (chance, the start), label to y.
        csv: address of the file beside the page with its numbers, which a browser without
            scripts is told of; "" if there is none.
        height: in CSS pixels.
    """

    name: str
    title: str
    x_title: str
    y_title: str
    series: Sequence[Series]
    x_log: bool = False
    y_log: bool = False
    y_from_zero: bool = False
    levels: Mapping[str, float] = field(default_factory=dict)
    csv: str = ""
    height: int = 300

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"a figure's name may hold letters, digits, - and _: {self.name!r}")

    @property
    def num_below_zero(self) -> int:
        """Points that a logarithmic axis cannot show."""
        return sum(
            (self.x_log and not isinstance(x, str) and x <= 0) or (self.y_log and y <= 0)
            for one in self.series
            if not one.is_faint
            for x, y in zip(one.x, one.y, strict=True)
        )


def chart_html(figure: Figure) -> Markup:
    """The figure's element: what charts.js draws, and what is shown without scripts."""
    shown = list(dict.fromkeys(s.name for s in figure.series if not s.is_faint))
    label = f"{figure.title}. {figure.y_title} over {figure.x_title or 'categories'}: " + ", ".join(
        shown
    )
    where = (
        Markup('Its numbers are in <a href="{0}">{0}</a>.').format(figure.csv)
        if figure.csv
        else Markup("Its numbers are in the tables of this page.")
    )
    left_out = figure.num_below_zero
    note = (
        Markup(
            '<p class="note">{} of its points {} at or below 0, where a logarithmic axis shows '
            "nothing.</p>"
        ).format(left_out, "lies" if left_out == 1 else "lie")
        if left_out
        else ""
    )
    return Markup(
        '<figure class="chart" id="chart-{name}"><figcaption>{title}</figcaption>'
        '<div class="legend"></div>'
        '<div class="plot" role="img" aria-label="{label}" style="height:{height}px"></div>{note}'
        "<noscript><p>This figure is drawn by a script, which this browser does not run. "
        "{where}</p></noscript>"
        '<script type="application/json" class="figure">{record}</script></figure>'
    ).format(
        name=figure.name,
        title=figure.title,
        label=label,
        height=figure.height,
        note=note,
        where=where,
        record=embedded_json(figure_record(figure)),
    )


def library_html() -> Markup:
    """Plotly and what draws the figures with it, as script elements: once per page, at its end."""
    here = Path(__file__).parent
    library = (here / "vendor" / "plotly-basic.min.js").read_text(encoding="utf-8")
    charts = (here / "charts.js").read_text(encoding="utf-8")
    return Markup(f'<script id="plotly">{library}</script>\n<script id="charts">{charts}</script>')


def embedded_json(value: Any) -> Markup:
    """JSON that a page may hold in a script element: no text of it begins or ends anything.

    NaN and infinite numbers, which JSON has not, are null.
    """
    text = json.dumps(_finite(value), allow_nan=False)  # ASCII alone: no U+2028, no lone surrogate
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def run_html(name: str, style: RunStyle) -> Markup:
    """A run's name behind a spot of its colour, for tables and headings."""
    return Markup('<span class="run" style="--run:{}">{}</span>').format(style.colour, name)


def figure_record(figure: Figure) -> dict[str, Any]:
    """What charts.js draws; of an open page, `window.drawLive(figure, makeRecord)` draws it anew.

    NaN and infinite numbers are still in it: write it with `embedded_json`.
    """
    return {
        "name": figure.name,
        "title": figure.title,
        "x": {"title": figure.x_title, "log": figure.x_log},
        "y": {"title": figure.y_title, "log": figure.y_log, "zero": figure.y_from_zero},
        "levels": [{"label": label, "y": y} for label, y in figure.levels.items()],
        "series": [
            {
                "name": one.name,
                "kind": one.kind,
                "colour": one.style.colour,
                "symbol": one.style.symbol,
                "dash": one.style.dash,
                "faint": one.is_faint,
                **{
                    key: [_short(value) for value in getattr(one, key)]
                    for key in (
                        "x",
                        "y",
                        "y_low",
                        "y_high",
                        "x_low",
                        "x_high",
                        "hover",
                        "links",
                        "labels",
                    )
                    if getattr(one, key)
                },
            }
            for one in figure.series
        ],
    }


def _short(value: Any) -> Any:
    """A number as a figure needs it: six digits are half the page."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float):  # numpy's float64 is one
        return float(value) if math.isfinite(value) else None
    return value


def _is_local(link: str) -> bool:
    """An anchor or a relative path: nothing that a browser could run or fetch elsewhere."""
    return link[:1] in ("", "#") or (
        link.isprintable()
        and "\\" not in link
        and link[:1] not in "/ "
        and ":" not in link.split("#")[0].split("?")[0]
    )
