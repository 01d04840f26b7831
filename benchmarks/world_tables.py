"""Tables and figures of what `worlds.py` has found.

    python benchmarks/world_tables.py methods methods.jsonl --figure docs/methods.png
    python benchmarks/world_tables.py worlds worlds.jsonl --figure docs/worlds.png --json docs/worlds.json

Prints Markdown. A number is the mean over seeds with a 95 % t interval. "at 4 nats" is read from a
training's own points, from one to the next as a straight line, where it first comes that far; "not
reached" where a seed does not. A run counts as lost if training warned, was refused, or ends with
more than 2 nats per token.
"""  # noqa: E501

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from world_settings import WORLDS, settings_of
from worlds import read_lines

from evaluation.report.figures import COLOURS, as_png, literal

Record = dict[str, Any]
NATS = (2.0, 4.0, 8.0)
MOST_NATS_PER_TOKEN = 2.0
_LEARNED = "sparsepo-quickstart"


def gain_at(record: Record, nats: float) -> float | None:
    """Gain where the training first is this far from the reference; None if it never is."""
    before_kl, before_gain = 0.0, 0.0
    for point in record["points"]:
        if point["kl"] >= nats:
            share = (nats - before_kl) / (point["kl"] - before_kl)
            return float(before_gain + share * (point["gain"] - before_gain))
        before_kl, before_gain = point["kl"], point["gain"]
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
    for setting in settings_of("methods"):
        own = [r for r in records if r["setting"] == setting.name]
        if not own:
            continue
        found: dict[str, Any] = {
            "gain": over_seeds(own, last("gain")),
            "kl": over_seeds(own, last("kl")),
            "gain_at_4": over_seeds(own, lambda r: gain_at(r, 4.0)),
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
            _described(setting.objective, setting.mask),
            shown(found["gain"]),
            shown(found["kl"], 1, ""),
            shown(found["gain_at_4"]),
            shown(found["auc"], 2, "") if has_mask and found["auc"] else "",
            f"{found['zeros']['mean']:.2f}" if has_mask and found["zeros"] else "",
            f"{found['lost']} of {found['seeds']}",
        ]
        rows.append((found["gain"]["mean"] if found["gain"] else -math.inf, cells))
    head = (
        "method", "objective; mask", "reward gain", "`kl/policy_reference`", "gain at 4 nats",
        "AUC", "zeros", "lost",
    )  # fmt: skip
    ranked = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
    return markdown(head, ranked), numbers


def _described(objective: dict[str, Any], mask: dict[str, Any]) -> str:
    def said(section: dict[str, Any], name: str) -> str:
        others = {k: v for k, v in section.items() if k != name}
        if "of" in others:
            terms = (f"{t['weight']:g} {t.get('loss', t['name'])}" for t in others.pop("of"))
            others[" + "] = " + ".join(terms)
        values = ", ".join(f"{k} {v}" for k, v in others.items())
        return f"{section[name]}{f' ({values})' if values else ''}"

    text = said(objective, "name")
    return text if mask["kind"] == "none" else f"{text}; {said(mask, 'kind')}"


def worlds_table(records: Sequence[Record]) -> tuple[str, dict[str, Any]]:
    """For each number of nats a row per world: DPO's gain, and what each method adds to it."""
    names = [s.name for s in settings_of("worlds")]
    numbers: dict[str, Any] = {}
    parts = []
    for nats in (None, *NATS):
        rows = []
        for world in WORLDS:
            own = [r for r in records if r["world"] == world.name]
            if not own:
                continue
            found = compared(own, names, nats)
            numbers.setdefault(world.name, {"dial": world.dial})[_at(nats)] = found
            rows.append(_world_row(world.name, own, found, names))
        head = ("world", "irrelevant", "dpo", *(f"{n} - dpo" for n in names[1:]), "of the oracle's")
        parts.append(f"Gain {_at(nats)}\n\n{markdown(head, rows)}")
    lost = [[name, *(str(_lost(records, world.name, name)) for world in WORLDS)] for name in names]
    parts.append(
        "KL at the end, nats, mean over seeds; and runs lost\n\n"
        + markdown(("method", *(w.name for w in WORLDS)), lost)
    )
    return "\n\n".join(parts), numbers


def _at(nats: float | None) -> str:
    return "at the end of training" if nats is None else f"at {nats:g} nats"


