"""Figures as files, drawn by matplotlib in this package's style."""

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib import transforms

from evaluation.report.formats import readable

# Where a name may stand: how far from its point, and on which side; in points.
_REACHES = (4, 12, 20, 30, 42, 56)
_SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
_MARK, _NAME_SIZE = 2.5, 6.5  # radius that a marker takes; of the letters


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


@dataclass(frozen=True)
class Named:
    """A point with a name. Attributes: x, y: in the axes' units."""

    name: str
    x: float
    y: float
    colour: str = "black"


def name_where_free(axes: Any, points: Sequence[Named]) -> list[str]:
    """Write names beside their points, where no other name, point or legend is in the way.

    The nearest free place is taken; a thin line leads to one that is further off. The limits of
    the axes are final from here on.

    Returns: the names that found no place, for a table to say.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # points and text have their places from here on
    figure.set_layout_engine("none")
    inside, scale, legend = axes.get_window_extent(), figure.dpi / 72, axes.get_legend()
    taken = [] if legend is None else [legend.get_window_extent()]
    marks = [axes.transData.transform((point.x, point.y)) for point in points]
    left_out = []
    for point, mark in zip(points, marks, strict=True):
        text = axes.text(0, 0, literal(point.name), fontsize=_NAME_SIZE)
        size = text.get_window_extent()
        text.remove()
        for reach, side in itertools.product(_REACHES, _SIDES):
            box = _box(mark, (size.width, size.height), reach * scale, side)
            is_inside = box.x0 >= inside.x0 and box.x1 <= inside.x1
            is_inside = is_inside and box.y0 >= inside.y0 and box.y1 <= inside.y1
            if is_inside and not any(box.overlaps(other) for other in taken):
                near = box.padded(_MARK * scale)
                if not any(near.contains(*other) for other in marks):
                    taken.append(box)
                    _write(axes, point, reach, side)
                    break
        else:
            left_out.append(point.name)
    return left_out


def _box(
    mark: Any, size: tuple[float, float], reach: float, side: tuple[int, int]
) -> transforms.Bbox:
    """What a name takes on one side of its point, in pixels."""
    ends = []
    for at, length, way in zip(mark, size, side, strict=True):
        middle = at + way * (reach + length / 2)
        ends.append((middle - length / 2, middle + length / 2))
    (x0, x1), (y0, y1) = ends
    return transforms.Bbox.from_extents(x0, y0, x1, y1)


def _write(axes: Any, point: Named, reach: float, side: tuple[int, int]) -> None:
    x, y = side
    line = {"arrowstyle": "-", "color": "#999", "linewidth": 0.5, "shrinkA": 0}
    axes.annotate(
        literal(point.name),
        (point.x, point.y),
        textcoords="offset points",
        xytext=(reach * x, reach * y),
        ha={-1: "right", 0: "center", 1: "left"}[x],
        va={-1: "top", 0: "center", 1: "bottom"}[y],
        fontsize=_NAME_SIZE,
        color=point.colour,
        arrowprops=line if reach > _REACHES[0] else None,
    )


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
