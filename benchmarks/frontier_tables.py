"""Tables and the figure of what `frontier_sparsity.py` has found.

    python benchmarks/frontier_tables.py frontier.jsonl --figure docs/frontier-sparsity.png \\
        --json docs/frontier-sparsity.json

Prints Markdown: the pilot, the fronts, their order, HH, what is missing. The pilot has one seed:
its 95 % intervals are over held-out prompts, and a reward at a distance lies on a method's own
Pareto front. The fronts have several: a seed's reward at a distance is read on the straight line
between its trials, differences are paired by seed, intervals are Student's over the seeds.
"not reached": no trial of a seed is as near or none as far. Zeros are those of the last step.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from frontier_schedule import Schedule, distances, front_betas, of_setting, trials_of
from frontier_settings import BY_NAME, DEFAULTS, HH_BETAS, NATS, SEEDS, SETTINGS, Task
from world_comparison import Record, gain_at, interval, last, over_seeds
from world_tables import markdown, rounded, shown
from worlds import read_lines

from evaluation.equal_distance import Measured, compare_at
from evaluation.report.charts import COLOURS
from evaluation.report.figures import as_png

Found = dict[str, float] | None
_AT = [f"{nats:g} nats" for nats in NATS]


def about(records: Sequence[Record], what: str) -> Record:
    """The last line that tells of it; empty without one."""
    found = [record for record in records if record.get("about") == what]
    return found[-1] if found else {}


def measured(record: Record) -> Measured:
    values = record["by_prompt"]
    pairs = zip(values["reward"], values["kl"], strict=True)
    by_prompt = {str(number): pair for number, pair in enumerate(pairs)}
    point = record["points"][-1]
    return Measured(point["kl"], point["reward"], by_prompt)


def pilot_table(records: Sequence[Record]) -> tuple[str, dict[str, Any]]:
    """A row per method of the pilot: its reward at each distance, zeros, betas, nats."""
    first = [r for r in trials_of(records) if r["seed"] == SEEDS["imdb"][0]]
    own = {s.name: of_setting(first, s.name) for s in SETTINGS}
    trials = {n: [measured(r) for r in found if r["points"]] for n, found in own.items()}
    levels = compare_at({name: found for name, found in trials.items() if found}, NATS)
    numbers: dict[str, Any] = {}
    rows = []
    for name in (name for name, found in trials.items() if found):
        at: dict[str, Any] = {}
        for where, level in zip(_AT, levels, strict=True):
            reached, less = level.methods[name], level.differences.get(name)
            at[where] = vars(reached) | {"less_first": None if less is None else less.as_dict()}
        ends = distances(own[name])
        numbers[name] = {
            "family": BY_NAME[name].family,
            "reward": at,
            "zeros": _range([r["training_zeros"]["reward"] for r in own[name] if r["points"]]),
            "kl": _range([kl for kl, _ in ends]),
            "betas": sorted(beta for _, beta in ends),
            "lost": sum(bool(r["failed"]) for r in own[name]),
            "warned": sum(bool(r.get("warnings")) for r in own[name]),
        }
        rows.append(_pilot_row(name, numbers[name]))
    head = ("method", *(f"reward at {at}" for at in _AT), "zeros", "nats", "betas", "warned")
    return markdown(head, rows), numbers


def _pilot_row(name: str, found: dict[str, Any]) -> list[str]:
    rewards = [
        f"{at['gain']:.3f} [{at['low']:.3f}, {at['high']:.3f}]"
        if at["gain"] is not None and at["low"] is not None
        else at["why"]
        for at in found["reward"].values()
    ]
    zeros = "" if found["zeros"] is None else "{:.2f} to {:.2f}".format(*found["zeros"])
    betas = ", ".join(f"{beta:g}" for beta in found["betas"])
    warned = f"{found['warned']} of {len(found['betas'])}"
    if found["lost"]:
        warned += f", {found['lost']} lost"
    return [f"`{name}`", *rewards, zeros, "{:.1f} to {:.1f}".format(*found["kl"]), betas, warned]


def _range(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [min(known), max(known)] if known else None


def seeds_of(records: Sequence[Record], name: str) -> dict[int, list[Record]]:
    """The seeds on which all trials of a method's front are there: seed -> its trials."""
    own = of_setting(records, name)
    pilot = [r for r in own if r["seed"] == SEEDS["imdb"][0]]
    betas = set(front_betas(distances(pilot)))
    found = {}
    for seed in SEEDS["imdb"]:
        there = [r for r in own if r["seed"] == seed and r["beta"] in betas]
        if betas and {r["beta"] for r in there} == betas:
            found[seed] = there
    return found


