"""The figures of a sweep's page: a point is a trial, a colour a method."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from evaluation.report.charts import NEUTRAL, Figure, RunStyle, Series, run_styles
from evaluation.report.sweep_view import (
    BETA,
    SweepView,
    TrialView,
    axis_name,
    has_spread,
    is_wide,
    leaf,
    plain_name,
    shown_value,
    spread,
)

FRONT, BEST = "Pareto front", "best.yaml"
_MOST_KEYS = 4
_HEIGHT = 380


def sweep_charts(view: SweepView) -> list[Figure]:
    """All that the sweep's trials allow, the front first; none if nothing was measured."""
    return list(_charts(view)) if view.measured() else []


def method_styles(view: SweepView) -> dict[str, RunStyle]:
    return run_styles(view.methods())


def label_key(view: SweepView) -> str | None:
    """The key whose value stands beside a point; None for the number of its trial."""
    others = [key for key in view.keys if key != view.series_key]
    return others[0] if len(others) == 1 and others == view.numeric_keys() else None


def _charts(view: SweepView) -> Iterator[Figure]:
    keys, sparsity = view.numeric_keys(), view.sparsity()
    (first, _), *others = view.objectives
    if others:
        yield _frontier(view)
    for key in keys[:_MOST_KEYS]:
        for metric in [metric for metric, _ in view.objectives]:
            yield _against(view, key, metric)
    if sparsity is not None and BETA in keys and sparsity != first:
        yield _against(view, BETA, sparsity)
    if len(view.measured()) > 1:
        yield _parallel(view)


def _frontier(view: SweepView) -> Figure:
    """A gain over a distance (else the first objective over the second), and the front of all."""
    (y, _), (x, _) = view.objectives[:2]
    y, x = view.gain_and_distance() or (y, x)
    series = [
        _points(view, name, trials, x, y, is_line=label_key(view) is not None)
        for name, trials in view.series()
    ]
    front = sorted((t for t in view.measured() if t.is_on_front), key=lambda t: t.metrics[x])
    series.insert(
        0,
        Series(
            FRONT,
            [t.metrics[x] for t in front],
            [t.metrics[y] for t in front],
            RunStyle(NEUTRAL, "circle", "dot"),
            hover=[hover_of(view, t) for t in front],
        ),
    )
    best = [t for t in view.measured() if t.is_best]
    series.append(
        Series(
            BEST,
            [t.metrics[x] for t in best],
            [t.metrics[y] for t in best],
            RunStyle(NEUTRAL, "star"),
            "marks",
            hover=[hover_of(view, t) for t in best],
            links=[f"#trial-{t.number}" for t in best],
        )
    )
    title = f"{_capital(plain_name(y))} against {plain_name(x)}"
    return Figure("frontier", title, axis_name(x), axis_name(y), series, height=_HEIGHT)


def _against(view: SweepView, key: str, metric: str) -> Figure:
    """A metric over a searched key."""
    known = [
        (name, shown)
        for name, trials in view.series()
        if (shown := [t for t in trials if key in t.point and metric in t.metrics])
    ]
    series = [
        _points(view, name, trials, key, metric, is_line=label_key(view) == key)
        for name, trials in known
    ]
    return Figure(
        re.sub(r"[^a-zA-Z0-9]+", "-", f"{metric}-over-{key}"),
        f"{_capital(plain_name(metric))} over {key}",
        key,
        axis_name(metric),
        series,
        x_log=is_wide([t.point[key] for _, trials in known for t in trials]),
    )


def _points(
    view: SweepView,
    name: str,
    trials: Sequence[TrialView],
    x: str,
    y: str,
    is_line: bool,
) -> Series:
    """Trials as marks with their intervals; x is a metric or a key."""
    at = sorted(trials, key=lambda t: _value(t, x))
    key = label_key(view)
    labels = [str(t.number) if key is None else shown_value(t.point.get(key)) for t in at]
    return Series(
        name,
        [_value(t, x) for t in at],
        [t.metrics[y] for t in at],
        method_styles(view)[name],
        "lines+marks" if is_line else "marks",
        *_ends(at, y),
        *_ends(at, x),
        hover=[hover_of(view, t) for t in at],
        links=[f"#trial-{t.number}" for t in at],
        labels=labels if x != key else (),
    )


def _value(trial: TrialView, name: str) -> float:
    return float(trial.point[name] if name in trial.point else trial.metrics[name])


def _ends(trials: Sequence[TrialView], name: str) -> tuple[list[float], list[float]]:
    """Low and high of a metric; empty for a key, or where no trial has an interval."""
    if not any(has_spread(t, name) for t in trials):
        return [], []
    ends = [spread(t, name) for t in trials]
    values = [t.metrics[name] for t in trials]
    return (
        [v - low for v, (low, _) in zip(values, ends, strict=True)],
        [v + high for v, (_, high) in zip(values, ends, strict=True)],
    )


def hover_of(view: SweepView, trial: TrialView) -> str:
    """A trial's number, its keys and its objectives, a line each."""
    lines = [f"trial {trial.number}" + (", on the front" if trial.is_on_front else "")]
    lines += [f"{key} = {view.shown(trial, key)}" for key in view.keys if key in trial.point]
    for metric, _ in view.objectives:
        low, high = spread(trial, metric)
        value = trial.metrics[metric]
        ends = f" [{value - low:.4g}, {value + high:.4g}]" if has_spread(trial, metric) else ""
        lines.append(f"{leaf(metric)} {value:.4g}{ends}")
    return "\n".join(lines)


def _parallel(view: SweepView) -> Figure:
    """One line per trial over all searched keys and objectives, each from its least to its most."""
    trials = view.measured()
    keys = [key for key in view.keys if len({str(t.point.get(key)) for t in trials}) > 1]
    columns = keys + [metric for metric, _ in view.objectives]
    heights = {
        column: _heights([t.point.get(column, t.metrics.get(column)) for t in trials])
        for column in columns
    }
    styles = method_styles(view)
    series = []
    for i, trial in enumerate(trials):
        known = [column for column in columns if heights[column][i] is not None]
        about = hover_of(view, trial)
        series.append(
            Series(
                f"trial {trial.number}" + (f", {BEST}" if trial.is_best else ""),
                [leaf(column) for column in known],
                [heights[column][i] or 0.0 for column in known],
                styles[view.method(trial)],
                "lines+marks",
                hover=[about] * len(known),
                links=[f"#trial-{trial.number}"] * len(known),
            )
        )
    title = "Every trial: searched keys and objectives"
    return Figure("every-trial", title, "", "from least to most", series, height=_HEIGHT)


def _heights(values: Sequence[Any]) -> list[float | None]:
    """Each value's place in [0, 1], by its logarithm where they are wide; None: absent."""
    known = [v for v in values if v is not None]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        scale = np.log if is_wide(known) else np.asarray
        low, high = float(scale(min(known))), float(scale(max(known)))
        return [
            None if v is None else (float(scale(v)) - low) / (high - low) if high > low else 0.5
            for v in values
        ]
    names = list(dict.fromkeys(str(v) for v in known))
    step = 1 / max(1, len(names) - 1)
    return [None if v is None else names.index(str(v)) * step for v in values]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
