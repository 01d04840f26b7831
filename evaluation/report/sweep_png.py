"""The figures of a sweep as files: made where no browser is, for texts.

They show what the page's figures show.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from evaluation.report.charts import COLOURS
from evaluation.report.figures import as_png, literal, new_axes
from evaluation.report.sweep_view import (
    BETA,
    SweepView,
    TrialView,
    is_wide,
    leaf,
    shown_value,
    slug,
    spread,
)

_MARKERS = "osD^vP*Xph<>"
_COLOUR_MAP = "viridis"


def sweep_figures(view: SweepView) -> dict[str, bytes]:
    """File name -> PNG of every figure that the sweep's trials allow."""
    return {name: as_png(figure) for name, figure in _figures(view)}


def _figures(view: SweepView) -> Iterator[tuple[str, Any]]:
    if not view.measured():
        return
    keys, sparsity = view.numeric_keys(), view.sparsity()
    colours = [(key, [t.point.get(key) for t in view.measured()]) for key in keys[:1]]
    if sparsity is not None:
        colours.append((sparsity, [t.metrics.get(sparsity) for t in view.measured()]))
    if len(view.objectives) > 1:
        if view.series_key is not None:
            yield f"frontier-by-{slug(view.series_key)}", _frontier_by_series(view)
        for label, values in colours or [("", [])]:
            yield (
                f"frontier-by-{slug(label)}" if label else "frontier",
                _frontier(view, label, values),
            )
    for key in keys[:4] if len(view.objectives) == 1 else []:
        yield (
            f"{slug(view.objectives[0][0])}-against-{slug(key)}",
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
    figure, axes = new_axes(f"{leaf(y)} against {leaf(x)}", x, y)
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
            ScalarMappable(norm, _COLOUR_MAP), ax=axes, label=literal(leaf(label))
        ).ax.tick_params(labelsize=8)
    axes.legend(frameon=False, fontsize=7)
    return figure


def _frontier_by_series(view: SweepView) -> Any:
    """First objective over the second, one colour per series.

    A line joins a series' trials in the order of the second.
    """
    (y, _), (x, _) = view.objectives[:2]
    figure, axes = new_axes(f"{leaf(y)} against {leaf(x)}", x, y)
    for name, trials in view.series():
        i = view.methods().index(name)
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
    figure, axes = new_axes(f"{leaf(metric)} against {key}", key, metric)
    for name, trials in view.series():
        i = view.methods().index(name)
        shown = sorted(
            (t for t in trials if key in t.point and metric in t.metrics),
            key=lambda t: t.point[key],
        )
        if not shown:
            continue
        colour = COLOURS[i % len(COLOURS)]
        for trial in shown:
            low, high = spread(trial, metric)
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
    if is_wide([t.point[key] for t in view.measured() if key in t.point]):
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
    ticks = [literal(leaf(column).replace("/", "/\n")) for column in columns]
    axes.set_xticks(range(len(columns)), ticks, fontsize=7)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlim(-0.2, len(columns) - 0.4)
    return figure


def _heights(values: Sequence[Any]) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Each value's place in [0, 1] (None: absent), and the labels of the axis."""
    known = [v for v in values if v is not None]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        scale = np.log if is_wide(known) else np.asarray
        low, high = float(scale(min(known))), float(scale(max(known)))
        places = [
            None if v is None else (float(scale(v)) - low) / (high - low) if high > low else 0.5
            for v in values
        ]
        return places, [
            (0.0, shown_value(min(known))),
            (1.0, shown_value(max(known))),
        ] if high > low else [(0.5, shown_value(known[0]))]
    names = list(dict.fromkeys(str(v) for v in known))
    step = 1 / max(1, len(names) - 1)
    return [None if v is None else names.index(str(v)) * step for v in values], [
        (i * step, n.rsplit("/", 1)[-1]) for i, n in enumerate(names)
    ]


def _point(axes: Any, trial: TrialView, x: str, y: str, colour: Any, marker: str) -> None:
    errors = [[[low], [high]] for low, high in (spread(trial, x), spread(trial, y))]
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


def _norm(values: Sequence[float], may_be_log: bool = True) -> Normalize | None:
    if not values or min(values) == max(values):
        return None
    return (
        LogNorm(min(values), max(values))
        if may_be_log and is_wide(values)
        else Normalize(min(values), max(values))
    )


def _colour(norm: Normalize, value: float) -> Any:
    return colormaps[_COLOUR_MAP](norm(value))
