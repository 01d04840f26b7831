"""Figures as files, drawn by matplotlib in this package's style."""

import io
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from evaluation.report.formats import readable


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
    return _as_file(figure, "png", {"dpi": 200})


def as_svg(figure: Any) -> bytes:
    """As `as_png`; the same figure is the same file."""
    with matplotlib.rc_context({"svg.hashsalt": "sparsepo"}):
        return _as_file(figure, "svg", {"metadata": {"Date": None}})


def _as_file(figure: Any, kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    plt.close(figure)
    return buffer.getvalue()
