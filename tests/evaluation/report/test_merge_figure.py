"""The frontier of a merge as a figure: names can be read where points lie on each other."""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from matplotlib.text import Text

from evaluation.report.figures import Named, name_where_free, new_axes
from evaluation.report.merge import MergePoint, MergeView, merge_figure


def crowd(count: int) -> list[Named]:
    """Points on two lines that nearly touch."""
    return [
        Named(f"{i / count:.3g} : {1 - i / count:.3g}", i + 0.1 * (k % 2), 0.5 * i + 0.05 * k)
        for i in range(count)
        for k in range(2)
    ]


def named(points: Sequence[Named]) -> tuple[Any, list[str]]:
    _, axes = new_axes("a title", "x", "y")
    axes.plot([point.x for point in points], [point.y for point in points], "o", label="all")
    axes.legend()
    return axes, name_where_free(axes, points)


def test_no_name_lies_on_another_a_point_or_the_legend() -> None:
    points = crowd(9)
    axes, left_out = named(points)
    axes.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert left_out == [] and [text.get_text() for text in axes.texts] == [p.name for p in points]
    inside = axes.get_window_extent()
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert not box.overlaps(axes.get_legend().get_window_extent())
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1
        assert inside.y0 <= box.y0 and box.y1 <= inside.y1
        assert not any(box.contains(*axes.transData.transform((p.x, p.y))) for p in points)


def test_a_name_without_a_place_is_left_out_and_told() -> None:
    points = [Named(f"number {i}", 0.0, 0.0) for i in range(60)]
    axes, left_out = named(points)
    shown = [text.get_text() for text in axes.texts]
    assert left_out and shown and [*shown, *left_out] == [p.name for p in points]


def merged(places: Sequence[tuple[str, float, float]]) -> MergeView:
    def at(value: float) -> dict[str, float]:
        return {"mean": value, "low": value - 0.02, "high": value + 0.02, "n": 9}

    points = [
        MergePoint(name, name.split("-")[0], name, [1 - x, x], {"vader": at(y), "brevity": at(x)},
                   at(9), False, False, [])
        for name, x, y in places
    ]  # fmt: skip
    return MergeView("merged", ["a", "b"], ["vader", "brevity"], 1.0, 1.0, points)


def test_a_merge_names_its_points_in_the_colour_of_their_form() -> None:
    view = merged([("mixture-1", 0.5, 0.5), ("product-1", 0.5, 0.501), ("product-2", 0.1, 0.9)])
    drawing = merge_figure(view, "svg").decode()
    for name in ("mixture-1", "product-1", "product-2"):
        assert len(re.findall(f"<!-- {name} -->", drawing)) == 1
    found = image.imread(io.BytesIO(merge_figure(view, "png")))
    assert found.shape[0] == pytest.approx(620, abs=2) and np.isfinite(found).all()