def fronts(records: Sequence[Record]) -> dict[str, Any]:
    """Of every method with more than one seed: its reward at each distance, and less DPO's.

    A seed that does not reach a distance leaves a method without a number there.
    """
    methods = {name: seeds for name in BY_NAME if len(seeds := seeds_of(records, name)) > 1}
    at = {
        name: {seed: [gain_at(found, n, "reward") for n in NATS] for seed, found in seeds.items()}
        for name, seeds in methods.items()
    }
    base = at.get("dpo", {})
    numbers: dict[str, Any] = {}
    for name, seeds in at.items():
        every = [r for found in methods[name].values() for r in found]
        numbers[name] = {
            "seeds": sorted(seeds),
            "reward": {w: _over([v[i] for v in seeds.values()]) for i, w in enumerate(_AT)},
            "less_dpo": _less_dpo(seeds, base),
            "less_dpo_unseen": _less_dpo(
                {s: v for s, v in seeds.items() if s != SEEDS["imdb"][0]}, base
            ),
            "zeros": _range([r["training_zeros"]["reward"] for r in every if r["points"]]),
            "first": {w: _times_first(at, i, name) for i, w in enumerate(_AT)},
        }
    return numbers


def _less_dpo(
    seeds: dict[int, list[float | None]], base: dict[int, list[float | None]]
) -> dict[str, Found]:
    """At each distance a method's reward less DPO's, over the seeds that both have."""
    shared = [seed for seed in seeds if seed in base]
    return {
        where: _over([_less(seeds[seed][i], base[seed][i]) for seed in shared])
        for i, where in enumerate(_AT)
    }


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _over(values: Sequence[float | None]) -> Found:
    known = [value for value in values if value is not None]
    return interval(known) if known and len(known) == len(values) else None


def _times_first(at: dict[str, dict[int, list[float | None]]], place: int, name: str) -> list[int]:
    """On how many seeds a method has the highest reward, of those on which all have a number."""
    seeds = set.intersection(*(set(seeds) for seeds in at.values()))
    shared = []
    for seed in seeds:
        values = {other: found[seed][place] for other, found in at.items()}
        known = {other: value for other, value in values.items() if value is not None}
        if name in known and len(known) > 1:
            shared.append(max(known, key=lambda other: known[other]) == name)
    return [sum(shared), len(shared)]


def fronts_table(numbers: dict[str, Any]) -> str:
    rows = [
        [
            f"`{name}`",
            *(shown(found["reward"][at], 3, "") for at in _AT),
            "" if found["zeros"] is None else "{:.2f} to {:.2f}".format(*found["zeros"]),
            str(len(found["seeds"])),
        ]
        for name, found in numbers.items()
    ]
    return markdown(("method", *(f"reward at {at}" for at in _AT), "zeros", "seeds"), rows)


def ranking(numbers: dict[str, Any]) -> str:
    """For each distance the methods by their reward less DPO's, paired by seed."""
    rows = []
    for at in _AT:
        known = {n: f["less_dpo"][at] for n, f in numbers.items() if f["less_dpo"][at]}
        for place, name in enumerate(sorted(known, key=lambda n: -known[n]["mean"]), start=1):
            won, number = numbers[name]["first"][at]
            own = [known[name], numbers[name]["less_dpo_unseen"][at]]
            less = ["", ""] if name == "dpo" else [shown(found, 3) for found in own]
            rows.append([at, str(place), f"`{name}`", *less, f"{won} of {number}"])
        unknown = [f"`{name}`" for name in numbers if name not in known]
        if unknown:
            rows.append([at, "", ", ".join(unknown), "not reached on every seed", "", ""])
    head = (
        "at", "place", "method", "less DPO's, paired by seed", "without the pilot's seed",
        "first on",
    )  # fmt: skip
    return markdown(head, rows)


def hh_table(records: Sequence[Record]) -> tuple[str, dict[str, Any]]:
    """A row per method and beta of HH: means over the seeds."""
    names = {"accuracy": 3, "kl": 2, "win/start": 3, "win/chosen": 3}
    numbers: dict[str, Any] = {}
    rows = []
    for name, betas in HH_BETAS.items():
        for beta in betas:
            own = [r for r in of_setting(records, name, "hh") if r["beta"] == beta and r["points"]]
            if not own:
                continue
            found: dict[str, Any] = {key: over_seeds(own, last(key)) for key in names}
            found["zeros"] = _range([r["training_zeros"]["reward"] for r in own])
            found["seeds"] = len(own)
            numbers.setdefault(name, {})[f"{beta:g}"] = found
            cells = [shown(found[key], digits, "") for key, digits in names.items()]
            zeros = "" if found["zeros"] is None else "{:.2f} to {:.2f}".format(*found["zeros"])
            rows.append([f"`{name}`", f"{beta:g}", *cells, zeros, str(len(own))])
    head = (
        "method", "beta", "accuracy, implicit reward", "`kl/policy_reference`",
        "wins against the start", "wins against chosen", "zeros", "seeds",
    )  # fmt: skip
    return markdown(head, rows), numbers


