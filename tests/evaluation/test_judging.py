"""Verdicts of judges and of gates."""

import itertools

import pytest

from evaluation.gates import gate_failures
from evaluation.judging import joint_verdict, judge_messages, parse_verdict


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("[[A]]", "a"),
        ("At first [[A]], but then [[ B ]].", "b"),
        ("[[C]] equal", "tie"),
        ("A is better", None),
        ("[[D]] [A]", None),
        ("", None),
    ],
)
def test_the_last_mark_counts(answer: str, verdict: str | None) -> None:
    assert parse_verdict(answer) == verdict


def test_both_orders_must_agree() -> None:
    """All nine answers and both kinds of silence: a win needs (a, b), a loss (b, a)."""
    for first, second in itertools.product(("a", "b", "tie"), repeat=2):
        expected = {("a", "b"): "policy", ("b", "a"): "opponent"}.get((first, second), "tie")
        assert joint_verdict(first, second) == expected
    assert (
        joint_verdict(None, "b")
        == joint_verdict("a", None)
        == joint_verdict(None, None)
        == "failed"
    )


def test_replies_stand_in_their_places() -> None:
    text = judge_messages(" How? ", "first reply", " ")[1]["content"]
    assert (
        text.index("How?")
        < text.index("[Reply A]\nfirst reply")
        < text.index("[Reply B]\n(no reply)")
    )


def test_gates() -> None:
    """Each limit alone, at its edge and beyond it; a missing metric and nan fail; a release that
    lacks the metric fails.
    """
    values, release = (
        {"m/accuracy": 0.6, "m/kl": 5.0, "m/nan": float("nan")},
        {"m/accuracy": 0.65, "m/kl": 4.0},
    )
    assert not gate_failures("m/accuracy", values, minimum=0.6)
    assert not gate_failures("m/kl", values, maximum=5.0)
    assert not gate_failures("m/accuracy", values, release, max_drop=0.0500001)
    assert not gate_failures("m/kl", values, release, max_rise=1.0)
    messages = [
        gate_failures("m/accuracy", values, minimum=0.61)[0].message,
        gate_failures("m/kl", values, maximum=4.9)[0].message,
        gate_failures("m/accuracy", values, release, max_drop=0.04)[0].message,
        gate_failures("m/kl", values, release, max_rise=0.5)[0].message,
        gate_failures("m/acuracy", values, minimum=0)[0].message,
        gate_failures("m/accuracy", values, {}, max_drop=0.1)[0].message,
    ]
    assert messages == [
        "m/accuracy = 0.6 is below 0.61",
        "m/kl = 5 is above 4.9",
        "m/accuracy = 0.6 is 0.05 below the release's 0.65, allowed are 0.04",
        "m/kl = 5 is 1 above the release's 4, allowed are 0.5",
        "m/acuracy is not reported: did you mean 'm/accuracy'?",
        "m/accuracy is not reported by the release",
    ]
    assert gate_failures("m/nan", values, minimum=0)
    assert len(gate_failures("m/accuracy", values, release, minimum=0.9, max_drop=0.01)) == 2
