"""The frontier of a merge, as a figure of a file and of a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, select_autoescape

from evaluation.report.charts import (
    NEUTRAL,
    Figure,
    RunStyle,
    Series,
    chart_html,
    library_html,
    run_html,
    run_styles,
)
from evaluation.report.figures import Named, as_png, as_svg, literal, name_where_free, new_axes
from evaluation.report.formats import readable

Numbers = Mapping[str, float]
_FRONT = "Pareto front"
_SYMBOLS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^"}


@dataclass(frozen=True)
class MergePoint:
    """One setting of the weights.

    Attributes:
        series: its form, or that it is a single model. label: what stands beside it. weights: of
            the models, on average. rewards: name -> mean with low, high and n. tokens: likewise.
        is_knee: whether it is the front's knee. samples: the first ones.
    """

    name: str
    series: str
    label: str
    weights: Sequence[float]
    rewards: Mapping[str, Numbers]
    tokens: Numbers
    on_front: bool
    is_knee: bool
    samples: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class MergeView:
    """What the page shows. Attributes: models: what each is called, in the order of weights."""

    title: str
    models: Sequence[str]
    rewards: Sequence[str]
    temperature: float
    top_p: float
    points: Sequence[MergePoint]

    def series(self) -> dict[str, list[MergePoint]]:
        """Series -> its points, by the first model's weight."""
        found: dict[str, list[MergePoint]] = {}
        for point in self.points:
            found.setdefault(point.series, []).append(point)
        return {name: sorted(points, key=lambda p: -p.weights[0]) for name, points in found.items()}

    def front(self) -> list[MergePoint]:
        x = self.rewards[1]
        return sorted((p for p in self.points if p.on_front), key=lambda p: p.rewards[x]["mean"])


def merge_figure(view: MergeView, kind: Literal["png", "svg"]) -> bytes:
    """The first reward over the second, with intervals over prompts; a line joins the front."""
    y, x = view.rewards[:2]
    figure, axes = new_axes(f"{y} against {x}", f"{x} of samples", f"{y} of samples")
    front = view.front()
    axes.plot(
        [p.rewards[x]["mean"] for p in front],
        [p.rewards[y]["mean"] for p in front],
        color="#999",
        linewidth=1,
        linestyle=":",
        label=_FRONT,
        zorder=1,
    )
    styles = run_styles(list(view.series()))
    for name, points in view.series().items():
        style = styles[name]
        for point in points:
            (at_x, low_x, high_x), (at_y, low_y, high_y) = (_ends(point, r) for r in (x, y))
            axes.errorbar(
                [at_x],
                [at_y],
                xerr=[[low_x], [high_x]],
                yerr=[[low_y], [high_y]],
                fmt=_SYMBOLS[style.symbol],
                color=style.colour,
                ecolor="#ccc",
                markersize=5,
                elinewidth=0.7,
            )
        axes.plot([], [], _SYMBOLS[style.symbol], color=style.colour, label=literal(name))
    axes.legend(frameon=False, fontsize=7)
    named = [
        Named(point.label, point.rewards[x]["mean"], point.rewards[y]["mean"],
              styles[point.series].colour)
        for point in view.points
    ]  # fmt: skip
    name_where_free(axes, named)
    return as_png(figure) if kind == "png" else as_svg(figure)


def _ends(point: MergePoint, reward: str) -> tuple[float, float, float]:
    """Mean of a reward, and how far its interval reaches below and above."""
    found = point.rewards[reward]
    below, above = found["mean"] - found["low"], found["high"] - found["mean"]
    return found["mean"], max(0.0, below) if below == below else 0.0, max(
        0.0, above
    ) if above == above else 0.0  # fmt: skip


def render_merge(view: MergeView) -> str:
    """One HTML page, scripts and styles inside."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["j2"]),
        trim_blocks=True,
    )
    styles = run_styles(list(view.series()))
    return readable(
        environment.get_template("merge.html.j2").render(
            view=view,
            figure=chart_html(_chart(view, styles)),
            names={name: run_html(name, style) for name, style in styles.items()},
            front=_FRONT,
            library=library_html(),
        )
    )


def _chart(view: MergeView, styles: Mapping[str, RunStyle]) -> Figure:
    y, x = view.rewards[:2]
    front = view.front()
    series = [
        Series(
            _FRONT,
            [p.rewards[x]["mean"] for p in front],
            [p.rewards[y]["mean"] for p in front],
            RunStyle(NEUTRAL, "circle", "dot"),
            hover=[_hover(view, p) for p in front],
        )
    ]
    for name, points in view.series().items():
        series.append(
            Series(
                name,
                [p.rewards[x]["mean"] for p in points],
                [p.rewards[y]["mean"] for p in points],
                styles[name],
                "marks",
                y_low=[p.rewards[y]["low"] for p in points],
                y_high=[p.rewards[y]["high"] for p in points],
                x_low=[p.rewards[x]["low"] for p in points],
                x_high=[p.rewards[x]["high"] for p in points],
                hover=[_hover(view, p) for p in points],
                links=[f"#{p.name}" for p in points],
                labels=[p.label for p in points],
            )
        )
    title = f"{y} against {x}"
    return Figure("frontier", title, f"{x} of samples", f"{y} of samples", series, height=380)


def _hover(view: MergeView, point: MergePoint) -> str:
    """A point's weights and rewards, a line each."""
    lines = [point.name + (", on the front" if point.on_front else "")]
    lines += [
        f"{model}: {weight:.3g}" for model, weight in zip(view.models, point.weights, strict=True)
    ]
    lines += [
        f"{name} {value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        for name, value in point.rewards.items()
    ]
    return "\n".join(lines)
