"""The page and the figures of a sweep.

They show reward against KL, sparsity against beta, and every searched key at a glance.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from evaluation.comparison import SeedComparison
from evaluation.report.figures import COLOURS, as_png, as_svg, literal, new_axes, readable

BETA = "objective.beta"
# The share of response tokens with weight zero: of held-out responses, or of the last training
# step.
_SPARSITY = ("evaluation/masks/reward_mask/zero_fraction", "train/masks/reward_zero_fraction")
_MARKERS = "osD^vP*Xph<>"
_COLOUR_MAP = "viridis"


@dataclass(frozen=True)
class TrialView:
    """What the page shows of a trial.

    Attributes:
        less_best: the first objective less the chosen trial's, seed by seed; None without several
            seeds in both.
    """

    number: int
    status: str
    message: str
    point: dict[str, Any]
    metrics: dict[str, float]
    seconds: float
    is_on_front: bool
    is_best: bool
    less_best: SeedComparison | None = None


@dataclass(frozen=True)
class SweepView:
    """What the page shows of a sweep.

    Attributes:
        keys: that were searched. series_key: the key whose values are drawn as series of their own,
            if any.
        objectives: (metric, "max" or "min"). rule: why the best trial was taken. num_seeds: runs
            per trial.
    """

    title: str
    keys: list[str]
    series_key: str | None
    objectives: list[tuple[str, str]]
    trials: list[TrialView]
    rule: str
    num_seeds: int

    def measured(self) -> list[TrialView]:
        """Trials that finished with all objectives."""
        return [
            t
            for t in self.trials
            if t.status == "finished" and all(metric in t.metrics for metric, _ in self.objectives)
        ]

    def numeric_keys(self) -> list[str]:
        """Searched keys whose values are all numbers, beta first."""
        values = {key: [t.point[key] for t in self.trials if key in t.point] for key in self.keys}
        found = [
            k
            for k, v in values.items()
            if v and all(isinstance(x, int | float) and not isinstance(x, bool) for x in v)
        ]
        return sorted(found, key=lambda key: key != BETA)

    def series(self) -> list[tuple[str, list[TrialView]]]:
        """(label, measured trials) by the value of series_key."""
        if self.series_key is None:
            return [("", self.measured())]
        found: dict[str, list[TrialView]] = {}
        for trial in self.measured():
            found.setdefault(
                str(trial.point.get(self.series_key)).rsplit("/", 1)[-1].removesuffix(".yaml"), []
            ).append(trial)
        return list(found.items())

    def sparsity(self) -> str | None:
        return next(
            (key for key in _SPARSITY if any(key in t.metrics for t in self.measured())), None
        )


def sweep_figures(view: SweepView) -> dict[str, bytes]:
    """File name -> PNG of every figure that the sweep's trials allow."""
    return {name: as_png(figure) for name, figure in _figures(view)}


