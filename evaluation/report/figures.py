"""Figures as inline SVG: no file, no network, sharp at any width."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLOURS = ("#3564a8", "#c8553d", "#3f8f5f", "#8a5fa8", "#b08a2e", "#4d8f9c", "#9c4d6f", "#6b6b6b")
Series = tuple[str, Sequence[float], Sequence[float]]


def line_chart(
    title: str,
    y_label: str,
    series: Sequence[Series],
    names: Sequence[str],
    reference: float | None = None,
) -> str:
    """Curves over optimizer steps; a faint line is the raw value, the strong one its running mean.

    Args:
        series: (name, steps, values). names: of all runs of the page, so that a run has one colour
            in every figure.
    """
    figure, axes = new_axes(title, "optimizer step", y_label)
    for name, x, y in series:
        colour = COLOURS[names.index(name) % len(COLOURS)]
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=1)
        axes.plot(x, _running_mean(y), color=colour, linewidth=1.8, label=literal(name))
    if reference is not None:
        axes.axhline(reference, color="#999", linewidth=0.8, linestyle=":")
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return as_svg(figure)


def frontier_chart(points: Sequence[dict[str, Any]], reward_name: str) -> str:
    """Reward against KL(policy || reference) with 95 % intervals; the starting model sits at KL 0.

    Args:
        points: name, kl, reward: dictionaries with mean, low, high.
    """
    figure, axes = new_axes(
        "Reward against distance from the reference",
        "kl/policy_reference, nats per response",
        reward_name,
    )
    for i, point in enumerate(points):
        x, y = point["kl"], point["reward"]
        axes.errorbar(
            [x["mean"]],
            [y["mean"]],
            xerr=[[x["mean"] - x["low"]], [x["high"] - x["mean"]]],
            yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
            fmt="o",
            color="#777" if point.get("is_start") else COLOURS[point.get("run", i) % len(COLOURS)],
            capsize=3,
            label=literal(point["name"]),
        )
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlim(left=min(-0.2, axes.get_xlim()[0]))
    return as_svg(figure)


def profile_chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Lines with a mark at every value."""
    figure, axes = new_axes(title, x_label, y_label)
    for i, (name, x, y) in enumerate(series):
        axes.plot(
            x,
            y,
            marker="o",
            markersize=3,
            color=COLOURS[i % len(COLOURS)],
            linewidth=1.6,
            label=literal(name),
        )
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return as_svg(figure)


def bar_chart(
    title: str,
    y_label: str,
    bars: Sequence[tuple[str, dict[str, float]]],
    chance: float | None = None,
) -> str:
    """Bars with 95 % intervals and an optional chance line."""
    figure, axes = new_axes(title, "", y_label)
    for i, (_, value) in enumerate(bars):
        error = [
            [max(0.0, value["mean"] - value["low"])],
            [max(0.0, value["high"] - value["mean"])],
        ]
        axes.bar(
            [i], [value["mean"]], yerr=error, color=COLOURS[i % len(COLOURS)], width=0.6, capsize=3
        )
    axes.set_xticks(range(len(bars)), [literal(name) for name, _ in bars], fontsize=8)
    if chance is not None:
        axes.axhline(chance, color="#333", linewidth=1, linestyle="--", label=f"chance {chance:g}")
        axes.legend(frameon=False, fontsize=8)
    return as_svg(figure)


def new_axes(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    """An empty figure in this package's style, and its axes."""
    figure, axes = plt.subplots(figsize=(5.2, 3.1), layout="constrained")
    axes.set_title(literal(title), fontsize=10, loc="left")
    axes.set_xlabel(literal(x_label), fontsize=9)
    axes.set_ylabel(literal(y_label), fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def literal(text: str) -> str:
    """A name as matplotlib shows it: no formula between dollars, no entry left out for its `_`."""
    shown = readable(text).replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown


def readable(text: str) -> str:
    """A text that can be written: of a pair of surrogates its character, of a single one a mark."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _running_mean(values: Sequence[float], share: float = 0.1) -> list[float]:
    window = max(1, int(len(values) * share))
    means = []
    for i in range(len(values)):
        part = values[max(0, i - window + 1) : i + 1]
        means.append(sum(part) / len(part))
    return means


def as_png(figure: Any) -> bytes:
    """The figure as a file of its own; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    plt.close(figure)
    return buffer.getvalue()


def as_svg(figure: Any) -> str:
    """The figure as an element that fills its place on a page; closes it."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sparsepo", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return (
        re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
        if 'width="' in text[:400]
        else text
    )
