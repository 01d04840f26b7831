"""One run against another, in a sentence that its intervals allow.

A difference is called one if its interval leaves out 0. Its size is told by Cohen's d, the
difference over the pooled standard deviation of both runs' values: below 0.2, where Cohen's "small"
begins, it is tiny. All of an interval counts, never its middle alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evaluation.comparison import paired_difference, paired_ratio, pooled_spread
from evaluation.intervals import Interval
from evaluation.report.formats import interval, signed_interval
from evaluation.report.view import RunView

TINY = 0.2
# Intervals are shown to hold what they say from here on.
FEWEST = 10

Direction = Literal["more", "less", "same", "unclear"]


@dataclass(frozen=True)
class Measure:
    """What is compared. key: of samples or of results; noun: with more and less before it."""

    key: str
    noun: str
    more: str = "more"
    less: str = "less"


REWARD = Measure("policy_reward", "reward")
WINS = Measure("wins", "wins against the chosen responses", less="fewer")
AGREEMENT = Measure(
    "accuracy/implicit_reward", "agreement of the implicit reward with held-out preferences"
)


@dataclass(frozen=True)
class Verdict:
    """A comparison in words.

    Attributes:
        run, against: the names. headline: the finding. numbers: what it rests on. advice: what
            follows from it, "" if nothing does.
    """

    run: str
    against: str
    headline: str
    numbers: str
    advice: str = ""


def direction(low: float, high: float, tiny: float = 0.0) -> Direction:
    """What an interval of a difference allows.

    Args:
        tiny: a difference that counts as none, in the interval's unit.
    """
    if -tiny < low and high < tiny and not (low > 0 or high < 0):
        return "same"
    return "more" if low > 0 else "less" if high < 0 else "unclear"


def size(low: float, high: float, tiny: float) -> str:
    """ "tiny", "perhaps tiny" or "": of a difference whose interval leaves out 0."""
    smallest, largest = sorted((abs(low), abs(high)))
    return "tiny" if largest < tiny else "perhaps tiny" if smallest < tiny else ""


def rate_size(value: Mapping[str, float], chance: float = 0.5) -> str:
    """The size of a rate's distance from chance, by Cohen's h, whose limits are those of d."""
    low, high = (
        2 * (math.asin(math.sqrt(min(1.0, max(0.0, value[end])))) - math.asin(math.sqrt(chance)))
        for end in ("low", "high")
    )
    return size(low, high, TINY)


def compare(runs: Sequence[RunView]) -> list[Verdict]:
    """Every run against the first: on what both have measured."""
    return [verdict for run in runs[1:] for verdict in _against(runs[0], run)]


def _against(first: RunView, second: RunView) -> list[Verdict]:
    one, other = _with_wins(first.first_samples), _with_wins(second.first_samples)
    found = []
    for measure in (REWARD, WINS):
        difference = paired_difference(one, other, measure.key)
        if difference is None:
            continue
        spread = pooled_spread(one, other, measure.key)
        distance = paired_ratio(one, other, "kl_policy_reference")
        found.append(paired_verdict(first.name, second.name, measure, difference, spread, distance))
    if not found:
        mine, theirs = (
            run.results.get("preference", {}).get(AGREEMENT.key) for run in (first, second)
        )
        if mine is not None and theirs is not None:
            found.append(unpaired_verdict(first.name, second.name, AGREEMENT, mine, theirs))
    return found


def _with_wins(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples with the judge's points: a tie is half a win, without a verdict there are none."""
    points = {"policy": 1.0, "tie": 0.5, "opponent": 0.0}
    return [
        {**sample, WINS.key: points[sample["chosen_verdict"]]}
        if sample.get("chosen_verdict") in points
        else sample
        for sample in samples
    ]


def paired_verdict(
    against: str,
    run: str,
    measure: Measure,
    difference: Interval,
    spread: float,
    distance: Interval | None,
) -> Verdict:
    """The verdict on differences paired by prompt.

    Args:
        difference: run less against. spread: the unit of Cohen's d, 0 if nothing varies.
        distance: the KL of run over that of against, None if it was not measured or has no ratio.
    """
    numbers = f"{measure.noun} {signed_interval(difference.as_dict())}"
    if spread > 0:
        of_spread = {k: getattr(difference, k) / spread for k in ("mean", "low", "high")}
        numbers += f", Cohen's d {signed_interval(of_spread)}"
    numbers += f", over {difference.n} prompts"
    if difference.n < FEWEST:
        few = f"too few prompts for a verdict: {difference.n} in common, {FEWEST} are needed"
        return Verdict(run, against, few, numbers)
    tiny = TINY * spread
    found = direction(difference.low, difference.high, tiny)
    amount = {
        "more": f"{measure.more} {measure.noun}",
        "less": f"{measure.less} {measure.noun}",
        "same": f"the same {measure.noun}",
        "unclear": f"no difference in {measure.noun} found",
    }[found]
    how = size(difference.low, difference.high, tiny) if found in ("more", "less") else ""
    amount += {
        "": "",
        "tiny": ", a tiny difference",
        "perhaps tiny": ", perhaps a tiny difference",
    }[how]
    if distance is None or not all(map(math.isfinite, (distance.low, distance.high))):
        return Verdict(run, against, amount, numbers)
    numbers += f"; distance {interval(distance.as_dict())} times"
    moved = direction(distance.low - 1, distance.high - 1)
    if found == "unclear" and moved == "unclear":
        return Verdict(run, against, "no difference found", numbers)
    comma = "" if moved == "less" and found != "unclear" and not how else ","
    headline = f"{amount}{comma} {_where(moved, distance)}"
    return Verdict(run, against, headline, numbers, _ADVICE.get((found, moved), ""))


def unpaired_verdict(
    against: str,
    run: str,
    measure: Measure,
    first: Mapping[str, float],
    second: Mapping[str, float],
) -> Verdict:
    """The verdict where only each run's own interval is known: they differ if those are apart."""
    numbers = f"{run} {interval(second)}, {against} {interval(first)}"
    few = min(first["n"], second["n"])
    if few < FEWEST:
        text = f"too few prompts for a verdict: {few:g}, {FEWEST} are needed"
    elif second["low"] > first["high"]:
        text = f"{measure.more} {measure.noun}"
    elif second["high"] < first["low"]:
        text = f"{measure.less} {measure.noun}"
    else:
        text = f"no difference in {measure.noun} found: their intervals overlap"
    return Verdict(run, against, text, numbers)


_TRADE = (
    "A trade of reward for distance: compare both at one distance, with other values of beta, "
    "before you call one better."
)
_ADVICE = {
    ("more", "less"): "Better on both counts.",
    ("more", "unclear"): "Better: nothing says that it moved farther for it.",
    ("more", "more"): _TRADE,
    ("less", "less"): _TRADE,
    ("less", "unclear"): "Worse: nothing says that it stayed nearer for it.",
    ("less", "more"): "Worse on both counts.",
    ("same", "less"): "Better: it stayed nearer to the reference.",
    ("same", "more"): "Worse: it moved farther from the reference.",
}


def _where(moved: Direction, distance: Interval) -> str:
    if moved == "unclear":
        return "with no difference in distance found"
    times, low, high = (_ratio(v) for v in (distance.mean, distance.low, distance.high))
    often = "twice" if times == "2" else f"{times} times" if moved == "more" else f"{times} of"
    return f"at {often} the distance [{low}, {high}]"


def _ratio(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"
