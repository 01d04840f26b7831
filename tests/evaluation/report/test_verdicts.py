"""Verdicts are what intervals allow: by hand-made intervals, all cases; never by a mean alone."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
from report_views import view

from evaluation.comparison import paired_difference, paired_ratio, pooled_spread
from evaluation.intervals import Interval
from evaluation.report.verdicts import (
    AGREEMENT,
    REWARD,
    WINS,
    Verdict,
    compare,
    direction,
    paired_verdict,
    rate_size,
    size,
    unpaired_verdict,
)

# Of a spread of 1, so that a difference is Cohen's d.
REWARDS = {
    "more": (0.3, 0.6), "less": (-0.6, -0.3), "more, tiny": (0.02, 0.18),
    "less, tiny": (-0.18, -0.02), "more, perhaps": (0.1, 0.3), "same": (-0.1, 0.15),
    "unclear": (-0.3, 0.1),
}  # fmt: skip
DISTANCES = {"nearer": (0.5, 0.8), "farther": (1.7, 2.3), "unclear": (0.9, 1.2)}
TRADE = "A trade of reward for distance"


def interval(ends: tuple[float, float], n: int = 50) -> Interval:
    return Interval(sum(ends) / 2, *ends, n)


def verdict(reward: str, distance: str | None, **changed: Any) -> Verdict:
    ratio = None if distance is None else interval(DISTANCES[distance])
    given = {"difference": interval(REWARDS[reward]), "spread": 1.0, "distance": ratio} | changed
    return paired_verdict("one", "two", REWARD, **given)


@pytest.mark.parametrize(
    ("reward", "distance", "headline", "advice"),
    [
        ("more", "nearer", "more reward at 0.65 of the distance [0.5, 0.8]", "Better on both"),
        ("more", "unclear", "more reward, with no difference in distance found", "Better: nothing"),
        ("more", "farther", "more reward, at twice the distance [1.7, 2.3]", TRADE),
        ("less", "nearer", "less reward at 0.65 of the distance [0.5, 0.8]", TRADE),
        ("less", "unclear", "less reward, with no difference in distance found", "Worse: nothing"),
        ("less", "farther", "less reward, at twice the distance [1.7, 2.3]", "Worse on both"),
        (
            "more, tiny",
            "nearer",
            "more reward, a tiny difference, at 0.65 of the distance [0.5, 0.8]",
            "Better on both",
        ),
        (
            "less, tiny",
            "unclear",
            "less reward, a tiny difference, with no difference in distance found",
            "Worse: nothing",
        ),
        (
            "more, perhaps",
            "farther",
            "more reward, perhaps a tiny difference, at twice the distance [1.7, 2.3]",
            TRADE,
        ),
        ("same", "nearer", "the same reward at 0.65 of the distance [0.5, 0.8]", "Better: it st"),
        ("same", "unclear", "the same reward, with no difference in distance found", ""),
        ("same", "farther", "the same reward, at twice the distance [1.7, 2.3]", "Worse: it mov"),
        (
            "unclear",
            "nearer",
            "no difference in reward found, at 0.65 of the distance [0.5, 0.8]",
            "",
        ),
        ("unclear", "unclear", "no difference found", ""),
        (
            "unclear",
            "farther",
            "no difference in reward found, at twice the distance [1.7, 2.3]",
            "",
        ),
        ("more", None, "more reward", ""),
        ("less, tiny", None, "less reward, a tiny difference", ""),
        ("unclear", None, "no difference in reward found", ""),
    ],
)
def test_every_case(reward: str, distance: str | None, headline: str, advice: str) -> None:
    found = verdict(reward, distance)
    assert found.headline == headline
    assert found.advice.startswith(advice) and bool(found.advice) == bool(advice)


def test_an_interval_that_touches_zero_is_no_difference() -> None:
    """Whatever its mean: 0.9 in [0, 1.8] is no evidence; 0.001 in [0.0005, 0.002] is, of
    a tiny one.
    """
    wide = verdict("more", None, difference=Interval(0.9, 0.0, 1.8, 50))
    assert wide.headline == "no difference in reward found"
    sure = verdict("more", None, difference=Interval(0.001, 0.0005, 0.002, 50))
    assert sure.headline == "more reward, a tiny difference"
    assert direction(0.0, 1.0) == direction(-1.0, 0.0) == "unclear"


def test_what_is_tiny_is_told_by_the_spread() -> None:
    """The same difference of 0.3 to 0.6: large for a spread of 1, tiny for one of 10."""
    assert verdict("more", None, spread=1.0).headline == "more reward"
    assert verdict("more", None, spread=10.0).headline == "more reward, a tiny difference"
    assert "Cohen's d +0.045 [+0.030, +0.060]" in verdict("more", None, spread=10.0).numbers
    assert "Cohen" not in verdict("more", None, spread=0.0).numbers
    assert [size(*ends, 0.2) for ends in ((0.1, 0.19), (-0.3, -0.1), (0.2, 0.4))] == [
        "tiny",
        "perhaps tiny",
        "",
    ]


def test_few_prompts_have_no_verdict() -> None:
    """One prompt has an interval of no width, which would be certain of anything."""
    for n in (1, 9):
        found = verdict("more", "nearer", difference=interval((0.5, 0.5), n))
        assert found.headline == f"too few prompts for a verdict: {n} in common, 10 are needed"
    assert verdict("more", None, difference=interval((0.5, 0.5), 10)).headline == "more reward"


def test_a_distance_without_a_ratio_is_left_out() -> None:
    endless = Interval(2.0, 1.0, math.inf, 50)
    found = paired_verdict("one", "two", REWARD, interval((0.3, 0.6)), 1.0, endless)
    assert found.headline == "more reward" and "inf" not in found.numbers


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(0.52, 0.58, "tiny"), (0.52, 0.7, "perhaps tiny"), (0.62, 0.7, ""), (0.42, 0.48, "tiny")],
)
def test_rates_are_tiny_by_cohens_h(low: float, high: float, found: str) -> None:
    """h = 2 asin sqrt(p) - 2 asin sqrt(1/2): 0.2 at p = 0.5993."""
    assert 2 * math.asin(math.sqrt(0.5993)) - math.pi / 2 == pytest.approx(0.2, abs=1e-3)
    assert rate_size({"low": low, "high": high}) == found


def test_without_samples_in_common_intervals_that_are_apart_decide() -> None:
    rates = {
        "more": ({"mean": 0.5, "low": 0.4, "high": 0.6, "n": 50}, (0.65, 0.8), "more agreement"),
        "less": ({"mean": 0.5, "low": 0.4, "high": 0.6, "n": 50}, (0.2, 0.35), "less agreement"),
        "none": ({"mean": 0.5, "low": 0.4, "high": 0.6, "n": 50}, (0.55, 0.8), "no difference in"),
    }
    for first, (low, high), words in rates.values():
        second = {"mean": (low + high) / 2, "low": low, "high": high, "n": 50}
        assert unpaired_verdict("one", "two", AGREEMENT, first, second).headline.startswith(words)
        few = unpaired_verdict("one", "two", AGREEMENT, first, {**second, "n": 4}).headline
        assert few == "too few prompts for a verdict: 4, 10 are needed"


def samples(rewards: list[float], kl: list[float], verdicts: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"prompt {i}",
            "policy_reward": reward,
            "kl_policy_reference": distance,
            "chosen_verdict": said,
        }
        for i, (reward, distance, said) in enumerate(zip(rewards, kl, verdicts, strict=True))
    ]


def test_runs_are_compared_with_the_first_on_rewards_distance_and_wins() -> None:
    """60 prompts: the second has 0.5 more reward on each at half the distance, and ties where the
    first loses; the third has only other prompts, and so no verdict but that of its preferences.
    """
    draw = random.Random(3)
    rewards, kl = [draw.gauss(0, 1) for _ in range(60)], [draw.uniform(5, 9) for _ in range(60)]
    shown = view("one")
    rate = {"accuracy/implicit_reward": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 50}}
    first = replace(
        shown,
        samples=samples(rewards, kl, ["opponent"] * 60),
        results={**shown.results, "preference": rate},
    )
    better = samples([r + 0.5 for r in rewards], [k / 2 for k in kl], ["tie"] * 60)
    elsewhere = [{**sample, "prompt": f"other {i}"} for i, sample in enumerate(better)]
    found = compare(
        [
            first,
            replace(first, name="two", samples=better),
            replace(first, name="three", samples=elsewhere),
        ]
    )
    assert [(v.run, v.against, v.headline.split(" [")[0]) for v in found] == [
        ("two", "one", "more reward at 0.5 of the distance"),
        ("two", "one", "more wins against the chosen responses at 0.5 of the distance"),
        (
            "three",
            "one",
            f"no difference in {AGREEMENT.noun} found: their intervals overlap",
        ),
    ]
    assert WINS.key not in first.samples[0]


def test_samples_at_other_temperatures_are_not_in_a_verdict() -> None:
    """The tables show the first temperature; samples at a second one would turn the verdict."""
    rewards = [i / 60 for i in range(60)]
    cold = [{**s, "temperature_number": 0} for s in samples(rewards, rewards, ["tie"] * 60)]
    hot = [{**s, "temperature": 0.5, "temperature_number": 1} for s in cold]
    first = replace(view("one"), samples=[*cold, *hot])
    raised = [{**s, "policy_reward": s["policy_reward"] + 9} for s in hot]
    (reward, *_) = compare([first, replace(first, name="two", samples=[*cold, *raised])])
    assert reward.headline == "the same reward, with no difference in distance found"
    assert "+0.000 [+0.000, +0.000]" in reward.numbers


def test_ratio_and_spread_by_hand() -> None:
    """Means 2 and 3 give 1.5; variances 2 and 8 over two prompts give sqrt(5). Without the first
    prompt the ratio is 5/3, without the second 1, so its error is 1/3, times Student's 12.706. A
    ratio of values that are everywhere twice the others is 2 whatever is left out.
    """
    first = [{"prompt": "a", "x": 1.0}, {"prompt": "b", "x": 3.0}, {"prompt": "c", "x": 9.0}]
    second = [{"prompt": "b", "x": 5.0}, {"prompt": "a", "x": 1.0}]
    ratio = paired_ratio(first, second, "x")
    assert ratio is not None and (ratio.mean, ratio.n) == (1.5, 2)
    assert (ratio.low, ratio.high) == pytest.approx((1.5 - 12.7062 / 3, 1.5 + 12.7062 / 3), 1e-4)
    assert pooled_spread(first, second, "x") == pytest.approx(math.sqrt(5))
    doubled = [{**record, "x": 2 * record["x"]} for record in first]
    twice = paired_ratio(first, doubled, "x")
    assert twice is not None and twice.n == 3
    assert (twice.mean, twice.low, twice.high) == pytest.approx((2, 2, 2), rel=1e-12)
    assert paired_ratio([{"prompt": "a", "x": 0.0}], second, "x") is None
    assert paired_ratio(first, [], "x") is None and paired_difference(first, [], "x") is None
    assert pooled_spread(first, second[:1], "x") == 0.0
