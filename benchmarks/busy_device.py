"""How much of a training step is work of the GPU, under Ray Train as a user runs it.

    python benchmarks/busy_device.py --model smollm2-135m --tokenizer DIR --pairs hh.jsonl \\
        --count 5976 --global-batch 64 --work /tmp/bench
    python benchmarks/busy_device.py --model pythia-1.4b --tokenizer DIR --lengths 256+256 \\
        --work /tmp/bench

After the warm-up come three windows of --steps steps each, in the worker's own process:

plain:     wall seconds of a step, and MFU from the run's own log.
profiled:  torch.profiler with the GPU's events alone. `busy_seconds` is the union of kernels and
           copies, `idle_share` what is left of the window's wall time. `gaps` are the pauses of the
           GPU by their length, `before` the kernels that came after the longest ones in all.
watched:   lines that made the host wait for the GPU, with their number (torch's sync debug mode).

`busy_of_plain` is the GPU's work in a step over the wall time of a step that nobody profiles: it
is what the profiler's own cost leaves out. Prints a JSON line. A run on a CPU shows the wall alone.
"""

import argparse
import json
import platform
import shutil
import statistics
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from shapes import model_directory
from train_step import METHODS, say, write_rows

import pipelines.train.fit as fit
from pipelines.cluster.session import ray_session
from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
from pipelines.recipe.files import validate_recipe
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.train.metrics import read_metrics

FOUND = "busy.json"
GAPS = ((10, "below 10 us"), (100, "10 to 100 us"), (1000, "0.1 to 1 ms"))


def watched_worker(config: dict[str, Any]) -> None:
    """The stage's worker, with three windows of its steps looked at."""
    from pipelines.train.trainer import Trainer
    from pipelines.train.worker import train_worker

    options = config.pop("windows")
    # Steps are launched one by one; before that was so, a step was one call.
    name = "_launch_step" if hasattr(Trainer, "_launch_step") else "optimizer_step"
    step = getattr(Trainer, name)
    windows = Windows(options["warmup"], options["steps"], Path(options["found"]))

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        windows.before_step(self.step)
        return step(self, *args, **kwargs)

    setattr(Trainer, name, counted)
    train_worker(config)


