"""Tables and figures of what `worlds.py` has found.

    python benchmarks/world_tables.py methods methods.jsonl --figure docs/methods.png
    python benchmarks/world_tables.py worlds worlds.jsonl --figure docs/worlds.png --json docs/worlds.json

Prints Markdown. A number is the mean over seeds with a 95 % t interval; differences from DPO are
paired by seed. A gain at some distance is read between the finished trainings of a method with
different betas. "At equal distance" is the mean difference over the range of KL that both methods
span on a seed, spread evenly over its logarithm; seeds without such a range are left out, and n says
how many are left. "With each one's best beta" compares the beta of the highest mean gain of either
method, whatever its KL. A run counts as lost if training warned, was refused, or ends with more than
2 nats per token.
"""  # noqa: E501

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from world_comparison import (
    ALL,
    NAMES,
    Record,
    at_best,
    at_equal_distance,
    is_lost,
    last,
    over_seeds,
)
from world_settings import WORLDS, settings_of
from worlds import read_lines

from evaluation.report.charts import COLOURS
from evaluation.report.figures import Named, as_png, name_where_free

EQUAL, BEST = "at equal distance", "with each one's best beta"
_LEARNED = "sparsepo-quickstart"


def shown(found: dict[str, float] | None, digits: int = 2, sign: str = "+") -> str:
    if found is None:
        return "not reached"
    mean, low, high = (f"{found[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return mean if math.isnan(found["low"]) else f"{mean} [{low}, {high}]"


def methods_table(records: Sequence[Record]) -> tuple[str, dict[str, Any]]:
    """A row per method, by its gain; and the numbers."""
    rows, numbers = [], {}
    base = {r["seed"]: r for r in records if r["setting"] == "dpo"}
    for setting in settings_of("methods"):
        own = [r for r in records if r["setting"] == setting.name]
        if not own:
            continue
        found: dict[str, Any] = {
            "gain": over_seeds(own, last("gain")),
            "kl": over_seeds(own, last("kl")),
            "less_dpo": over_seeds(own, lambda r: _less(r, base)),
            "auc": over_seeds(own, lambda r: r.get("auc")),
            "zeros": over_seeds(own, lambda r: r.get("zeros")),
            "lost": sum(map(is_lost, own)),
            "seeds": len(own),
            "failed": sorted({r["failed"] for r in own if r["failed"]}),
        }
        numbers[setting.name] = found
        has_mask = setting.mask["kind"] != "none"
        cells = [
            f"`{setting.name}`",
            shown(found["gain"]),
            shown(found["less_dpo"]) if found["less_dpo"] and setting.name != "dpo" else "",
            shown(found["kl"], 1, ""),
            shown(found["auc"], 2, "") if has_mask and found["auc"] else "",
            f"{found['zeros']['mean']:.2f}" if has_mask and found["zeros"] else "",
            f"{found['lost']} of {found['seeds']}",
        ]
        rows.append((found["gain"]["mean"] if found["gain"] else -math.inf, cells))
    head = (
        "method", "reward gain", "less DPO's", "`kl/policy_reference`", "AUC", "zeros", "lost",
    )  # fmt: skip
    ranked = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
    return markdown(head, ranked), numbers


def _less(record: Record, base: dict[int, Record]) -> float | None:
    """A training's gain less that of DPO on the same seed."""
    other = base.get(record["seed"])
    if other is None or not (record["points"] and other["points"]):
        return None
    return float(record["points"][-1]["gain"] - other["points"][-1]["gain"])


def worlds_table(records: Sequence[Record]) -> tuple[str, dict[str, Any]]:
    """Each method against DPO in every world: at equal distance, and each with its best beta."""
    worlds = [w for w in WORLDS if any(r["world"] == w.name for r in records)]
    numbers: dict[str, Any] = {}
    for world in worlds:
        own = [r for r in records if r["world"] == world.name]
        shares = [1 - r["key_fraction"] for r in own if "key_fraction" in r]
        numbers[world.name] = {
            "dial": world.dial,
            "irrelevant": float(np.mean(shares)) if shares else math.nan,
            EQUAL: {name: at_equal_distance(own, name) for name in NAMES[1:]},
            BEST: {name: at_best(own, name) for name in NAMES},
            "at the end": {s.name: _ended(own, s.name) for s in ALL},
        }
    head = ("world", "irrelevant", "DPO alone", *NAMES[1:], "of the oracle's")
    parts = [
        f"Gain less DPO's {where}\n\n"
        + markdown(head, [_world_row(name, found, where) for name, found in numbers.items()])
        for where in (EQUAL, BEST)
    ]
    ends = [
        [s.name, *(_end_shown(found["at the end"][s.name]) for found in numbers.values())]
        for s in ALL
    ]
    parts.append(
        "Gain and, in parentheses, nats at the end; means over seeds, and runs lost\n\n"
        + markdown(("method, beta", *numbers), ends)
    )
    return "\n\n".join(parts), numbers


def _world_row(world: str, found: dict[str, Any], where: str) -> list[str]:
    irrelevant, base, of = found["irrelevant"], found[BEST][NAMES[0]], found[where]
    oracle, learned = of["oracle"], of[_LEARNED]
    is_clear = oracle is not None and learned is not None and oracle["low"] > 0
    alone = f"{base['gain']['mean']:+.2f} at {base['kl']['mean']:.1f}" if base else "not reached"
    return [
        world,
        "" if math.isnan(irrelevant) else f"{irrelevant:.0%}",
        alone,
        *(_difference_shown(of[name]) for name in NAMES[1:]),
        f"{learned['mean'] / oracle['mean']:.0%}" if is_clear else "no clear gain",
    ]


def _difference_shown(found: dict[str, Any] | None) -> str:
    if found is None:
        return "no common range"
    if "nats" in found:
        low, high = found["nats"]
        seeds = "" if found["n"] == found["of"] else f", {found['n']} seeds"
        return f"{shown(found)}, {low:.1f} to {high:.1f} nats{seeds}"
    return f"{shown(found)} at {found['kl']['mean']:.1f} nats"


def _ended(own: Sequence[Record], name: str) -> dict[str, Any]:
    mine = [r for r in own if r["setting"] == name]
    return {
        "gain": over_seeds(mine, last("gain")),
        "kl": over_seeds(mine, last("kl")),
        "lost": sum(map(is_lost, mine)),
    }


def _end_shown(found: dict[str, Any]) -> str:
    if found["gain"] is None:
        return ""
    lost = f", {found['lost']} lost" if found["lost"] else ""
    return f"{found['gain']['mean']:+.2f} ({found['kl']['mean']:.1f}){lost}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_methods(numbers: dict[str, Any], path: Path) -> None:
    """Every method's gain over its distance, with intervals of the gain; lost ones are crosses."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
    placed = {name: found for name, found in numbers.items() if found["gain"]}
    for found in placed.values():
        x, y = found["kl"]["mean"], found["gain"]["mean"]
        half = found["gain"]["high"] - y
        has_mask = found["auc"] is not None
        axes.errorbar(
            [x], [y], yerr=None if math.isnan(half) else [half], elinewidth=0.5, alpha=0.8,
            fmt="x" if found["lost"] else "o", markersize=4, color=COLOURS[0 if has_mask else 1],
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("kl/policy_reference, nats per response", fontsize=9)
    axes.set_ylabel("gain of the reward of samples", fontsize=9)
    axes.axhline(0, color="#999", linewidth=0.8, linestyle=":")
    axes.set_title(
        "blue: with a token mask; red: without; crosses: a seed was lost", fontsize=9, loc="left"
    )
    axes.set_ylim(-0.25, 1.0)
    axes.set_xlim(right=2.5 * axes.get_xlim()[1])  # room for names
    name_where_free(
        axes, [Named(name, f["kl"]["mean"], f["gain"]["mean"]) for name, f in placed.items()]
    )
    path.write_bytes(as_png(figure))


def draw_worlds(numbers: dict[str, Any], path: Path) -> None:
    """What each method adds to DPO's gain, a column for each dial."""
    import matplotlib.pyplot as plt

    dials = ("irrelevant", "noise", "length")
    figure, rows = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained", sharey="row")
    for where, panels in zip((EQUAL, BEST), rows, strict=True):
        for axes, dial in zip(panels, dials, strict=True):
            worlds = [w.name for w in _in_order(dial) if w.name in numbers]
            for at, name in enumerate(NAMES[1:]):
                points = [
                    (numbers[world][where][name], i + (at - 1.5) * 0.12)
                    for i, world in enumerate(worlds)
                    if numbers[world][where][name]
                ]
                _bars(axes, points, COLOURS[at], name)
            axes.set_xticks(range(len(worlds)), worlds, fontsize=8, rotation=20)
            axes.axhline(0, color="#999", linewidth=0.8, linestyle=":")
            axes.set_title(dial, fontsize=10, loc="left")
        panels[0].set_ylabel(f"gain less DPO's\n{where}", fontsize=9)
    rows[0][0].legend(frameon=False, fontsize=8)
    path.write_bytes(as_png(figure))


def _in_order(dial: str) -> list[Any]:
    """The worlds of a dial with the quickstart's in its place."""
    own = [w for w in WORLDS if w.dial == dial]
    place = {"irrelevant": 3, "noise": 0, "length": 1}[dial]
    return [*own[:place], WORLDS[0], *own[place:]]


def _bars(
    axes: Any, points: Sequence[tuple[dict[str, float], float]], colour: str, label: str
) -> None:
    means = [found["mean"] for found, _ in points]
    halves = [0.0 if math.isnan(f["low"]) else f["mean"] - f["low"] for f, _ in points]
    places = [place for _, place in points]
    style = {"fmt": "o", "markersize": 3, "color": colour, "capsize": 2, "linewidth": 1}
    axes.errorbar(places, means, yerr=halves, label=label, **style)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def rounded(value: Any) -> Any:
    """To four digits; null for the bounds of one seed."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("methods", "worlds"))
    parser.add_argument("lines", type=Path, help="file of worlds.py")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path, help="the table's numbers")
    options = parser.parse_args()
    records = read_lines(options.lines)
    if not records:
        raise SystemExit(f"{options.lines}: no record")
    make = methods_table if options.table == "methods" else worlds_table
    text, numbers = make(records)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(rounded(numbers), indent=1) + "\n")
    if options.figure is not None and options.table == "methods":
        draw_methods(numbers, options.figure)
    elif options.figure is not None:
        draw_worlds(numbers, options.figure)


if __name__ == "__main__":
    main()
