"""The page of a sweep: what was searched on what, which trials are worth it, where they lie."""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape

from evaluation.equal_distance import Reached
from evaluation.intervals import Interval
from evaluation.report.charts import chart_html, library_html, run_html
from evaluation.report.formats import readable
from evaluation.report.sweep_charts import FRONT, label_key, method_styles, sweep_charts
from evaluation.report.sweep_view import (
    SweepView,
    TrialView,
    leaf,
    leaf_of_path,
    plain_name,
    shown_value,
)

__all__ = ["SweepView", "TrialView", "render_sweep"]


def render_sweep(view: SweepView) -> str:
    """One HTML page, scripts and styles inside; its links lead to files beside its folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["j2"]),
        trim_blocks=True,
    )
    environment.filters |= {
        "value": shown_value, "leaf": leaf, "reached": reached_text, "change": change_text,
        "plain": plain_name,
    }  # fmt: skip
    first, mode = view.objectives[0]
    order = sorted(view.measured(), key=lambda t: t.metrics[first], reverse=mode == "max")
    rest = [t for t in view.trials if t not in order]
    figures, styles = sweep_charts(view), method_styles(view)
    states: dict[str, int] = {}
    for trial in view.trials:
        states[trial.status] = states.get(trial.status, 0) + 1
    return readable(
        environment.get_template("sweep.html.j2").render(
            view=view,
            heading=heading(view),
            trials=order + rest,
            best=[t for t in view.trials if t.is_best],
            states=states,
            figures=[(figure, chart_html(figure)) for figure in figures],
            library=library_html() if figures else "",
            names={name: run_html(name, style) for name, style in styles.items()},
            colours={name: style.colour for name, style in styles.items()},
            label_key=label_key(view),
            front=FRONT,
        )
    )


def heading(view: SweepView) -> str:
    """What was searched, and on what."""
    keys = " and ".join([", ".join(view.keys[:-1]), view.keys[-1]][len(view.keys) < 2 :])
    places = list(dict.fromkeys(leaf_of_path(source) or source for source in view.sources))
    where = f" on {', '.join(places)}" if places else ""
    return f"Search of {keys}{where}"


def reached_text(found: Reached) -> str:
    if found.gain is None:
        return found.why
    ends = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.gain:.3f}{ends}"


def change_text(differences: Mapping[str, Interval], name: str) -> str:
    found = differences.get(name)
    if found is None:
        return ""
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
