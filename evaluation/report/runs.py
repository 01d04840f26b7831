"""Methods beside each other: runs that differ in their seed alone are one."""

from collections.abc import Sequence
from typing import Any

from evaluation.comparison import Records, compared_by_seed, paired_difference
from evaluation.intervals import t_interval
from evaluation.report.view import RunView


def compared(runs: Sequence[RunView], value: str = "policy_reward") -> list[dict[str, Any]]:
    """Every method's rewards less the first one's, as rows: name, against, difference, over, note.

    Runs of one method are paired by their seeds with those of the first.
    """
    first, *others = _methods(runs)
    rows = []
    for other in others:
        row = _row(first, other, value)
        if row is not None:
            rows.append({"name": _named(other), "against": _named(first), **row})
    return rows


def over_seeds(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """Of every method with several seeds its mean reward gain: name, gain, seeds."""
    rows = []
    for method in _methods(runs):
        known = [run for run in method if "sentiment" in run.results]
        if len(known) > 1:
            gains = [run.results["sentiment"]["reward/gain"]["mean"] for run in known]
            seeds = ", ".join(str(run.seed) for run in known)
            name = _named(method)
            rows.append({"name": name, "gain": t_interval(gains).as_dict(), "seeds": seeds})
    return rows


def _methods(runs: Sequence[RunView]) -> list[list[RunView]]:
    """The runs by method, in the order of their first; of one seed twice, each is its own."""
    methods: dict[str, dict[Any, RunView]] = {}
    for number, run in enumerate(runs):
        known = methods.setdefault(run.method or f"run {number}", {})
        place = known if run.seed not in known else methods.setdefault(f"run {number}", {})
        place[run.seed] = run
    return [list(found.values()) for found in methods.values()]


def _row(first: list[RunView], other: list[RunView], value: str) -> dict[str, Any] | None:
    one, two = _by_seed(first), _by_seed(other)
    found = None if one is None or two is None else compared_by_seed(one, two, value)
    if found is None:
        difference = paired_difference(first[0].samples, other[0].samples, value)
        if difference is None:
            return None
        note = f"of {first[0].name} and {other[0].name} alone, which share no seed"
        return {"difference": difference.as_dict(), "over": "prompts", "note": note}
    names = {"first": _named(first), "second": _named(other)}
    notes = [
        f"left out: seed {', '.join(map(str, seeds))} of {names[which]} alone"
        for which, seeds in found.left_out.items()
    ]
    if found.varies_seeds:
        over = "seeds"
    else:
        over = "prompts"
        notes.insert(0, f"seeds were not varied: {found.seeds[0]} alone")
    return {"difference": found.difference.as_dict(), "over": over, "note": "; ".join(notes)}


def _by_seed(runs: list[RunView]) -> dict[int, Records] | None:
    """The samples of each seed; None where a run has none."""
    if any(run.seed is None for run in runs):
        return None
    return {run.seed: run.samples for run in runs if run.seed is not None}


def _named(runs: list[RunView]) -> str:
    return runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more seeds"
