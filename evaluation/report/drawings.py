"""The page's figures: curves, the frontier, how well weights find key tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evaluation.report.charts import COLOURS, NEUTRAL, Figure, RunStyle, Series
from evaluation.report.view import MASK_LABELS, RunView

Styles = Mapping[str, RunStyle]
# (key, title, unit, level that means something)
_CURVES: tuple[tuple[str, str, str, dict[str, float]], ...] = (
    ("loss", "Loss", "nats", {}),
    ("rewards/margins", "Implicit reward margin", "beta x nats", {"no preference": 0.0}),
    ("rewards/accuracies", "Implicit reward accuracy", "share of pairs", {"chance": 0.5}),
    (
        "kl/reference_policy",
        "KL(reference || policy) on training responses",
        "nats per response",
        {},
    ),
    ("masks/reward_mean", "Mean reward mask", "weight", {}),
    ("masks/reward_zero_fraction", "Reward mask: share of exact zeros", "share of tokens", {}),
    ("masks/kl_mean", "Mean KL mask", "weight", {}),
    ("masks/kl_zero_fraction", "KL mask: share of exact zeros", "share of tokens", {}),
    (
        "masks/reward_kl_correlation",
        "Correlation of reward mask and token KL",
        "within responses",
        {"none": 0.0},
    ),
    ("nll_per_token", "Negative log-likelihood", "nats per token", {}),
)
_HISTORY: tuple[tuple[str, str, str, dict[str, float]], ...] = (
    (
        "preference/accuracy/implicit_reward",
        "Checkpoints: implicit reward accuracy",
        "share of pairs",
        {"chance": 0.5},
    ),
    ("sentiment/reward/after", "Checkpoints: reward of samples", "reward", {}),
    (
        "sentiment/kl/policy_reference",
        "Checkpoints: KL(policy || reference)",
        "nats per response",
        {},
    ),
    (
        "dialogue/win_rate/start",
        "Checkpoints: win rate against the starting model",
        "share of prompts",
        {"even": 0.5},
    ),
    (
        "masks/reward_mask/zero_fraction",
        "Checkpoints: zeros of the reward mask",
        "share of tokens",
        {},
    ),
)
# Points that a curve is drawn with: more than a screen has columns.
MOST_POINTS = 1000
CURVES_FILE = "curves.csv"


def curves(runs: Sequence[RunView], styles: Styles) -> list[Figure]:
    """Training's metrics over steps: raw values faint, their running mean strong."""
    return _over_steps(
        "curve",
        _CURVES,
        runs,
        lambda run, key: [(m["step"], m[key]) for m in run.metrics if "kind" not in m and key in m],
        lambda run, points: _smoothed(run.name, points, styles[run.name]),
        CURVES_FILE,
    )


def history(runs: Sequence[RunView], styles: Styles) -> list[Figure]:
    """Numbers of evaluated checkpoints over their steps, with intervals where they have some."""

    def points(run: RunView, key: str) -> list[tuple[float, float]]:
        rows = [
            (row["step"], row[key])
            for row in run.history
            if row.get("step") is not None and row.get(key) is not None
        ]
        return rows if len(rows) > 1 else []

    def drawn(run: RunView, points: Sequence[tuple[float, float]]) -> list[Series]:
        x, y = zip(*points, strict=True)
        return [Series(run.name, x, y, styles[run.name], "lines+marks")]

    return _over_steps("checkpoints", _HISTORY, runs, points, drawn, "")


def _over_steps(
    prefix: str,
    wanted: Sequence[tuple[str, str, str, dict[str, float]]],
    runs: Sequence[RunView],
    points_of: Callable[[RunView, str], list[tuple[float, float]]],
    drawn: Callable[[RunView, Sequence[tuple[float, float]]], list[Series]],
    csv: str,
) -> list[Figure]:
    found = []
    for key, title, unit, levels in wanted:
        series = [
            one for run in runs if (points := points_of(run, key)) for one in drawn(run, points)
        ]
        if series:
            name = f"{prefix}-{key.replace('/', '-')}"
            found.append(
                Figure(name, title, "optimizer step", unit, series, levels=levels, csv=csv)
            )
    return found


