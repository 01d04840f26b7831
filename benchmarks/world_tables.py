"""Tables and figures of what `worlds.py` has found.

    python benchmarks/world_tables.py methods methods.jsonl --figure docs/methods.png
    python benchmarks/world_tables.py worlds worlds.jsonl --figure docs/worlds.png --json docs/worlds.json

Prints Markdown. A number is the mean over seeds with a 95 % t interval; differences from DPO are
paired by seed. A gain "at 4 nats" is read between the finished trainings of a method with different
betas; "not reached" where a seed has none on either side. A run counts as lost if training warned,
was refused, or ends with more than 2 nats per token.
"""  # noqa: E501

import argparse
import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from world_settings import COMPARED, WORLDS, settings_of
from worlds import read_lines

from evaluation.report.charts import COLOURS
from evaluation.report.figures import Named, as_png, name_where_free

Record = dict[str, Any]
NATS = (1.0, 2.0, 4.0, 8.0)
NAMES = [setting.name for setting in COMPARED]
ALL = settings_of("worlds")
MOST_NATS_PER_TOKEN = 2.0
_LEARNED = "sparsepo-quickstart"


def gain_at(records: Sequence[Record], nats: float, what: str = "gain") -> float | None:
    """A method's gain at this distance, from its finished trainings with different betas.

    Between two of them, in the order of their KL, it is a straight line; None outside.
    """
    ends = sorted((r["points"][-1]["kl"], r["points"][-1][what]) for r in records if r["points"])
    for (near, low), (far, high) in pairwise(ends):
        if near <= nats <= far:
            return float(low + (high - low) * (nats - near) / ((far - near) or 1.0))
    return None


def is_lost(record: Record) -> bool:
    """Whether the training was refused, warned of, or ran away."""
    if record["failed"] or record["warnings"] or not record["points"]:
        return True
    last = record["points"][-1]
    return bool(last["kl"] > MOST_NATS_PER_TOKEN * max(1.0, last["tokens"]))


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, and the bounds of a 95 % t interval over the seeds; none of one seed."""
    found = np.asarray(values, dtype=np.float64)
    half = math.nan
    if len(found) > 1:
        spread = found.std(ddof=1) / math.sqrt(len(found))
        half = float(stats.t.ppf(0.975, len(found) - 1) * spread)
    mean = float(found.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(found)}


def shown(found: dict[str, float] | None, digits: int = 2, sign: str = "+") -> str:
    if found is None:
        return "not reached"
    mean, low, high = (f"{found[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return mean if math.isnan(found["low"]) else f"{mean} [{low}, {high}]"


def over_seeds(
    records: Sequence[Record], value: Callable[[Record], float | None]
) -> dict[str, float] | None:
    """The interval of a value, None where a seed has none."""
    values = [value(record) for record in records]
    known = [v for v in values if v is not None and not math.isnan(v)]
    return interval(known) if known and len(known) == len(values) else None


def last(name: str) -> Callable[[Record], float | None]:
    def value(record: Record) -> float | None:
        return float(record["points"][-1][name]) if record["points"] else None

    return value


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
    """For each number of nats a row per world: DPO's gain, and what each method adds to it."""
    numbers: dict[str, Any] = {}
    parts = []
    worlds = [w for w in WORLDS if any(r["world"] == w.name for r in records)]
    for nats in NATS:
        rows = []
        for world in worlds:
            own = [r for r in records if r["world"] == world.name]
            found = compared(own, nats)
            numbers.setdefault(world.name, {"dial": world.dial})[_at(nats)] = found
            rows.append(_world_row(world.name, own, found))
        head = ("world", "irrelevant", "dpo", *(f"{n} - dpo" for n in NAMES[1:]), "of the oracle's")
        parts.append(f"Gain {_at(nats)}\n\n{markdown(head, rows)}")
    for world in worlds:
        own = [r for r in records if r["world"] == world.name]
        numbers[world.name]["at the end"] = {s.name: _ended(own, s.name) for s in ALL}
    ends = [
        [s.name, *(_end_shown(numbers[w.name]["at the end"][s.name]) for w in worlds)] for s in ALL
    ]
    parts.append(
        "Gain and, in parentheses, nats at the end; means over seeds, and runs lost\n\n"
        + markdown(("method, beta", *(w.name for w in worlds)), ends)
    )
    return "\n\n".join(parts), numbers


def _at(nats: float) -> str:
    return f"at {nats:g} nats"


def compared(own: Sequence[Record], nats: float) -> dict[str, dict[str, float] | None]:
    """DPO's gain, and of every other method the difference from it, paired by seed.

    None where a seed's trainings do not reach as far, or none stays as near.
    """
    by_seed: dict[str, dict[int, float | None]] = {}
    for name in NAMES:
        mine = [r for r in own if r["setting"].rpartition(" ")[0] == name]
        by_seed[name] = {
            seed: gain_at([r for r in mine if r["seed"] == seed], nats)
            for seed in sorted({r["seed"] for r in mine})
        }
    base = by_seed[NAMES[0]]
    found: dict[str, dict[str, float] | None] = {}
    for name in NAMES:
        pairs = [(v, base.get(seed)) for seed, v in by_seed[name].items()]
        known = [(v, b) for v, b in pairs if v is not None and b is not None]
        differences = [v if name == NAMES[0] else v - b for v, b in known]
        found[name] = interval(differences) if known and len(known) == len(pairs) else None
    return found


def _world_row(world: str, own: Sequence[Record], found: dict[str, Any]) -> list[str]:
    shares = [1 - r["key_fraction"] for r in own if "key_fraction" in r]
    oracle, learned = found["oracle"], found[_LEARNED]
    is_clear = oracle is not None and learned is not None and oracle["low"] > 0
    return [
        world,
        f"{np.mean(shares):.0%}" if shares else "",
        *(shown(found[name]) for name in NAMES),
        f"{learned['mean'] / oracle['mean']:.0%}" if is_clear else "no clear gain",
    ]


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


def draw_worlds(numbers: dict[str, Any], path: Path, nats: float) -> None:
    """What each method adds to DPO's gain at equal KL, a panel for each dial."""
    import matplotlib.pyplot as plt

    dials = ("irrelevant", "noise", "length")
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained", sharey=True)
    for axes, dial in zip(panels, dials, strict=True):
        worlds = [w.name for w in _in_order(dial) if w.name in numbers]
        for at, name in enumerate(NAMES[1:]):
            points = [
                (numbers[world][_at(nats)][name], i + (at - 1.5) * 0.12)
                for i, world in enumerate(worlds)
                if numbers[world][_at(nats)][name]
            ]
            _bars(axes, points, COLOURS[at], name)
        axes.set_xticks(range(len(worlds)), worlds, fontsize=8, rotation=20)
        axes.axhline(0, color="#999", linewidth=0.8, linestyle=":")
        axes.set_title(dial, fontsize=10, loc="left")
    panels[0].set_ylabel(f"gain less DPO's at {nats:g} nats", fontsize=9)
    panels[0].legend(frameon=False, fontsize=8)
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
    parser.add_argument("--nats", type=float, default=2.0, choices=NATS, help="of the figure")
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
        draw_worlds(numbers, options.figure, options.nats)


if __name__ == "__main__":
    main()
