"""Figures as inline SVG: no file, no network, sharp at any width."""

import io
import re
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from evaluation.report.formats import readable

COLOURS = ("#3564a8", "#c8553d", "#3f8f5f", "#8a5fa8", "#b08a2e", "#4d8f9c", "#9c4d6f", "#6b6b6b")


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