def _smoothed(name: str, points: Sequence[tuple[float, float]], style: RunStyle) -> list[Series]:
    x, y = zip(*points, strict=True)
    means = running_mean(y)
    few_x, few_y = thinned(x, y)
    kept = range(0, len(x), -(-len(x) // MOST_POINTS))
    return [
        Series(name, few_x, few_y, style, is_faint=True),
        Series(name, [x[i] for i in kept], [means[i] for i in kept], style),
    ]


def running_mean(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Means over the last tenth of all values (at least one), per place."""
    window = max(1, int(len(values) * share))
    return [
        sum(part) / len(part)
        for part in (values[max(0, i - window + 1) : i + 1] for i in range(len(values)))
    ]


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `MOST_POINTS` points: of each stretch the lowest and the highest, so peaks stay."""
    if len(x) <= MOST_POINTS:
        return list(x), list(y)
    width = -(-2 * len(x) // MOST_POINTS)
    kept: list[int] = []
    for begin in range(0, len(x), width):
        stretch = range(begin, min(len(x), begin + width))
        kept += sorted({min(stretch, key=y.__getitem__), max(stretch, key=y.__getitem__)})
    return [x[i] for i in kept], [y[i] for i in kept]


def frontier(runs: Sequence[RunView], styles: Styles) -> Figure | None:
    """Reward against KL(policy || reference), with intervals; the starting model sits at KL 0."""
    measured = [r for r in runs if "sentiment" in r.results]
    if not measured:
        return None
    series = []
    for run in measured:
        numbers = run.results["sentiment"]
        for kl in run.sampled_kls:
            at = numbers.get(f"{kl.prefix}temperature", 1.0)
            name = run.name + (f", T={at:g}" if "temperature=" in kl.prefix else "")
            control = numbers.get(f"{kl.prefix}control")
            name += "" if control is None else f", control {control}"
            name += " (other samples)" if kl.sampling else ""
            reward = numbers[f"{kl.prefix}reward/after"]
            series.append(_point(name, kl.value, reward, styles[run.name]))
    start = measured[0].results["sentiment"]["reward/before"]
    label = "starting model" if measured[0].counts is not None else "before"
    series.append(_point(label, {"mean": 0.0, "low": 0.0, "high": 0.0}, start, RunStyle(NEUTRAL)))
    kind = measured[0].recipe["evaluate"]["reward"]["kind"]
    return Figure(
        "frontier",
        "Reward against distance from the reference",
        "KL(policy || reference), nats per response",
        f"mean reward of samples ({kind})",
        series,
        height=340,
    )


def _point(name: str, x: Mapping[str, float], y: Mapping[str, float], style: RunStyle) -> Series:
    return Series(
        name,
        [x["mean"]],
        [y["mean"]],
        style,
        "marks",
        y_low=[y["low"]],
        y_high=[y["high"]],
        x_low=[x["low"]],
        x_high=[x["high"]],
    )


def key_token_auc(runs: Sequence[RunView], styles: Styles) -> Figure | None:
    """How often a key token outweighs another one, per mask; token KL and chance beside it."""
    measured = [r for r in runs if "auc/chance" in r.results.get("masks", {})]
    if not measured:
        return None
    series = []
    for run in measured:
        masks, terms = run.results["masks"], run.masked_terms
        is_shared = terms == ["reward", "kl"] and run.recipe["mask"].get("sharing") != "independent"
        for term in terms[:1] if is_shared else terms:
            label = f"{run.name}\n{MASK_LABELS[term]}"
            series.append(_bar(label, run.name, masks[f"auc/{term}_mask"], styles[run.name]))
    last = measured[-1]
    kl_label = "token KL" if len(measured) == 1 else f"{last.name}\ntoken KL"
    for label, key in ((kl_label, "token_kl"), ("random\nweights", "random_mask")):
        name = label.replace("\n", " ")
        series.append(_bar(label, name, last.results["masks"][f"auc/{key}"], RunStyle(NEUTRAL)))
    return Figure(
        "key-token-auc",
        "Do the weights find the key tokens?",
        "",
        "AUC over held-out tokens",
        series,
        levels={"chance": 0.5},
        height=340,
    )


def reliability(runs: Sequence[RunView], styles: Styles) -> Figure | None:
    """How often a token is good by what the discriminator says of it; on the line it is right."""
    found = {r.name: d for r in runs if (d := r.results.get("discriminator"))}
    if not found:
        return None
    series = [
        Series(
            name,
            [row["probability"] for row in figures["calibration"]],
            [row["outcome"] for row in figures["calibration"]],
            styles[name],
            "lines+marks",
            hover=[
                f"D {row['probability']:.2f}: {row['outcome']:.2f} of {row['count']} tokens"
                for row in figures["calibration"]
            ],
        )
        for name, figures in found.items()
    ]
    series.append(Series("D at its word", [0.0, 1.0], [0.0, 1.0], RunStyle(NEUTRAL)))
    return Figure(
        "discriminator-reliability",
        "Is a token as often good as the discriminator says?",
        "mean D of a tenth",
        "share of good tokens",
        series,
        y_from_zero=True,
    )


def _bar(label: str, name: str, value: Mapping[str, Any], style: RunStyle) -> Series:
    return Series(
        name,
        [label],
        [value["mean"]],
        style,
        "bars",
        y_low=[value["low"]],
        y_high=[value["high"]],
    )


def weight_profile(run: RunView, number: int) -> Figure | None:
    """Mean weight over the length of a response, one line per mask that weighs something.

    Args:
        number: of the run on the page, which the figure's name needs.
    """
    masks = run.results.get("masks", {})
    rows = {
        MASK_LABELS[term]: [row["mean_weight"] for row in found]
        for term in run.masked_terms
        if (found := masks.get(f"{term}_mask/by_position"))
    }
    if len(rows) == 2 and rows["reward mask"] == rows["KL mask"]:
        rows = {"reward and KL mask": rows["reward mask"]}
    styles = (RunStyle(COLOURS[0]), RunStyle(COLOURS[1], "square", "dash"))
    series = [
        Series(label, [10 * i + 5.0 for i in range(len(means))], means, style, "lines+marks")
        for (label, means), style in zip(rows.items(), styles, strict=False)
    ]
    if not series:
        return None
    return Figure(
        f"profile-{number}",
        "Mean weight along a response",
        "position, % of the response",
        "mean weight",
        series,
        y_from_zero=True,
    )