def scorers_text(records: Sequence[Record]) -> str:
    """What is known of the two scorers."""
    lines = []
    scorer, judge, start = (about(records, what) for what in ("scorer", "judge", "start"))
    if scorer:
        lines.append(
            f"Sentiment scorer: accuracy {shown(scorer['accuracy'], 3, '')} on snippets of "
            f"{scorer['tried_reviews']:,} reviews that it has not seen; VADER "
            f"{shown(scorer['vader_accuracy'], 3, '')}."
        )
    if start:
        lines.append(f"Reward of the starting model: {shown(start['reward'], 3, '')}.")
    if judge:
        lines.append(
            f"Reward model: accuracy {shown(judge['accuracy'], 3, '')} on "
            f"{judge['tried_pairs']:,} held-out pairs, trained on {judge['pairs']:,} others."
        )
    return "\n".join(lines)


def missing_text(records: Sequence[Record]) -> str:
    """Names what was planned and is not there."""
    missing = Schedule(records).missing()
    if not missing:
        return "Nothing is missing."
    by_method: dict[tuple[Task, str], list[str]] = {}
    for trial in missing:
        told = f"beta {trial.beta:g} seed {trial.seed}"
        by_method.setdefault((trial.task, trial.setting), []).append(told)
    told = [f"{task} `{name}`: {'; '.join(m)}" for (task, name), m in by_method.items()]
    return f"Missing, {len(missing)} trials:\n\n" + "\n".join(f"* {line}" for line in told)


def draw(records: Sequence[Record], numbers: dict[str, Any], path: Path) -> None:
    """The fronts with intervals over the seeds, and HH's accuracy over its KL."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    shown_methods = list(numbers["fronts"]) or [n for n in ("dpo", *DEFAULTS) if n in BY_NAME]
    for at, name in enumerate(shown_methods):
        own = seeds_of(records, name)
        by_beta = _by_beta([r for found in own.values() for r in found])
        # Bars of two or three seeds would be all that the figure shows.
        has_all = len(own) == len(SEEDS["imdb"])
        label = name if has_all else f"{name} ({len(own)} seeds)"
        _line(left, by_beta, "reward", COLOURS[at % len(COLOURS)], label, has_all)
    for at, name in enumerate(HH_BETAS):
        by_beta = _by_beta([r for r in of_setting(records, name, "hh") if r["points"]])
        _line(right, by_beta, "accuracy", COLOURS[at % len(COLOURS)], name)
    left.set_ylabel("probability of a positive review", fontsize=9)
    right.set_ylabel("held-out accuracy of the implicit reward", fontsize=9)
    for axes, title in ((left, "IMDB"), (right, "HH")):
        axes.set_title(f"{title}: means and 95 % t intervals over seeds", fontsize=9, loc="left")
        axes.set_xlabel("kl/policy_reference, nats per response", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        if axes.has_data():
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            ticks = [2.0**power for power in range(-4, 8) if low <= 2.0**power <= high]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xticks([], minor=True)
            axes.legend(frameon=False, fontsize=8)
    path.write_bytes(as_png(figure))


def _by_beta(records: Sequence[Record]) -> list[list[Record]]:
    betas = sorted({record["beta"] for record in records})
    return [[r for r in records if r["beta"] == beta and r["points"]] for beta in betas]


def _line(
    axes: Any, by_beta: Sequence[list[Record]], what: str, colour: str, label: str,
    has_bars: bool = True,
) -> None:  # fmt: skip
    points = []
    for found in filter(None, by_beta):
        x, y = (interval([r["points"][-1][key] for r in found]) for key in ("kl", what))
        halves = [np.nan_to_num(v["high"] - v["mean"]) if has_bars else 0.0 for v in (x, y)]
        points.append((x["mean"], y["mean"], *halves))
    if points:
        x, y, wide, high = zip(*sorted(points), strict=True)
        style = {"fmt": "o-", "markersize": 3, "capsize": 2, "linewidth": 1}
        axes.errorbar(x, y, xerr=wide, yerr=high, color=colour, label=label, **style)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lines", type=Path, help="file of frontier_sparsity.py")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path, help="the tables' numbers")
    options = parser.parse_args(given)
    records = read_lines(options.lines)
    if not trials_of(records):
        raise SystemExit(f"{options.lines}: no trial")
    pilot, of_pilot = pilot_table(records)
    of_fronts = fronts(records)
    hh, of_hh = hh_table(records)
    numbers = {
        "scorers": {what: about(records, what) for what in ("scorer", "judge", "start")},
        "pilot": of_pilot, "fronts": of_fronts, "hh": of_hh,
        "missing": [trial.name for trial in Schedule(records).missing()],
    }  # fmt: skip
    for title, text in (
        ("Scorers", scorers_text(records)),
        ("Pilot, one seed", pilot),
        ("Fronts", fronts_table(of_fronts)),
        ("Order", ranking(of_fronts)),
        ("HH", hh),
        ("Missing", missing_text(records)),
    ):
        print(f"#### {title}\n\n{text}\n")
    if options.json is not None:
        options.json.write_text(json.dumps(rounded(numbers), indent=1) + "\n")
    if options.figure is not None:
        draw(records, numbers, options.figure)


if __name__ == "__main__":
    main()
