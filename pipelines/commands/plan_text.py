"""A plan in sentences and a small table."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.storage import shown_seconds


def plan_lines(found: Mapping[str, Any], told: Mapping[str, str]) -> list[str]:
    """What a terminal shows of a run's plan.

    Args:
        found: as `run_plan` gives it. told: title of a stage -> what it will make, in order.
    """
    data, total = found.get("data", {}), found["total"]
    lines = [f"{total['recipe']} -> {total['run_dir']}", ""]
    rows = []
    for title, what in told.items():
        part = found[title]
        is_done = part.get("done", False)
        rows.append(
            (
                {"data": "prepare"}.get(title, title),
                f"done before: {what}" if is_done else what,
                "-" if is_done else shown_seconds(part.get("seconds", 0.0)),
                shown_bytes(part.get("disk_bytes", 0)),
                f"{part['memory_gib']:.1f} GiB" if "memory_gib" in part and not is_done else "",
            )
        )
    rows.append(("all", "", shown_seconds(total["seconds"]), shown_bytes(total["disk_bytes"]), ""))
    lines += table(("stage", "what it makes", "time", "disk", "memory"), rows)
    lines.append("")
    if data and not data["exact"]:
        lines.append(
            "Pairs and tokens are estimated from a part of the rows; all counted once prepared."
        )
    lines += [_assumed(total)]
    lines += [f"{title}: {line}" for title, line in _notes(found)]
    lines += [f"warning: {line}" for line in total["warnings"]]
    lines.append(
        "Nothing was run or written. `run` checks the same; what it would refuse, this refuses."
    )
    return lines


def sweep_plan_lines(found: Mapping[str, Any]) -> list[str]:
    """What a terminal shows of a sweep's plan."""
    seeds = found["seeds_per_trial"]
    repeated = f" x {seeds} seeds = {found['runs']} runs" if seeds > 1 else ""
    at_once, shard = found["at_once"], found["shard"]
    part = f" of {found['trials_of_all']}: shard {shard}" if shard else ""
    lines = [
        f"{found['total']['recipe']} -> {found['total']['run_dir']}",
        f"{found['trials']} trials{part}{repeated}, {at_once} at a time; searched: "
        + ", ".join(found["searched"]),
        "",
    ]
    rows = []
    for store in found["stores"]:
        pairs = ", ".join(f"{count} {split}" for split, count in store["pairs"].items() if count)
        features = ", ".join(store["features"]) or "nothing stored"
        rows.append(
            (
                "pairs, reference",
                f"{pairs} pairs; {features}; for {store['points']} points",
                shown_seconds(store["seconds"]),
                shown_bytes(store["disk_bytes"]),
                f"{store['memory_gib']:.1f} GiB",
            )
        )
    train, disk = found["train"], found["disk_bytes_per_run"]
    each = "train and evaluate" if found["evaluates"] else "train"
    rows.append(
        (
            "a trial",
            f"{each}: {_shown_range(train['steps'])} steps",
            shown_seconds(found["seconds_per_run"]),
            shown_bytes(disk),
            f"{_shown_range(train['memory_gib'])} GiB",
        )
    )
    rows.append(
        (
            "all trials",
            f"{found['runs']} runs, {at_once} at a time",
            shown_seconds(found["trials_seconds"]),
            shown_bytes(disk * found["runs"]),
            "",
        )
    )
    total = found["total"]
    rows.append(("all", "", shown_seconds(total["seconds"]), shown_bytes(total["disk_bytes"]), ""))
    lines += table(("part", "what it makes", "time", "disk", "memory"), rows)
    lines += ["", _assumed(total)]
    lines += [f"warning: {line}" for line in total["warnings"]]
    lines.append(
        "Nothing was run or written. `tune` checks the same; what it would refuse, this refuses."
    )
    return lines


def merge_plan_lines(found: Mapping[str, Any]) -> list[str]:
    """What a terminal shows of a merge's plan."""
    total, points = found["total"], found["points"]
    told = {
        "points": f"{points['left']} of {points['points']} weights and forms, each "
        f"{points['samples']} samples of {points['prompts']} prompts"
    }
    if maps := found.get("maps"):
        told = {"maps": f"{', '.join(maps['forms'])}: fitted on {maps['pairs']} pairs"} | told
    lines = [f"{total['recipe']} -> {total['run_dir']}", f"merges {', '.join(found['models'])}", ""]
    rows = [
        (
            part,
            f"done before: {what}" if found[part]["done"] else what,
            "-" if found[part]["done"] else shown_seconds(found[part]["seconds"]),
            shown_bytes(found[part]["disk_bytes"]),
            "" if found[part]["done"] else f"{found[part]['memory_gib']:.1f} GiB",
        )
        for part, what in told.items()
    ]
    rows.append(("all", "", shown_seconds(total["seconds"]), shown_bytes(total["disk_bytes"]), ""))
    lines += table(("part", "what it makes", "time", "disk", "memory"), rows)
    lines += ["", _assumed(total), *found["notes"]]
    lines += [f"warning: {line}" for line in total["warnings"]]
    lines.append(
        "Nothing was run or written. `merge` checks the same; what it would refuse, this refuses."
    )
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need; numbers stand to the right."""
    everything = [tuple(head), *map(tuple, rows)]
    widths = [max(len(row[i]) for row in everything) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in everything
    ]


def shown_bytes(size: float) -> str:
    """A size as people say it: 0 B, 12 KiB, 1.6 MiB, 3.2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _shown_range(value: Any) -> str:
    low, high = value if isinstance(value, list) else (value, value)
    texts = [f"{part:.1f}" if isinstance(part, float) else f"{part:,}" for part in (low, high)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def _assumed(total: Mapping[str, Any]) -> str:
    return (
        f"Times assume {total['assumed_tflops']:.3g} TFLOP/s on {total['device']} (`--tflops` says "
        "another), nothing else at work there, and the start of every process."
    )


def _notes(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the table has no room for: title of a stage, line."""
    notes: list[tuple[str, str]] = []
    data = found.get("data", {})
    notes += [("prepare", line) for line in data.get("layouts", ())]
    if rejected := data.get("rejected"):
        notes.append(
            ("prepare", "drops " + ", ".join(f"{n} rows ({why})" for why, n in rejected.items()))
        )
    notes += [("prepare", f"warning: {line}") for line in data.get("left_out", ())]
    if "edit" in found:
        notes.append(("edit", "what learns from the edits can be planned once they are there"))
    train = found.get("train", {})
    if train:
        epochs = f"{train['epochs']:.3g} epoch{'s' * (train['epochs'] != 1)}"
        notes.append(("train", f"{epochs}, learning rate {train['learning_rate']:g}"))
    if train.get("compile") and "compile_seconds" in train:
        notes.append(
            (
                "train",
                f"compiled layers: {shown_seconds(train['compile_seconds'])} to compile, "
                f"{shown_seconds(train['compile_saves_seconds'])} saved",
            )
        )
    for title in ("reference", "train"):
        for key in ("vocabulary", "routers"):
            if key in found.get(title, {}):
                notes.append((title, str(found[title][key])))
    if left_out := found.get("evaluate", {}).get("not_counted"):
        notes.append(("evaluate", f"not in the time: {', '.join(left_out)}"))
    return notes