class Windows:
    """The three windows: each begins and ends with an idle GPU."""

    def __init__(self, warmup: int, steps: int, target: Path) -> None:
        self._edges = [warmup + steps * i for i in range(4)]
        self._steps, self._target = steps, target
        self._found: dict[str, Any] = {"edges": self._edges}
        self._began = 0.0
        self._profiler: Any = None
        self._caught: Any = None
        self._lines: Any = None

    def before_step(self, step: int) -> None:
        if step not in self._edges:
            return
        number, is_cuda = self._edges.index(step), torch.cuda.is_available()
        if is_cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter() - self._began
        if number == 1:
            self._found["plain_step_seconds"] = wall / self._steps
        elif number == 2:
            self._end_profile(wall)
        elif number == 3:
            self._end_watch()
            self._target.write_text(json.dumps(self._found))
        if number == 1 and is_cuda:
            self._profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            )
            self._profiler.__enter__()
        if number == 2:
            self._caught = warnings.catch_warnings(record=True)
            self._lines = self._caught.__enter__()
            warnings.simplefilter("always")
            if is_cuda:
                torch.cuda.set_sync_debug_mode("warn")
        if is_cuda:
            torch.cuda.synchronize()
        self._began = time.perf_counter()

    def _end_profile(self, wall: float) -> None:
        self._found["profiled_step_seconds"] = wall / self._steps
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        spans = sorted(
            (event.time_range.start, event.time_range.end, event.name)
            for event in self._profiler.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
            and not getattr(event, "is_user_annotation", False)
        )
        busy, until, gaps = 0.0, spans[0][0], []
        for start, end, name in spans:
            if start > until:
                gaps.append((start - until, name))
            busy += max(0.0, end - max(start, until))
            until = max(until, end)
        by_length: dict[str, float] = defaultdict(float)
        before: dict[str, float] = defaultdict(float)
        for length, name in gaps:
            kind = next((kind for limit, kind in GAPS if length < limit), "above 1 ms")
            by_length[kind] += length / 1e6 / self._steps
            before[name[:80]] += length / 1e6 / self._steps
        per_step = busy / 1e6 / self._steps
        self._found |= {
            "busy_seconds": per_step,
            "idle_share": 1 - per_step / self._found["profiled_step_seconds"],
            "busy_of_plain": per_step / self._found["plain_step_seconds"],
            "kernels_a_step": len(spans) / self._steps,
            "gaps": {kind: round(seconds, 6) for kind, seconds in by_length.items()},
            "before": {
                name: round(before[name], 6)
                for name in sorted(before, key=lambda name: -before[name])[:12]
            },
        }

    def _end_watch(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(None, None, None)
        waits = Counter(
            f"{Path(found.filename).parent.name}/{Path(found.filename).name}:{found.lineno}"
            for found in self._lines
            if "synchronizing" in str(found.message)
        )
        self._found["waits_a_step"] = {
            line: round(count / self._steps, 2) for line, count in waits.most_common(20)
        }


def measured(recipe: Recipe, warmup: int, steps: int) -> dict[str, Any]:
    """The train stage under Ray, looked at."""
    target = Path(recipe.run_dir) / FOUND
    options = {"warmup": warmup, "steps": steps, "found": str(target)}
    original = fit.train_worker

    def worker(config: dict[str, Any]) -> None:
        watched_worker({**config, "windows": options})

    fit.train_worker = worker
    try:
        TRAIN.run(Run(recipe), print, True)
    finally:
        fit.train_worker = original
    found: dict[str, Any] = json.loads(target.read_text())
    first, last = found["edges"][:2]
    plain = [
        record
        for record in read_metrics(RunStore(f"{recipe.run_dir}/train"))
        if "kind" not in record and first < record["step"] <= last
    ]
    rates = ("pairs_per_second", "tokens_per_second", "mfu")
    return found | {
        name: statistics.median(record[name] for record in plain)
        for name in rates
        if name in plain[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a directory, or a shape")
    parser.add_argument("--tokenizer", default="", help="directory of the tokenizer, for a shape")
    parser.add_argument("--lengths", default="256+256", help="tokens of synthetic pairs")
    parser.add_argument("--pairs", type=Path, default=None, help="JSON lines, instead")
    parser.add_argument("--count", type=int, default=1024, help="pairs to use")
    parser.add_argument("--method", default="dpo", choices=list(METHODS))
    parser.add_argument("--precision", default="mixed", choices=("bfloat16", "mixed", "float32"))
    parser.add_argument("--global-batch", type=int, default=64)
    parser.add_argument("--warmup", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20, help="of each of the three windows")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()

    options.work.mkdir(parents=True, exist_ok=True)
    directory = model_directory(options.model, options.tokenizer, options.work)
    name = options.lengths if options.pairs is None else options.pairs.stem
    rows = options.work / f"busy-{name}-{options.count}.jsonl"
    write_rows(options, directory, rows)
    run_dir = options.work / f"busy-{options.model.replace('/', '-')}-{options.method}"
    shutil.rmtree(run_dir, ignore_errors=True)
    recipe = validate_recipe(
        {
            "run_dir": str(run_dir),
            "model": {"name_or_path": str(directory)},
            "data": {
                "sources": [{"path": str(rows), "form": "text"}],
                "max_prompt_tokens": 1024,
                "max_response_tokens": 1024,
            },
            **METHODS[options.method],
            "train": {
                "global_batch_size": options.global_batch,
                "learning_rate": 1e-7,
                "max_steps": options.warmup + 3 * options.steps + 1,
                "epochs": 1000,
                "precision": options.precision,
                "checkpoint_every": 1_000_000,
            },
        }
    )
    with ray_session(recipe.ray):
        run_stages(recipe, (PREPARE, REFERENCE), lambda line: None, quiet=True)
        found = measured(recipe, options.warmup, options.steps)
    say(
        benchmark="busy_device",
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        torch=torch.__version__,
        python=platform.python_version(),
        model=options.model,
        rows=name,
        method=options.method,
        precision=options.precision,
        global_batch=options.global_batch,
        **found,
    )


if __name__ == "__main__":
    main()
