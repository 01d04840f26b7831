"""What the quickstart gives on many seeds: a distribution of reward gains and KLs.

    python benchmarks/quickstart_seeds.py --seeds 0-19 --work /tmp/seeds \\
        --figure docs/quickstart-seeds.png

Every seed is `sparsepo quickstart seed=N dir=WORK/seed-N`, a world, a starting model and pairs of
its own; one that is there already is read. Prints one JSON line per seed and objective, then one
per objective with median, quartiles and extremes of

gain:         mean reward (VADER) of 240 samples on held-out prompts less the starting model's on
              the same prompts.
kl:           KL(policy || reference) of the policy's samples, nats per response.
kl_per_token: the same per sampled token.
zeros:        the share of held-out response tokens of which the reward mask is exactly zero.
warnings:     what training warned of.
diverged:     a warning, or more than 2 nats per token.

The figure shows the gain over the KL, a point per seed; a large mark stands at the medians.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.intervals import mean_of

METHODS = ("dpo", "mapo", "sparsepo")
MOST_NATS_PER_TOKEN = 2.0


def seeds_of(text: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def run(folder: Path, seed: int) -> None:
    """The quickstart, unless all of its evaluations are there."""
    if all((folder / name / "evaluation" / "manifest.json").is_file() for name in METHODS):
        return
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "quickstart",
        f"seed={seed}",
        f"dir={folder}",
        "--quiet",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measured(folder: Path, seed: int, name: str) -> dict[str, Any]:
    """The numbers of one run."""
    from pipelines.storage.store import RunStore
    from pipelines.train.metrics import read_metrics

    results = json.loads((folder / name / "evaluation" / "manifest.json").read_text())["counts"][
        "results"
    ]
    sentiment, masks = results["sentiment"], results["masks"]
    records = read_metrics(RunStore(str(folder / name / "train")))
    warnings = [
        message
        for record in records
        if record.get("kind") == "warning"
        for message in record["messages"]
    ]
    kl = sentiment["kl/policy_reference"]["mean"]
    per_token = kl / max(1.0, sentiment["tokens/after"]["mean"])
    before, after = (mean_of(sentiment[f"distinct_2/{when}"]) for when in ("before", "after"))
    found = {
        "seed": seed,
        "objective": name,
        "gain": round(sentiment["reward/gain"]["mean"], 4),
        "kl": round(kl, 3),
        "kl_per_token": round(per_token, 3),
        "distinct_2": round(after / before, 3),
        "warnings": warnings,
        "diverged": bool(warnings) or per_token > MOST_NATS_PER_TOKEN,
    }
    if name != "dpo":
        found |= {
            "auc": round(masks["auc/reward_mask"]["mean"], 3),
            "zeros": round(masks["reward_mask/zero_fraction"], 3),
        }
    return found


def summary(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Of one objective over the seeds."""
    own = [row for row in rows if row["objective"] == name]
    found: dict[str, Any] = {
        "objective": name,
        "seeds": len(own),
        "diverged": sum(row["diverged"] for row in own),
    }
    for key in ("gain", "kl", "kl_per_token", "distinct_2", "auc", "zeros"):
        if key in own[0]:
            values = np.percentile([row[key] for row in own], [0, 25, 50, 75, 100])
            found[key] = dict(
                zip(
                    ("min", "q1", "median", "q3", "max"),
                    (round(float(v), 3) for v in values),
                    strict=True,
                )
            )
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from evaluation.report.charts import COLOURS
    from evaluation.report.figures import as_png, new_axes

    seeds = len({row["seed"] for row in rows})
    figure, axes = new_axes(
        f"The quickstart on {seeds} seeds",
        "kl/policy_reference, nats per response",
        "gain of the reward of samples",
    )
    for name, colour in zip(METHODS, COLOURS, strict=False):
        own = [row for row in rows if row["objective"] == name]
        kl, gain = [row["kl"] for row in own], [row["gain"] for row in own]
        axes.plot(kl, gain, "o", color=colour, markersize=4, alpha=0.55)
        axes.plot(
            [np.median(kl)],
            [np.median(gain)],
            "D",
            color=colour,
            markersize=9,
            markeredgecolor="white",
            label=name,
        )
    axes.axhline(0, color="#999", linewidth=0.8, linestyle=":")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8)
    figure.set_dpi(100)
    path.write_bytes(as_png(figure))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0-19"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        folder = options.work.absolute() / f"seed-{seed}"
        run(folder, seed)
        for name in METHODS:
            rows.append(measured(folder, seed, name))
            print(json.dumps(rows[-1]), flush=True)
    for name in METHODS:
        print(json.dumps(summary(rows, name)))
    if options.figure is not None:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
