"""What a sweep costs beyond its trainings: trials of one sweep against single commands.

    python benchmarks/sweep_overhead.py --trials 12 --steps 300 --work /tmp/overhead
    python benchmarks/sweep_overhead.py --model smollm2-135m --tokenizer DIR --pairs hh.jsonl \
        --trials 16 --steps 150 --at-once 4 --without-singles --work /tmp/overhead

MaPO, one beta per trial, `--at-once` trials or commands side by side, the same configurations on
both sides. Without --model a tiny one, and one CPU per trial.

sweep_seconds:  the wall time of the whole `sparsepo tune` command without its prepare and
                reference, times --at-once, so that idle places count.
steady_seconds: the sum over the trials of what their steps would take if each took the median of
                the second half of the trial's.
single_seconds: the sum over the trials of `sparsepo train` of their recipes into empty directories,
                with the same pairs and reference.

Both start Ray, workers and all. With --block the two sides alternate, so that a machine that slows
down slows both; every block then pays its own start of Ray. Prints a JSON line per trial as it
ends, one per block, then the sums.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from kill_trials import write_world
from shapes import model_directory

from pipelines.storage import RunStore
from pipelines.train import read_metrics

_TINY = ["train.cpus_per_worker=1", "ray.num_cpus=2"]


def timed(*arguments: str, seen: Callable[[float], None] = lambda seconds: None) -> float:
    """Seconds of a command; `seen` is called with those so far, again and again."""
    started = time.monotonic()
    command = [sys.executable, "-m", "pipelines", *arguments, "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            seconds = time.monotonic() - started
            seen(seconds)
            if process.returncode is not None:
                break
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds


class Trials:
    """Prints a line for each trial of a sweep as it ends: a benchmark that is cut off has them."""

    def __init__(self, sweep: Path) -> None:
        self._sweep, self._said = sweep, set[str]()

    def __call__(self, seconds: float) -> None:
        for file in self._sweep.glob("trials/*/trial.json"):
            if file.parent.name in self._said:
                continue
            self._said.add(file.parent.name)
            told = json.loads(file.read_text())
            metrics = told["metrics"]
            kept = ("elapsed_seconds", "compiled_parts", "compiled_parts_found")
            line = {
                "trial": told["number"],
                "ended_after": round(seconds, 1),
                "seconds": round(told["seconds"], 1),
                **{key: metrics[f"train/{key}"] for key in kept if f"train/{key}" in metrics},
            }
            print(json.dumps(line), flush=True)


def write_sweep(work: Path, name: str, betas: list[float], options: argparse.Namespace) -> Path:
    tiny = options.model is None
    model = work / "model" if tiny else model_directory(options.model, options.tokenizer, work)
    longest = 24 if tiny else 512
    body: dict[str, Any] = {
        "run_dir": str(work / name),
        "recipe": "hh-mapo",
        "overrides": [
            f"model.name_or_path={model}",
            f"data.sources=[{{path: {options.pairs or work / 'pairs.jsonl'}, form: text}}]",
            "data.test=[]",
            "data.validation_fraction=0.1",
            f"data.max_prompt_tokens={longest}",
            f"data.max_response_tokens={longest}",
            f"train.global_batch_size={32 if tiny else 64}",
            "train.epochs=10000",
            f"train.max_steps={options.steps}",
            *(_TINY if tiny else ["train.precision=bfloat16"]),
            *options.override,
            f"paths.pairs={work}/pairs",
            f"paths.reference={work}/reference",
        ],
        "space": {"objective.beta": {"grid": betas}},
        "max_concurrent_trials": options.at_once,
    }
    file = work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(body))
    return file


def steady_seconds(trial: dict[str, Any]) -> float:
    steps = [r for r in read_metrics(RunStore(f"{trial['run_dir']}/train")) if "kind" not in r]
    half = [r["step_seconds"] for r in steps[len(steps) // 2 :]]
    return statistics.median(half) * len(steps)


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
    parser.add_argument("--model", default=None, help="directory, or a shape of shapes.py")
    parser.add_argument("--tokenizer", default="", help="directory of the tokenizer, for a shape")
    parser.add_argument("--pairs", type=Path, default=None, help="prompt, chosen, rejected")
    parser.add_argument("--override", action="append", default=[], help="KEY=VALUE of all trials")
    parser.add_argument("--without-singles", action="store_true", help="the sweep alone")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    work: Path = options.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if options.model is None:
        write_world(work)
    betas = [round(0.05 * (i + 1), 2) for i in range(options.trials)]
    total: dict[str, Any] = {
        "trials": len(betas),
        "steps": options.steps,
        "sweep_seconds": 0.0,
        "steady_seconds": 0.0,
        "single_seconds": 0.0,
        "stage_runs": [],
    }
    for number, start in enumerate(range(0, len(betas), options.block)):
        block = betas[start : start + options.block]
        file = write_sweep(work, f"sweep-{number}", block, options)
        sweep_seconds = timed("tune", str(file), seen=Trials(work / f"sweep-{number}"))
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
            for trial in ([] if options.without_singles else trials)
        ]
        with ThreadPoolExecutor(options.at_once) as pool:
            single = sum(pool.map(lambda command: timed(*command), commands))
        steady = sum(steady_seconds(trial) for trial in trials)
        steps_seconds = [trial["metrics"]["train/elapsed_seconds"] for trial in trials]
        line = {
            "sweep_seconds": sweep_seconds,
            "single_seconds": single,
            "ratio": sweep_seconds / single if single else None,
            "steady_seconds": steady,
            "sweep_over_steady": sweep_seconds / steady,
            "seconds_of_steps": steps_seconds,
        }
        print(json.dumps(line), flush=True)
        total["sweep_seconds"] += sweep_seconds
        total["steady_seconds"] += steady
        total["single_seconds"] += single
        total["stage_runs"].append(counts["stage_runs"])
    if not options.without_singles:
        total["ratio"] = total["sweep_seconds"] / total["single_seconds"]
    total["sweep_over_steady"] = total["sweep_seconds"] / total["steady_seconds"]
    print(json.dumps(total))


if __name__ == "__main__":
    main()
