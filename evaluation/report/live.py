"""The pages of `watch`: which curves there are, in which order, and the files that draw them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from evaluation.report.charts import COLOURS, DASHES, NEUTRAL, SYMBOLS, embedded_json

_HERE = Path(__file__).parent
_VALIDATION = "validation/"
# Group -> charts: title, unit, keys of one chart. What a run does not report is left out.
_GROUPS: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "Learning": (
        ("Loss", "nats", ("loss",)),
        ("Implicit reward margin", "beta x nats", ("rewards/margins",)),
        ("Implicit reward accuracy", "share of pairs", ("rewards/accuracies",)),
        ("Implicit rewards", "beta x nats", ("rewards/chosen", "rewards/rejected")),
    ),
    "Distance from the reference": (
        (
            "KL(reference || policy)",
            "nats per response",
            ("kl/reference_policy", "kl/reference_policy_chosen", "kl/reference_policy_rejected"),
        ),
        ("KL per token", "nats per token", ("kl/reference_policy_per_token",)),
        ("Log-probabilities", "nats per response", ("logps/chosen", "logps/rejected")),
        (
            "Negative log-likelihood of the chosen",
            "nats per token",
            ("nll/chosen", "nll_per_token"),
        ),
    ),
    "Masks": (
        (
            "Sparsity: exact zeros",
            "share of tokens",
            ("masks/reward_zero_fraction", "masks/kl_zero_fraction"),
        ),
        ("Mean weight", "weight", ("masks/reward_mean", "masks/kl_mean")),
        ("Largest weight", "weight", ("masks/reward_max", "masks/kl_max")),
        ("Spread of weights", "standard deviation", ("masks/reward_spread", "masks/kl_spread")),
    ),
    "Steps": (
        ("Learning rate", "", ("learning_rate",)),
        ("Gradient norm", "", ("grad_norm",)),
        ("Throughput", "tokens per second", ("tokens_per_second",)),
        ("Seconds of a step", "seconds", ("step_seconds",)),
        ("Memory", "GiB", ("memory_gib",)),
        ("Use of the device's peak (MFU)", "share", ("mfu",)),
    ),
}
# What a curve is called in a chart of several; else the last part of its key.
_LABELS = {
    "kl/reference_policy": "all responses",
    "kl/reference_policy_chosen": "chosen",
    "kl/reference_policy_rejected": "rejected",
    **{
        f"masks/{term}_{what}": label
        for term, label in (("reward", "reward mask"), ("kl", "KL mask"))
        for what in ("zero_fraction", "mean", "max", "spread")
    },
}
_OTHERS = "All other metrics"
_EXACT = {"learning_rate", "memory_gib"}  # that do not scatter from step to step
_AXES = {"epoch", "elapsed_seconds"}  # numbers of every step that say when, not what


def chart_groups(keys: Iterable[str]) -> list[dict[str, Any]]:
    """The charts for the metrics that a run reports, the usual ones first.

    A metric of validations is drawn in the chart of training's. Every key is in one chart.

    Args:
        keys: of training's records and of validations'.
    Returns: groups: title, whether it is shown at first, and charts: title, unit, keys, what their
        curves are called, and whether a running mean shows them better.
    """
    left = dict.fromkeys(key.removeprefix(_VALIDATION) for key in sorted(keys))
    found = []
    for title, charts in _GROUPS.items():
        shown = [
            _chart(name, unit, known)
            for name, unit, wanted in charts
            if (known := [key for key in wanted if key in left])
        ]
        for chart in shown:
            for key in chart["keys"]:
                del left[key]
        if shown:
            found.append({"title": title, "is_open": True, "charts": shown})
    others = [_chart(key, "", [key]) for key in left if key not in _AXES]
    if others:
        found.append({"title": _OTHERS, "is_open": False, "charts": others})
    return found


def _chart(title: str, unit: str, keys: list[str]) -> dict[str, Any]:
    labels = [_LABELS.get(key, key.rpartition("/")[2]) for key in keys]
    smooth = keys[0] not in _EXACT
    return {"title": title, "unit": unit, "keys": keys, "labels": labels, "is_smooth": smooth}


def render_live(name: str, is_sweep: bool, up: str = "") -> str:
    """The page of a run or sweep, which asks for its numbers at "data" beside it.

    Args:
        name: of the run. up: the way to the page's files, relative.
    """
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=select_autoescape(["j2"]))
    look = {"colours": COLOURS, "symbols": SYMBOLS, "dashes": DASHES, "neutral": NEUTRAL}
    return environment.get_template("live.html.j2").render(
        name=name, is_sweep=is_sweep, up=up, look=embedded_json(look)
    )


def live_files() -> dict[str, bytes]:
    """Name -> content of what a page loads beside itself."""
    return {
        "plotly.js": (_HERE / "vendor" / "plotly-basic.min.js").read_bytes(),
        "charts.js": (_HERE / "charts.js").read_bytes(),
        "live_poll.js": (_HERE / "live_poll.js").read_bytes(),
        "live.js": (_HERE / "live.js").read_bytes(),
        "live_sweep.js": (_HERE / "live_sweep.js").read_bytes(),
    }
