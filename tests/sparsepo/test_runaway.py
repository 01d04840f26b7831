"""A KL that grows for nothing is told of once; one that buys a lower loss is not."""

import json

from sparsepo import RunawayWatch


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


def told(losses: list[float], kl: list[float], watch: RunawayWatch | None = None) -> list[int]:
    """Steps, from 0, that give rise to a warning."""
    watch = watch or RunawayWatch()
    found = [
        watch.observe({"loss": a, "kl/reference_policy": b})
        for a, b in zip(losses, kl, strict=True)
    ]
    return [i for i, warnings in enumerate(found) if warnings]


def test_a_kl_that_buys_nothing_is_told_once_after_twenty_steps() -> None:
    """0.2 nats a step: the later ten steps stand 2 nats above the earlier ten.

    The figures are a lost run's of the quickstart.
    """
    assert told([0.693] * 60, [0.2 * i for i in range(60)]) == [19]
    lost = numbers(
        "0.694 0.694 0.688 0.691 0.694 0.693 0.693 0.693 0.693 0.693 0.693 0.689 0.686 0.684 0.685"
    )
    grown = [0.0, 1.1, 3.8, 4.3, 6.1, 7.3, 9.5, 10.5, 11.4, 13.6, 14.2, 14.3, 13.5, 13.2, 14.6]
    assert told([v for v in lost for _ in range(3)], [v for v in grown for _ in range(3)]) == [19]
    (line,) = RunawayWatch(
        {"window": [[0.7, 1.0]] * 10 + [[0.7, 4.0]] * 9, "has_told": False}
    ).observe({"loss": 0.7, "kl/reference_policy": 4.0})  # fmt: skip
    assert (
        "from 1.0 to 4.0 nats per response within 20 steps" in line
        and "(0.700 to 0.700)" in line
        and "lower the learning rate" in line
    )


def test_learning_a_still_policy_and_an_objective_without_kl_are_not_told_of() -> None:
    """1 % a ten steps is a fall; 1 nat is no growth; DPO reports no KL."""
    assert told([0.693 * 0.99 ** (i / 8) for i in range(60)], [0.2 * i for i in range(60)]) == []
    assert told([0.693] * 60, [0.09 * i for i in range(60)]) == []
    learnt = numbers(
        "0.693 0.686 0.721 0.667 0.668 0.524 0.455 0.444 0.418 0.407 0.346 0.317 0.267 0.387 0.286"
    )
    paid = [0.0, 0.6, 2.2, 3.5, 4.2, 3.9, 4.2, 5.6, 6.5, 7.2, 7.4, 7.7, 7.4, 6.7, 7.8]
    assert told([v for v in learnt for _ in range(3)], [v for v in paid for _ in range(3)]) == []
    watch = RunawayWatch()
    assert [watch.observe({"loss": 9.0}) for _ in range(40)] == [[]] * 40


def test_a_watch_goes_on_after_a_restart() -> None:
    losses, kl = [0.693] * 40, [0.2 * i for i in range(40)]
    watch = RunawayWatch()
    assert told(losses[:12], kl[:12], watch) == []
    again = RunawayWatch(json.loads(json.dumps(watch.state())))
    assert told(losses[12:], kl[12:], again) == [7]
    assert told(losses, kl, RunawayWatch(json.loads(json.dumps(again.state())))) == [], (
        "told before"
    )
