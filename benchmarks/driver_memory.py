"""Memory of the driver while prepare and the reference stage run, for several numbers of pairs.

    python benchmarks/driver_memory.py --pairs 10000 200000 1000000 --work /tmp/bench

One process per number, on synthetic pairs and a model of a million parameters made on the spot;
prints one JSON object with the resident memory of the driver before each stage and its peak during
it, in MiB. Actors hold one window of rows each, whatever the number of pairs.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.commands.quickstart_world import write_untrained_model

WORDS = [
    "good",
    "bad",
    "film",
    "story",
    "actor",
    "plot",
    "very",
    "quite",
    "the",
    "a",
    "was",
    "is",
    "not",
]


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def measured(action: Callable[[], Any]) -> dict[str, float]:
    """Seconds of an action, and this process's memory before and at its peak in MiB."""
    before = peak = resident_mib()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, resident_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    started = time.perf_counter()
    action()
    seconds = time.perf_counter() - started
    done.set()
    thread.join()
    peak = max(peak, resident_mib())
    return {"before_mib": before, "peak_mib": peak, "grown_mib": peak - before, "seconds": seconds}


def write_rows(path: Path, count: int) -> None:
    rng = random.Random(count)
    with path.open("w") as file:
        for row in range(count):
            texts = [" ".join(rng.choices(WORDS, k=8)) for _ in range(3)]
            file.write(
                json.dumps(
                    {
                        "prompt": f"{row} {texts[0]}",
                        "chosen": f" {texts[1]}",
                        "rejected": f" {texts[2]}!",
                    }
                )
                + "\n"
            )


def measure(model: str, count: int, work: Path) -> dict[str, float]:
    """Prepare and score `count` pairs in this process; watch it while the reference stage runs."""
    from pipelines.cluster.session import ray_session
    from pipelines.commands.run import run_stages
    from pipelines.commands.stages import PREPARE, REFERENCE
    from pipelines.recipe.files import validate_recipe
    from pipelines.recipe.stage import Run

    rows = work / f"{count}.jsonl"
    write_rows(rows, count)
    data = {
        "sources": [{"path": str(rows), "form": "text"}],
        "max_prompt_tokens": 32,
        "max_response_tokens": 32,
    }
    recipe = validate_recipe(
        {
            "run_dir": str(work / str(count)),
            "model": {"name_or_path": model},
            "data": data,
            "objective": {"name": "tdpo1"},
        }
    )
    with ray_session(recipe.ray):
        prepared = measured(lambda: run_stages(recipe, (PREPARE,), lambda line: None, quiet=True))
        found = measured(lambda: REFERENCE.run(Run(recipe), print, True))
    return {
        "pairs": count,
        "prepare": prepared,
        "reference": found,
        "written_gib": Run(recipe).record(REFERENCE).manifest()["counts"]["bytes"] / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=None, help="model directory; a tiny one is made without it"
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--one", action="store_true", help="measure the single number in this process"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = options.model or str(options.work / "model")
    if options.model is None:
        write_untrained_model(
            Path(model), [" ".join(WORDS)] * 50 + [str(number) for number in range(1000)], seed=0
        )
    if options.one:
        print(json.dumps(measure(model, options.pairs[0], options.work)))
        return
    runs = []
    for count in options.pairs:
        command = [
            sys.executable,
            __file__,
            "--one",
            "--model",
            model,
            "--pairs",
            str(count),
            "--work",
            str(options.work),
        ]
        runs.append(
            json.loads(
                subprocess.run(
                    command, check=True, capture_output=True, text=True
                ).stdout.splitlines()[-1]
            )
        )
    print(json.dumps({"benchmark": "driver_memory", "runs": runs}))


if __name__ == "__main__":
    main()