def render_sweep(view: SweepView) -> str:
    """One self-contained HTML page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"])
    )
    environment.filters |= {"value": _value, "leaf": _leaf}
    first, mode = view.objectives[0]
    order = sorted(view.measured(), key=lambda t: t.metrics[first], reverse=mode == "max")
    rest = [t for t in view.trials if t not in order]
    figures = [Markup(as_svg(figure)) for _, figure in _figures(view)]
    return readable(
        environment.get_template("sweep.html.j2").render(
            view=view, trials=order + rest, figures=figures
        )
    )


def _figures(view: SweepView) -> Iterator[tuple[str, Any]]:
    if not view.measured():
        return
    keys, sparsity = view.numeric_keys(), view.sparsity()
    colours = [(key, [t.point.get(key) for t in view.measured()]) for key in keys[:1]]
    if sparsity is not None:
        colours.append((sparsity, [t.metrics.get(sparsity) for t in view.measured()]))
    if len(view.objectives) > 1:
        if view.series_key is not None:
            yield f"frontier-by-{_slug(view.series_key)}", _frontier_by_series(view)
        for label, values in colours or [("", [])]:
            yield (
                f"frontier-by-{_slug(label)}" if label else "frontier",
                _frontier(view, label, values),
            )
    for key in keys[:4] if len(view.objectives) == 1 else []:
        yield (
            f"{_slug(view.objectives[0][0])}-against-{_slug(key)}",
            _against(view, key, view.objectives[0][0]),
        )
    if sparsity is not None and BETA in keys:
        yield "sparsity-against-beta", _against(view, BETA, sparsity)
    if len(view.measured()) > 1:
        yield "parallel-coordinates", _parallel(view)


def _frontier(view: SweepView, label: str, values: Sequence[float | None]) -> Any:
    """First objective over the second, coloured by a key or metric.

    A line joins the front; a ring marks the chosen trial.
    """
    (y, _), (x, _) = view.objectives[:2]
    figure, axes = new_axes(f"{_leaf(y)} against {_leaf(x)}", x, y)
    norm = _norm([v for v in values if v is not None])
    colour_of = dict(zip([t.number for t in view.measured()], values, strict=False))
    front = sorted((t for t in view.measured() if t.is_on_front), key=lambda t: t.metrics[x])
    axes.plot(
        [t.metrics[x] for t in front],
        [t.metrics[y] for t in front],
        color="#999",
        linewidth=1,
        linestyle="--",
        zorder=1,
    )
    for marker, (name, trials) in zip(itertools.cycle(_MARKERS), view.series(), strict=False):
        for trial in trials:
            value = colour_of.get(trial.number)
            colour = "#bbb" if value is None or norm is None else _colour(norm, value)
            _point(axes, trial, x, y, colour, marker)
        axes.plot([], [], marker, color="#555", label=literal(name) or None)
    _ring(axes, view, x, y)
    if norm is not None:
        figure.colorbar(
            ScalarMappable(norm, _COLOUR_MAP), ax=axes, label=literal(_leaf(label))
        ).ax.tick_params(labelsize=8)
    axes.legend(frameon=False, fontsize=7)
    return figure


def _frontier_by_series(view: SweepView) -> Any:
    """First objective over the second, one colour per series.

    A line joins a series' trials in the order of the second.
    """
    (y, _), (x, _) = view.objectives[:2]
    figure, axes = new_axes(f"{_leaf(y)} against {_leaf(x)}", x, y)
    for i, (name, trials) in enumerate(view.series()):
        colour, marker = COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)]
        shown = sorted(trials, key=lambda t: t.metrics[x])
        for trial in shown:
            _point(axes, trial, x, y, colour, marker)
        axes.plot(
            [t.metrics[x] for t in shown],
            [t.metrics[y] for t in shown],
            color=colour,
            linewidth=1,
            marker=marker,
            label=literal(name),
        )
    _ring(axes, view, x, y)
    axes.legend(frameon=False, fontsize=7)
    return figure


def _ring(axes: Any, view: SweepView, x: str, y: str) -> None:
    """Mark the chosen trial."""
    for best in (t for t in view.measured() if t.is_best):
        place = [best.metrics[x]], [best.metrics[y]]
        axes.plot(
            *place,
            "o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor="#c8553d",
            label="chosen",
        )


def _against(view: SweepView, key: str, metric: str) -> Any:
    """A metric over a searched key, one colour per series."""
    figure, axes = new_axes(f"{_leaf(metric)} against {key}", key, metric)
    for i, (name, trials) in enumerate(view.series()):
        shown = sorted(
            (t for t in trials if key in t.point and metric in t.metrics),
            key=lambda t: t.point[key],
        )
        if not shown:
            continue
        colour = COLOURS[i % len(COLOURS)]
        for trial in shown:
            low, high = _spread(trial, metric)
            axes.errorbar(
                [trial.point[key]],
                [trial.metrics[metric]],
                yerr=[[low], [high]],
                fmt="o",
                color=colour,
                capsize=2,
                markersize=4,
            )
        is_line = (
            len({t.point[key] for t in shown}) == len(shown)
            and len(view.keys) - (view.series_key is not None) == 1
        )
        axes.plot([], [], "o", color=colour, label=literal(name) or None)
        if is_line:
            axes.plot(
                [t.point[key] for t in shown],
                [t.metrics[metric] for t in shown],
                color=colour,
                linewidth=1,
            )
    if _is_wide([t.point[key] for t in view.measured() if key in t.point]):
        axes.set_xscale("log")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7)
    return figure


def _parallel(view: SweepView) -> Any:
    """One line per trial over all searched keys and objectives, coloured by the first objective."""
    trials = view.measured()
    columns = [key for key in view.keys if len({str(t.point.get(key)) for t in trials}) > 1] + [
        metric for metric, _ in view.objectives
    ]
    figure, axes = new_axes("Every trial: searched keys and objectives", "", "")
    figure.set_size_inches(max(5.2, 1.5 * len(columns)), 3.6)
    heights = {
        column: _heights([t.point.get(column, t.metrics.get(column)) for t in trials])
        for column in columns
    }
    norm = _norm([t.metrics[view.objectives[0][0]] for t in trials], may_be_log=False)
    for i, trial in enumerate(trials):
        known = [
            (x, heights[column][0][i])
            for x, column in enumerate(columns)
            if heights[column][0][i] is not None
        ]
        colour = _colour(norm, trial.metrics[view.objectives[0][0]]) if norm else COLOURS[0]
        axes.plot(
            *zip(*known, strict=True),
            color="#c8553d" if trial.is_best else colour,
            linewidth=2.5 if trial.is_best else 1,
            alpha=0.9,
        )
    for x, column in enumerate(columns):
        axes.axvline(x, color="#999", linewidth=0.8)
        for height, text in heights[column][1]:
            axes.annotate(
                literal(text),
                (x, height),
                textcoords="offset points",
                xytext=(3, 0),
                fontsize=6.5,
                va="center",
            )
    ticks = [literal(_leaf(column).replace("/", "/\n")) for column in columns]
    axes.set_xticks(range(len(columns)), ticks, fontsize=7)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlim(-0.2, len(columns) - 0.4)
    return figure


def _heights(values: Sequence[Any]) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Each value's place in [0, 1] (None: absent), and the labels of the axis."""
    known = [v for v in values if v is not None]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        scale = np.log if _is_wide(known) else np.asarray
        low, high = float(scale(min(known))), float(scale(max(known)))
        places = [
            None if v is None else (float(scale(v)) - low) / (high - low) if high > low else 0.5
            for v in values
        ]
        return places, [(0.0, _value(min(known))), (1.0, _value(max(known)))] if high > low else [
            (0.5, _value(known[0]))
        ]
    names = list(dict.fromkeys(str(v) for v in known))
    step = 1 / max(1, len(names) - 1)
    return [None if v is None else names.index(str(v)) * step for v in values], [
        (i * step, n.rsplit("/", 1)[-1]) for i, n in enumerate(names)
    ]