def compared(
    own: Sequence[Record], names: Sequence[str], nats: float | None
) -> dict[str, dict[str, float] | None]:
    """DPO's gain, and of every other method the difference from it, paired by seed."""

    def value(record: Record) -> float | None:
        return last("gain")(record) if nats is None else gain_at(record, nats)

    by_seed = {name: {r["seed"]: value(r) for r in own if r["setting"] == name} for name in names}
    base = by_seed[names[0]]
    found: dict[str, dict[str, float] | None] = {}
    for name in names:
        pairs = [(v, base.get(seed)) for seed, v in by_seed[name].items()]
        if not pairs or any(v is None or b is None for v, b in pairs):
            found[name] = None
        elif name == names[0]:
            found[name] = interval([v for v, _ in pairs if v is not None])
        else:
            found[name] = interval([v - b for v, b in pairs if v is not None and b is not None])
    return found


def _world_row(
    world: str, own: Sequence[Record], found: dict[str, Any], names: Sequence[str]
) -> list[str]:
    shares = [1 - r["key_fraction"] for r in own if "key_fraction" in r]
    oracle, learned = found["oracle"], found[_LEARNED]
    is_clear = oracle is not None and learned is not None and oracle["low"] > 0
    return [
        world,
        f"{np.mean(shares):.0%}" if shares else "",
        *(shown(found[name]) for name in names),
        f"{learned['mean'] / oracle['mean']:.0%}" if is_clear else "no clear gain",
    ]


def _lost(records: Sequence[Record], world: str, name: str) -> str:
    own = [r for r in records if r["world"] == world and r["setting"] == name]
    if not own:
        return ""
    kl, lost = over_seeds(own, last("kl")), sum(map(is_lost, own))
    return f"{kl['mean']:.1f}" * (kl is not None) + (f", {lost} lost" if lost else "") if kl else ""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_methods(numbers: dict[str, Any], path: Path) -> None:
    """Every method's gain at the end and at 4 nats, with intervals."""
    import matplotlib.pyplot as plt

    names = sorted(
        (name for name, found in numbers.items() if found["gain"]),
        key=lambda name: numbers[name]["gain"]["mean"],
    )
    figure, axes = plt.subplots(figsize=(7, 0.19 * len(names) + 1), layout="constrained")
    for key, colour, label, shift in (
        ("gain", COLOURS[0], "at the end", 0.15),
        ("gain_at_4", COLOURS[1], "at 4 nats", -0.15),
    ):
        kept = [(i, numbers[n][key]) for i, n in enumerate(names) if numbers[n][key]]
        _bars(axes, [(found, i + shift) for i, found in kept], colour, label, is_lying=True)
    axes.set_yticks(range(len(names)), [literal(name) for name in names], fontsize=7)
    axes.set_xlabel("gain of the reward of samples", fontsize=9)
    axes.axvline(0, color="#999", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False, fontsize=8)
    path.write_bytes(as_png(figure))


def draw_worlds(numbers: dict[str, Any], path: Path, nats: float) -> None:
    """What each method adds to DPO's gain at equal KL, a panel for each dial."""
    import matplotlib.pyplot as plt

    names = [s.name for s in settings_of("worlds")][1:]
    dials = ("irrelevant", "noise", "length")
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained", sharey=True)
    for axes, dial in zip(panels, dials, strict=True):
        worlds = [w.name for w in _in_order(dial) if w.name in numbers]
        for at, name in enumerate(names):
            points = [
                (numbers[world][_at(nats)][name], i + (at - 1.5) * 0.12)
                for i, world in enumerate(worlds)
                if numbers[world][_at(nats)][name]
            ]
            _bars(axes, points, COLOURS[at], name, is_lying=False)
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
    axes: Any,
    points: Sequence[tuple[dict[str, float], float]],
    colour: str,
    label: str,
    is_lying: bool,
) -> None:
    means = [found["mean"] for found, _ in points]
    halves = [0.0 if math.isnan(f["low"]) else f["mean"] - f["low"] for f, _ in points]
    places = [place for _, place in points]
    style = {"fmt": "o", "markersize": 3, "color": colour, "capsize": 2, "linewidth": 1}
    if is_lying:
        axes.errorbar(means, places, xerr=halves, label=label, **style)
    else:
        axes.errorbar(places, means, yerr=halves, label=label, **style)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("methods", "worlds"))
    parser.add_argument("lines", type=Path, help="file of worlds.py")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path, help="the table's numbers")
    parser.add_argument("--nats", type=float, default=4.0, choices=NATS, help="of the figure")
    options = parser.parse_args()
    records = read_lines(options.lines)
    if not records:
        raise SystemExit(f"{options.lines}: no record")
    make = methods_table if options.table == "methods" else worlds_table
    text, numbers = make(records)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    if options.figure is not None and options.table == "methods":
        draw_methods(numbers, options.figure)
    elif options.figure is not None:
        draw_worlds(numbers, options.figure, options.nats)


if __name__ == "__main__":
    main()
