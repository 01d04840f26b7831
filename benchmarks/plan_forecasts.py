"""What `plan` foretold of finished runs beside what their stages took, as JSON.

    python benchmarks/plan_forecasts.py quickstart/seed-0/sft runs/mine

Each run is planned again for a place of its own, from its configuration; its times are those that
`sparsepo status RUN --timeline` shows. `at_once` runs that worked side by side on these cores share
them: say how many with --at-once.
"""

import argparse
import json
import os
import tempfile
from typing import Any

from pipelines.commands.plan import run_plan
from pipelines.commands.stages import STAGES
from pipelines.commands.timeline import read_times
from pipelines.models import Duration, SideBySide, device_kind
from pipelines.recipe import load_recipe

CONFIG = "config.yaml"


def compared(run_dir: str, at_once: int) -> list[dict[str, Any]]:
    """A row for each stage that worked: seconds foretold and taken, and their ratio."""
    with tempfile.TemporaryDirectory() as place:
        given = [f"run_dir={place}/run", "paths.pairs=null", "paths.reference=null"]
        given += ["ray.cpus_per_run=null"]  # what they share is counted below
        plan = run_plan(load_recipe(f"{run_dir}/{CONFIG}", given))
    taken = {record["name"]: record["seconds"] for record in read_times(run_dir)}
    side = SideBySide(at_once, at_once, os.cpu_count() or 1, device_kind() == "cpu")
    rows = []
    for stage in STAGES:
        part = plan.get(stage.title)
        if part is None or stage.name not in taken:
            continue
        told = side.seconds([Duration(part["start_seconds"], part["work_seconds"])])
        rows.append(
            {
                "run": run_dir,
                "stage": stage.name,
                "foretold_seconds": round(told, 2),
                "taken_seconds": round(taken[stage.name], 2),
                "ratio": round(told / taken[stage.name], 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--at-once", type=int, default=1)
    given = parser.parse_args()
    for run_dir in given.runs:
        for row in compared(run_dir, given.at_once):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
