"""What a run of many shards costs its driver.

    python benchmarks/scale_out.py --shards 10000 100000 --rows 100000 1000000 \\
        --prepared 1000000 10000000

Measured are deciding on prepare's rows, planning, scheduling and finishing the reference stage, and
the sampler. The shards are fake (ten rows each, no tensors), everything around them is the
pipeline's own: the pairs' manifest, markers and feature files on disk, the plan of what is missing,
Ray Data's actor pool, the reference's manifest, the sampler. One process per number; prints one
JSON object with seconds and the driver's resident memory (MiB) before and at its peak.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from driver_memory import measured

ROWS_PER_SHARD, ROWS_PER_TASK = 10, 1000


class Nothing:
    """An actor that does with a shard what costs nothing."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        pass

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        return {"failed": {}, "shard": task["shard"]}


def reference_stage(shards: int) -> dict[str, Any]:
    """Plan, schedule and finish `shards` shards whose files are there, or are not."""
    from pipelines.cluster.actor_pool import run_tasks
    from pipelines.cluster.session import ray_session
    from pipelines.pairs.table import PairTable
    from pipelines.recipe.files import validate_recipe
    from pipelines.reference.actor import marker_path
    from pipelines.reference.scoring import scored_shards
    from pipelines.reference.store import feature_path
    from pipelines.storage.store import RunStore

    recipe = validate_recipe(
        {
            "run_dir": "unused",
            "model": {"name_or_path": "unused"},
            "data": {"sources": [{"path": "unused"}]},
        }
    )
    found: dict[str, Any] = {"shards": shards}
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(folder)
        counts = {"shards": {"train": [ROWS_PER_SHARD] * shards}}
        pairs = PairTable(store, {"counts": counts, "outputs": {}})
        for number in range(shards):
            for path, text in (
                (feature_path("reference_logps", "train", number), "x"),
                (
                    marker_path("reference_logps", "train", number),
                    '{"bytes": 1, "sha256": "", "failed": {}, "tokens": 9}',
                ),
            ):
                target = Path(folder, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
        found["plan"] = measured(lambda: scored_shards(store, "reference_logps", pairs))
    tasks = [
        {"split": "train", "shard": number, "features": ["reference_logps"]}
        for number in range(shards)
    ]
    with ray_session(recipe.ray):
        list(run_tasks(tasks[:100], Nothing, recipe, 2, "warm", True))
        found["schedule"] = measured(
            lambda: [
                None for _ in run_tasks(tasks, Nothing, recipe, 2, "tasks", True, calls_at_once=3)
            ]
        )
    return found


def prepare_stage(rows: int) -> dict[str, Any]:
    """Decide on the digests of `rows` rows, a tenth of them duplicates, and say what every shard
    of 1,024 pairs holds.
    """
    import numpy as np
    import pyarrow as pa

    from pipelines.pairs.row_plan import DIGEST, RowPlan
    from pipelines.recipe.schema import DataSection

    data = DataSection.model_validate({"sources": [{"path": "unused"}]})
    rng = np.random.default_rng(0)

    def digest(start: int) -> pa.Table:
        count = min(ROWS_PER_TASK, rows - start)
        keys = rng.integers(0, rows * 5, (count, 3), dtype=np.uint32)
        keys[:, 1:] = 0  # so that about a tenth of the rows come twice
        key = pa.Array.from_buffers(pa.binary(12), count, [None, pa.py_buffer(keys.tobytes())])
        columns = {
            "source": np.zeros(count),
            "row": np.arange(start, start + count),
            "split": np.zeros(count),
            "copies": np.ones(count),
        }
        arrays = [pa.array(columns[name]).cast(DIGEST.field(name).type) for name in columns]
        return pa.table(
            [*arrays, pa.array(rng.random(count)), key, key, pa.nulls(count, pa.string())],
            schema=DIGEST,
        )

    def decide() -> None:
        plan = RowPlan(data)
        for start in range(0, rows, ROWS_PER_TASK):
            plan.add(digest(start))
        plan.settle()
        for _ in plan.shards(1024):
            pass

    return {"rows": rows, "plan": measured(decide)}


def sampler(rows: int) -> dict[str, Any]:
    """One epoch's order and the micro-batches of a hundred steps."""
    from sparsepo.batching.sampling import Sampler

    made = Sampler(rows, 1024, 0)
    return {
        "rows": rows,
        "steps": measured(
            lambda: [
                made.pair_indices(step) for step in range(0, rows // 1024, max(1, rows // 102400))
            ]
        ),
    }


_MEASURES = {"shards": reference_stage, "rows": sampler, "prepared": prepare_stage}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--prepared", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument(
        "--one", choices=list(_MEASURES), help="measure the single number in this process"
    )
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_MEASURES[options.one](getattr(options, options.one)[0])))
        return
    runs: dict[str, list[Any]] = {kind: [] for kind in _MEASURES}
    for kind in _MEASURES:
        for count in getattr(options, kind):
            command = [sys.executable, __file__, "--one", kind, f"--{kind}", str(count)]
            runs[kind].append(
                json.loads(
                    subprocess.run(
                        command, check=True, capture_output=True, text=True
                    ).stdout.splitlines()[-1]
                )
            )
    print(json.dumps({"benchmark": "scale_out", **runs}))


if __name__ == "__main__":
    main()
