"""Collects a run's numbers into views and renders the page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from evaluation.kl import SampledKl, sampled_kls
from evaluation.report import figures
from evaluation.report.runs import RunView, compared, over_seeds

_CURVES = (
    ("loss", "Loss", "nats", None),
    ("rewards/margins", "Implicit reward margin", "beta x nats", 0.0),
    ("rewards/accuracies", "Implicit reward accuracy", "share of pairs", 0.5),
    (
        "kl/reference_policy",
        "KL(reference || policy) on training responses",
        "nats per response",
        0.0,
    ),
    ("masks/reward_mean", "Mean reward mask", "weight", None),
    ("masks/reward_zero_fraction", "Reward mask: share of exact zeros", "share of tokens", None),
    ("masks/kl_mean", "Mean KL mask", "weight", None),
    ("masks/kl_zero_fraction", "KL mask: share of exact zeros", "share of tokens", None),
    (
        "masks/reward_kl_correlation",
        "Correlation of reward mask and token KL",
        "within responses",
        0.0,
    ),
    ("nll_per_token", "Negative log-likelihood", "nats per token", None),
)
_HISTORY = (
    (
        "preference/accuracy/implicit_reward",
        "Checkpoints: implicit reward accuracy",
        "share of pairs",
        0.5,
    ),
    ("sentiment/reward/after", "Checkpoints: reward of samples", "reward", None),
    (
        "sentiment/kl/policy_reference",
        "Checkpoints: KL(policy || reference)",
        "nats per response",
        0.0,
    ),
    (
        "dialogue/win_rate/start",
        "Checkpoints: win rate against the starting model",
        "share of prompts",
        0.5,
    ),
    (
        "masks/reward_mask/zero_fraction",
        "Checkpoints: zeros of the reward mask",
        "share of tokens",
        None,
    ),
)
# KL(policy || reference) per sampled token: 2.7 in a run that was lost, 1.1 at most in those that
# were not
_FAR_NATS = 2.0
_DEAD_FRACTION = 0.99
_WITHOUT = "without an interval"  # of one prompt


def render_report(runs: Sequence[RunView], title: str) -> str:
    """One HTML page, scripts and styles inside. ValueError without a run."""
    if not runs:
        raise ValueError("a report needs at least one run")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"])
    )
    environment.filters["num"] = _number
    environment.filters["interval"] = _interval
    environment.filters["shown"] = lambda v: _interval(v) if isinstance(v, dict) else _number(v)
    environment.filters["signed"] = lambda v: f"{v:+.3f}"
    environment.filters["change"] = _signed_interval
    environment.filters["percent"] = lambda v: f"{v:.0%}"
    others = [other for run in runs for other in run.others.values()]
    environment.globals |= {
        "verdict": _verdict,
        "numbers": _numbers,
        "sampled_kls": _sampled_kls,
        "examples": _examples,
        "warn": _warnings,
    }
    context = {
        "title": title,
        "runs": runs,
        "trained": [r for r in runs if r.counts is not None],
        "others": [other for other in (*runs, *others) if other.evaluated],
        "of_pairs": [r for r in runs if "num_pairs" in r.results.get("preference", {})],
        "of_labels": [r for r in runs if "num_desirable" in r.results.get("preference", {})],
        "paired": compared(runs),
        "over_seeds": over_seeds(runs),
        "judged": [r for r in runs if r.results.get("dialogue")],
        "summaries": [r for r in runs if r.results.get("summarization")],
        "coded": [r for r in runs if r.results.get("code")],
        "history": [Markup(svg) for svg in _history(runs)],
        "profiles": {r.name: [Markup(svg) for svg in _profiles(r)] for r in runs},
        "frontier": Markup(_frontier(runs)) if any("sentiment" in r.results for r in runs) else "",
        "curves": [Markup(svg) for svg in _curves(runs)],
        "auc": Markup(_auc(runs))
        if any("auc/chance" in r.results.get("masks", {}) for r in runs)
        else "",
        "heatmaps": {r.name: _heatmap(r) for r in runs},
        "data_json": Markup(_embedded({r.name: r.results for r in runs})),
    }
    return figures.readable(environment.get_template("template.html.j2").render(context))


def _embedded(value: Any) -> str:
    """JSON that a page may hold in a script element: no text of it begins or ends anything."""
    text = json.dumps(value)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _warnings(run: RunView) -> list[str]:
    """What should be known before any number.

    It lists what training warned of, samples far from the reference, and dead masks.
    """
    found = list((run.counts or {}).get("warnings") or [])
    sentiment, masks = run.results.get("sentiment", {}), run.results.get("masks", {})
    if "tokens/after" in sentiment:
        distance = _sampled_kls(run)[0].value["mean"]
        per_token = distance / max(1.0, sentiment["tokens/after"]["mean"])
        if per_token > _FAR_NATS:
            found.append(
                f"the samples are {distance:.0f} nats from the "
                f"reference, {per_token:.1f} per token: read some of them below before you trust "
                "their reward"
            )
    for term in _masked_terms(run):
        zeros = masks.get(f"{term}_mask/zero_fraction", 0.0)
        if zeros > _DEAD_FRACTION:
            found.append(f"the {term} mask is zero on {zeros:.1%} of held-out tokens: it is dead")
    return found


def _verdict(run: RunView) -> list[str]:
    """What the evaluation found, in sentences.

    An interval that holds zero (or one half) is called no clear change.
    """
    found = []
    sentiment, preference, dialogue = (
        run.results.get(name, {}) for name in ("sentiment", "preference", "dialogue")
    )
    if not run.is_compared:
        return _alone(run)
    if sentiment:
        gain, kl = sentiment["reward/gain"], _sampled_kls(run)[0]
        word = (
            "rose" if gain["low"] > 0 else "fell" if gain["high"] < 0 else "did not clearly change"
        )
        found.append(
            f"The reward of samples {word}: {sentiment['reward/before']['mean']:.3f} before, "
            f"{sentiment['reward/after']['mean']:.3f} after ({_signed_interval(gain)}), at a "
            f"distance of {kl.value['mean']:.2f} nats from the reference{_along(kl)}."
        )
    if preference:
        rate = preference["accuracy/implicit_reward"]
        word = (
            "more often than chance"
            if rate["low"] > 0.5
            else "less often than chance"
            if rate["high"] < 0.5
            else "about as often as chance"
        )
        has_labels = "num_desirable" in preference
        does = (
            "agrees with held-out labels" if has_labels else "prefers the held-out chosen response"
        )
        of = "rows" if has_labels else "pairs"
        found.append(f"The implicit reward {does} {word}: in {rate['mean']:.1%} of {of}.")
    for opponent, label in (
        ("chosen", "the chosen responses"),
        ("start", "the starting model's replies"),
    ):
        rate = dialogue.get(f"win_rate/{opponent}")
        if rate is not None:
            word = (
                "prefers"
                if rate["low"] > 0.5
                else "does not prefer"
                if rate["high"] < 0.5
                else "sees no clear difference between"
            )
            join = "and" if "difference" in word else "to"
            found.append(
                f"The judge {word} its replies {join} {label}: win rate {_interval(rate)}."
            )
    code = run.results.get("code", {})
    if "pass@1/gain" in code:
        found.append(
            f"pass@1: {code['pass@1/before']['mean']:.3f} before, "
            f"{code['pass@1/after']['mean']:.3f} after ({_signed_interval(code['pass@1/gain'])})."
        )
    if run.results.get("summarization"):
        gain = run.results["summarization"]["rougeL/gain"]
        found.append(f"ROUGE-L of summaries changed by {_signed_interval(gain)}.")
    return found


def _alone(run: RunView) -> list[str]:
    """What the evaluation of a model without another beside it found, in sentences."""
    found = ["Nothing is compared: before and after are the same model."]
    if sentiment := run.results.get("sentiment"):
        found.append(f"The reward of its samples is {_interval(sentiment['reward/after'])}.")
    if preference := run.results.get("preference"):
        rate = preference["accuracy/logps/after"]
        found.append(
            "By log-probability it ranks the held-out chosen response higher in "
            f"{rate['mean']:.1%} of pairs."
        )
    if (rate := run.results.get("dialogue", {}).get("win_rate/chosen")) is not None:
        found.append(f"Against the chosen responses its replies win {_interval(rate)}.")
    if rate := run.results.get("code", {}).get("pass@1/after"):
        found.append(f"pass@1 is {_interval(rate)}.")
    return found


def _numbers(run: RunView) -> list[tuple[str, str]]:
    """Every number of an evaluation: name, and value with its interval."""
    return [
        (f"{benchmark}/{key}", _interval(value) if isinstance(value, dict) else _number(value))
        for benchmark, result in run.results.items()
        for key, value in result.items()
        if (isinstance(value, dict) and "mean" in value)
        or (isinstance(value, int | float) and not isinstance(value, bool))
    ]


def _sampled_kls(run: RunView) -> list[SampledKl]:
    """KL(policy || reference) of a run's samples, the first temperature's first."""
    top_p = run.recipe["evaluate"].get("generation", {}).get("top_p", 1.0)
    return list(sampled_kls(run.results.get("sentiment", {}), top_p))


def _along(kl: SampledKl) -> str:
    return f" along samples at {kl.sampling}, which are not the policy's own" if kl.sampling else ""


def _history(runs: Sequence[RunView]) -> list[str]:
    """Numbers of evaluated checkpoints over their steps."""
    charts = []
    for key, title, unit, reference in _HISTORY:
        series = []
        for run in runs:
            points = [
                (row["step"], row[key])
                for row in run.history
                if row.get("step") is not None and row.get(key) is not None
            ]
            if len(points) > 1:
                series.append((run.name, [p[0] for p in points], [p[1] for p in points]))
        if series:
            charts.append(
                figures.line_chart(title, unit, series, [run.name for run in runs], reference)
            )
    return charts


def _profiles(run: RunView) -> list[str]:
    """Mean weight over the length of a response, one line per mask that weighs something."""
    masks = run.results.get("masks", {})
    series = [
        (
            {"reward": "reward mask", "kl": "KL mask"}[term],
            [10 * i + 5.0 for i in range(len(rows))],
            [row["mean_weight"] for row in rows],
        )
        for term in _masked_terms(run)
        if (rows := masks.get(f"{term}_mask/by_position"))
    ]
    if not series:
        return []
    return [
        figures.profile_chart(
            "Mean weight along a response", "position, % of the response", "mean weight", series
        )
    ]


def _frontier(runs: Sequence[RunView]) -> str:
    measured = [r for r in runs if "sentiment" in r.results]
    zero = {"mean": 0.0, "low": 0.0, "high": 0.0}
    points: list[dict[str, Any]] = []
    for number, run in enumerate(measured):
        numbers = run.results["sentiment"]
        for kl in _sampled_kls(run):
            at = numbers.get(f"{kl.prefix}temperature", 1.0)
            name = run.name + (f", T={at:g}" if kl.prefix else "")
            points.append(
                {
                    "name": name + (" (other samples)" if kl.sampling else ""),
                    "run": number,
                    "kl": kl.value,
                    "reward": numbers[f"{kl.prefix}reward/after"],
                }
            )
    points.append(
        {
            "name": "starting model" if measured[0].counts is not None else "before",
            "kl": zero,
            "reward": measured[0].results["sentiment"]["reward/before"],
            "is_start": True,
        }
    )
    kind = measured[0].recipe["evaluate"]["reward"]["kind"]
    return figures.frontier_chart(points, f"mean reward of samples ({kind})")


def _curves(runs: Sequence[RunView]) -> list[str]:
    charts = []
    for key, title, unit, reference in _CURVES:
        series = []
        for run in runs:
            points = [(m["step"], m[key]) for m in run.metrics if "kind" not in m and key in m]
            if points:
                series.append((run.name, [p[0] for p in points], [p[1] for p in points]))
        if series:
            charts.append(
                figures.line_chart(title, unit, series, [run.name for run in runs], reference)
            )
    return charts


def _auc(runs: Sequence[RunView]) -> str:
    bars: list[tuple[str, dict[str, float]]] = []
    measured = [r for r in runs if "auc/chance" in r.results.get("masks", {})]
    for run in measured:
        masks = run.results["masks"]
        terms = _masked_terms(run)
        both_shown = (
            terms == ["reward", "kl"] and run.recipe["mask"].get("sharing") != "independent"
        )
        for term in terms[:1] if both_shown else terms:
            label = {"reward": "reward mask", "kl": "KL mask"}[term]
            bars.append((f"{run.name}\n{label}", masks[f"auc/{term}_mask"]))
    last = measured[-1].results["masks"]
    bars += [("token KL", last["auc/token_kl"]), ("random", last["auc/random_mask"])]
    return figures.bar_chart(
        "Do the weights find the key tokens?", "AUC over held-out tokens", bars, chance=0.5
    )


def _examples(run: RunView, count: int = 4) -> dict[str, list[dict[str, Any]]]:
    """Largest gains, largest losses and the first prompts as they come."""
    ranked = sorted(
        (s for s in run.samples if "policy_reward" in s),
        key=lambda s: s["policy_reward"] - s["start_reward"],
    )
    if not ranked or not run.is_compared:
        return {"as they come": run.samples[:count]} if run.samples else {}
    return {
        "as they come": run.samples[:count],
        "largest gains": ranked[::-1][:count],
        "largest losses": ranked[:count],
    }


def _heatmap(run: RunView) -> list[dict[str, Any]]:
    """Responses with a colour strength per token, scaled to the largest weight shown.

    The weights are the KL mask's where only that is a mask.
    """
    shown = []
    mask = "kl_mask" if _masked_terms(run) == ["kl"] else "reward_mask"
    for response in run.responses:
        largest = max([*response[mask], 1e-9])
        tokens = []
        for i, token in enumerate(response["tokens"]):
            weights = {name: response[name][i] for name in ("reward_mask", "kl_mask", "token_kl")}
            tokens.append(
                {
                    "text": token,
                    "alpha": round(max(weights[mask], 0.0) / largest * 0.85, 3),
                    "is_key": bool(response["is_key"] and response["is_key"][i]),
                    "hint": "reward mask {reward_mask:.4g} | KL mask {kl_mask:.4g} | token KL "
                    "{token_kl:.4g} nats".format(**weights),
                }
            )
        shown.append({"side": response["side"], "tokens": tokens})
    return shown


def _masked_terms(run: RunView) -> list[str]:
    """The terms that this run's mask weighs, "reward" before "kl"; none without a mask."""
    mask, objective = run.recipe["mask"], run.recipe["objective"]
    if mask["kind"] == "none":
        return []
    if not objective.get("alpha", 1.0):  # a weighted objective without KL
        return ["reward"]
    terms = mask.get("terms", "both")
    return ["reward", "kl"] if terms == "both" else [terms]


def _signed_interval(value: dict[str, float]) -> str:
    if value["low"] != value["low"]:
        return f"{value['mean']:+.3f}, {_WITHOUT}"
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _interval(value: dict[str, float]) -> str:
    if value["low"] != value["low"]:
        return f"{value['mean']:.3f}, {_WITHOUT}"
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
