"""What a sweep costs beyond its trainings: trials of one sweep against single commands.

    python benchmarks/sweep_overhead.py --trials 12 --steps 300 --work /tmp/overhead

A tiny model, MaPO, one beta and one CPU per trial, `--at-once` trials or commands side by side, the
same configurations on both sides.

sweep_seconds:  the wall time of the whole `sparsepo tune` command without its prepare and
                reference, times --at-once, so that idle places count.
single_seconds: the sum over the trials of `sparsepo train` of their recipes into empty directories,
                with the same pairs and reference.

Both start Ray, workers and all. With --block the two sides alternate, so that a machine that slows
down slows both; every block then pays its own start of Ray. Prints one JSON line per block, then
the sums.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from kill_trials import write_world


def timed(*arguments: str) -> float:
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments, "--quiet"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.monotonic() - started


def write_sweep(work: Path, name: str, betas: list[float], steps: int, at_once: int) -> Path:
    body: dict[str, Any] = {
        "run_dir": str(work / name),
        "recipe": "hh-mapo",
        "overrides": [
            f"model.name_or_path={work}/model",
            f"data.sources=[{{path: {work}/pairs.jsonl}}]",
            "data.test=[]",
            "data.validation_fraction=0.1",
            "data.max_prompt_tokens=24",
            "data.max_response_tokens=24",
            "train.global_batch_size=32",
            "train.epochs=10000",
            f"train.max_steps={steps}",
            "train.cpus_per_worker=1",
            "ray.num_cpus=2",
            f"paths.pairs={work}/pairs",
            f"paths.reference={work}/reference",
        ],
        "space": {"objective.beta": {"grid": betas}},
        "max_concurrent_trials": at_once,
    }
    file = work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(body))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument(
        "--block",
        type=int,
        default=12,
        help="trials per sweep; fewer than --trials makes several sweeps",
    )
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    work: Path = options.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_world(work)
    betas = [round(0.05 * (i + 1), 2) for i in range(options.trials)]
    total: dict[str, Any] = {
        "trials": len(betas),
        "steps": options.steps,
        "sweep_seconds": 0.0,
        "single_seconds": 0.0,
        "stage_runs": [],
    }
    for number, start in enumerate(range(0, len(betas), options.block)):
        block = betas[start : start + options.block]
        file = write_sweep(work, f"sweep-{number}", block, options.steps, options.at_once)
        sweep_seconds = timed("tune", str(file))
        counts = json.loads((work / f"sweep-{number}" / "manifest.json").read_text())["counts"]
        sweep_seconds = (sweep_seconds - counts["shared_seconds"]) * options.at_once
        trials = json.loads((work / f"sweep-{number}" / "trials.json").read_text())
        assert [trial["status"] for trial in trials] == ["finished"] * len(block)
        commands = [
            (
                "train",
                f"{trial['run_dir']}/config.yaml",
                f"run_dir={work}/single-{trial['number']}-{number}",
                "ray.cpus_per_run=null",
            )
            for trial in trials
        ]
        with ThreadPoolExecutor(options.at_once) as pool:
            single = sum(pool.map(lambda command: timed(*command), commands))
        steps_seconds = [trial["metrics"]["train/elapsed_seconds"] for trial in trials]
        line = {
            "sweep_seconds": sweep_seconds,
            "single_seconds": single,
            "ratio": sweep_seconds / single,
            "seconds_of_steps": steps_seconds,
        }
        print(json.dumps(line), flush=True)
        total["sweep_seconds"] += sweep_seconds
        total["single_seconds"] += single
        total["stage_runs"].append(counts["stage_runs"])
    total["ratio"] = total["sweep_seconds"] / total["single_seconds"]
    print(json.dumps(total))


if __name__ == "__main__":
    main()