def _point(axes: Any, trial: TrialView, x: str, y: str, colour: Any, marker: str) -> None:
    errors = [[[low], [high]] for low, high in (_spread(trial, x), _spread(trial, y))]
    axes.errorbar(
        [trial.metrics[x]],
        [trial.metrics[y]],
        xerr=errors[0],
        yerr=errors[1],
        fmt=marker,
        color=colour,
        ecolor="#ccc",
        markersize=5,
        elinewidth=0.7,
    )


def _spread(trial: TrialView, metric: str) -> tuple[float, float]:
    """Below and above a value: its interval, or the standard deviation where seeds have none.

    The interval is over seeds where there are several, else the evaluation's own.
    """
    mean, m = trial.metrics[metric], trial.metrics
    if f"{metric}/low" not in m:
        return m.get(f"{metric}/std", 0.0), m.get(f"{metric}/std", 0.0)
    return max(0.0, mean - m[f"{metric}/low"]), max(0.0, m[f"{metric}/high"] - mean)


def _norm(values: Sequence[float], may_be_log: bool = True) -> Normalize | None:
    if not values or min(values) == max(values):
        return None
    return (
        LogNorm(min(values), max(values))
        if may_be_log and _is_wide(values)
        else Normalize(min(values), max(values))
    )


def _colour(norm: Normalize, value: float) -> Any:
    return colormaps[_COLOUR_MAP](norm(value))


def _is_wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic scale shows the values better."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= 10


def _leaf(name: str) -> str:
    """The part of a metric's or key's name that tells it from its neighbours."""
    return name.split("/", 1)[-1] if "/" in name else name


def _slug(name: str) -> str:
    return name.replace("/", "-").replace(".", "-").replace("_", "-")


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).rsplit("/", 1)[-1]
    return f"{value:.4g}"
