"""How long a user waits: the same rows through TRL's script and through `sparsepo run`.

    python benchmarks/time_to_result.py --model smollm2-135m --tokenizer DIR --pairs hh.jsonl \\
        --count 5976 --work /tmp/bench
    python benchmarks/time_to_result.py --model pythia-1.4b --tokenizer DIR --pairs hh.jsonl \\
        --count 1494 --variants dynamic,static-16,off --work /tmp/bench

Both sides are processes that start from nothing: DPO with a precomputed reference, one epoch of
--global-batch pairs a step, the trained model written. They take turns, round by round.

first:  caches of compiled code empty (TORCHINDUCTOR_CACHE_DIR, TRITON_CACHE_DIR in a fresh folder).
second: the same command again in a new run directory, with those caches kept.

Prints a JSON line per process as it ends: its wall seconds, and `split`, where they went, of each
stage and in all. TRL's is measured within its script; what is before and after is `start`. After
every round a line has the medians so far and their ratios. --results keeps the lines of processes
in a file and counts those that are there already: rounds of several calls add up. Weights are
random where --model is a shape. The pairs are repeated with a mark where --count asks for more than
there are.

--variants: how the training's layers are compiled, each a side of its own: auto (as the recipe's
default decides), off, and dynamic, distinct, automatic, static-16, static-4, static-2 (one graph
for all widths of rows; the same whatever was traced before; a second one for all but the first; one
per width).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()


def write_rows(source: Path, count: int, target: Path) -> None:
    """The first rows, again and again with another mark in front of the prompt."""
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    with target.open("w") as file:
        for number in range(count):
            copy, row = divmod(number, len(rows))
            kept = {key: rows[row][key] for key in ("prompt", "chosen", "rejected")}
            if copy:
                kept["prompt"] = f"[{copy}] {kept['prompt']}"
            file.write(json.dumps(kept) + "\n")


def trl_script(options: argparse.Namespace) -> None:
    """TRL's side, in a process of its own; writes its split to --work/trl.json."""
    began = time.time()
    marks = {}

    def mark(name: str) -> None:
        marks[name] = time.time()

    import torch
    import trl  # noqa: F401
    from transformers import AutoModelForCausalLM, TrainerCallback  # noqa: F401
    from trl_side import dpo_trainer

    mark("imports")
    rows = [json.loads(line) for line in options.pairs.read_text().splitlines()]

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            mark("reference")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                mark("first_step")

    trainer = dpo_trainer(
        Path(options.model),
        rows,
        options.trl_batch,
        options.work / "trl",
        precompute=True,
        precision=options.precision,
        max_length=2 * options.max_tokens,
        accumulation=max(1, options.global_batch // options.trl_batch),
        learning_rate=options.learning_rate,
        callbacks=[Clock()],
    )
    mark("load_rows_reference")  # TRL tokenises, loads and precomputes in its constructor
    trainer.train()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    mark("compute")
    trainer.save_model(str(options.work / "trl-model"))
    mark("write")
    split, at = {}, began
    for name, now in sorted(marks.items(), key=lambda item: item[1]):
        split[name], at = now - at, now
    (options.work / "trl.json").write_text(json.dumps({"began": began, "split": split}))


def recipe_of(options: argparse.Namespace, name: str, variant: str) -> Path:
    body = {
        "run_dir": str(options.work / name),
        "model": {"name_or_path": options.model},
        "data": {
            "sources": [{"path": str(options.pairs), "form": "text"}],
            "max_prompt_tokens": options.max_tokens,
            "max_response_tokens": options.max_tokens,
        },
        "objective": {"name": "dpo"},
        "train": {
            "global_batch_size": options.global_batch,
            "learning_rate": options.learning_rate,
            "precision": options.precision,
            "num_workers": options.workers,
            "checkpoint_every": 1_000_000,
            "compile": {"off": False, "auto": None}.get(variant, True),
        },
        "evaluate": {"benchmarks": []},
        "ray": {"num_cpus": options.cpus},
    }
    path = options.work / f"{name}.yaml"
    path.write_text(json.dumps(body))  # which is YAML too
    return path


def timed(command: list[str], caches: Path, environment: dict[str, str], log: Path) -> float:
    """Wall seconds of a process; SystemExit with the end of its output if it fails."""
    started = time.monotonic()
    with log.open("w") as output:
        code = subprocess.run(
            command,
            env={
                **os.environ,
                "PYTHONPATH": f"{HERE.parents[1]}:{os.environ.get('PYTHONPATH', '')}",
                "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
                "TRITON_CACHE_DIR": str(caches / "triton"),
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}\n{log.read_text()[-3000:]}")
    return time.monotonic() - started


def run_trl(options: argparse.Namespace, name: str, caches: Path) -> dict[str, Any]:
    given = {
        "--side": "trl",
        "--model": options.model,
        "--pairs": options.pairs,
        "--precision": options.precision,
        "--trl-batch": options.trl_batch,
        "--max-tokens": options.max_tokens,
        "--global-batch": options.global_batch,
        "--learning-rate": options.learning_rate,
        "--work": options.work,
    }
    command = [sys.executable, str(HERE), *(str(part) for pair in given.items() for part in pair)]
    seconds = timed(command, caches, {}, options.work / f"{name}.log")
    split = json.loads((options.work / "trl.json").read_text())["split"]
    shutil.rmtree(options.work / "trl-model", ignore_errors=True)
    return {"seconds": seconds, "split": {"start": seconds - sum(split.values()), **split}}


def run_pipeline(
    options: argparse.Namespace, name: str, variant: str, caches: Path
) -> dict[str, Any]:
    from pipelines.commands.timeline import read_times
    from pipelines.storage import RunStore
    from pipelines.train import read_metrics

    recipe = recipe_of(options, name, variant)
    named = {} if variant in ("auto", "off") else {"SPARSEPO_COMPILED_SHAPES": variant}
    command = [sys.executable, "-m", "pipelines", "run", str(recipe), "--quiet"]
    seconds = timed(command, caches, named, options.work / f"{name}.log")
    times = read_times(str(options.work / name))
    counted = sum(record["seconds"] for record in times)
    split = {"start": seconds - counted}
    for record in times:
        for kind, value in record["split"].items():
            split[kind] = split.get(kind, 0.0) + value
    steps = [r for r in read_metrics(RunStore(f"{options.work / name}/train")) if "kind" not in r]
    half = steps[len(steps) // 2 :]
    last = steps[-1]
    kept = ("compilations", "compiled_parts", "compiled_parts_found", "compile_seconds")
    found = {
        "seconds": seconds,
        "split": split,
        "stages": {r["name"]: {"seconds": r["seconds"], **r["split"]} for r in times},
        "steady_pairs_per_second": sum(r["pairs_per_second"] * r["step_seconds"] for r in half)
        / sum(r["step_seconds"] for r in half),
        "padding_fraction": statistics.mean(r["padding_fraction"] for r in steps),
        "first_steps_seconds": [round(r["step_seconds"], 2) for r in steps[:8]],
        "loss": last["loss"],
        **{key: last[key] for key in kept if key in last},
    }
    shutil.rmtree(options.work / name, ignore_errors=True)
    return found


class Results:
    """Lines of processes, printed as they come, and the medians of them and of earlier calls.

    Args:
        common: what names the measurement; earlier lines of another do not count.
    """

    def __init__(self, file: Path | None, common: dict[str, Any]) -> None:
        self._file, self._common = file, common
        self._seconds: dict[tuple[str, str], list[float]] = {}
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        for found in map(json.loads, lines):
            if common.items() <= found.items():
                self._add(found)

    def _add(self, found: dict[str, Any]) -> None:
        self._seconds.setdefault((found["side"], found["turn"]), []).append(found["seconds"])

    def take(self, side: str, turn: str, found: dict[str, Any]) -> None:
        line = {"side": side, "turn": turn, **self._common, **found}
        self._add(line)
        print(json.dumps(line), flush=True)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def say(self) -> None:
        """Medians in seconds, how many they are of, and each side's share of TRL's."""
        medians = {key: statistics.median(values) for key, values in self._seconds.items()}
        summary: dict[str, Any] = {}
        for (side, turn), median in medians.items():
            summary[f"{side}/{turn}"] = median
            summary[f"{side}/{turn}/runs"] = len(self._seconds[side, turn])
            if side != "trl" and ("trl", turn) in medians:
                summary[f"{side}/{turn}/of_trl"] = median / medians["trl", turn]
        print(json.dumps({"benchmark": "time_to_result", **self._common, **summary}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="directory, or a shape of shapes.py")
    parser.add_argument("--tokenizer", default="", help="directory of the tokenizer, for a shape")
    parser.add_argument("--pairs", type=Path, required=True, help="prompt, chosen, rejected")
    parser.add_argument("--count", type=int, default=5976)
    parser.add_argument("--max-tokens", type=int, default=512, help="of a prompt, of a response")
    parser.add_argument("--global-batch", type=int, default=64)
    parser.add_argument("--trl-batch", type=int, default=16, help="pairs per forward of TRL")
    parser.add_argument("--precision", choices=("bfloat16", "mixed", "float32"), default="bfloat16")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--variants", default="auto", help="comma separated; see above")
    parser.add_argument("--rounds", type=int, default=1, help="of first and second each")
    parser.add_argument(
        "--cpus", type=int, default=None, help="of the machine, that the pipeline's Ray takes"
    )
    parser.add_argument("--workers", type=int, default=1, help="of the pipeline's training")
    parser.add_argument("--without-trl", action="store_true")
    parser.add_argument("--results", type=Path, help="file of lines that several calls share")
    parser.add_argument("--side", choices=("all", "trl"), default="all", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    options.work = options.work.absolute()
    if options.side == "trl":
        trl_script(options)
        return
    sys.path.insert(0, str(HERE.parents[1]))
    options.work.mkdir(parents=True, exist_ok=True)
    rows = options.work / f"pairs-{options.count}.jsonl"
    write_rows(options.pairs, options.count, rows)
    name, options.pairs = options.model, rows
    # In a process of its own: this one holds no GPU while others are timed.
    options.model = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from shapes import model_directory\n"
            "print(model_directory(sys.argv[1], sys.argv[2], Path(sys.argv[3])).absolute())",
            options.model,
            options.tokenizer,
            str(options.work),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE.parent,
    ).stdout.split()[-1]
    sides = [*([] if options.without_trl else ["trl"]), *options.variants.split(",")]
    results = Results(
        options.results,
        {"model": name, "pairs": options.count, "python": platform.python_version()},
    )
    for number in range(options.rounds):
        caches = {side: options.work / f"caches-{side}-{number}" for side in sides}
        for folder in caches.values():
            shutil.rmtree(folder, ignore_errors=True)
        for turn in ("first", "second"):
            for side in sides:
                run = f"{side}-{turn}-{number}"
                shutil.rmtree(options.work / run, ignore_errors=True)
                found = (
                    run_trl(options, run, caches[side])
                    if side == "trl"
                    else run_pipeline(options, run, side, caches[side])
                )
                results.take(side, turn, found)
        for folder in caches.values():
            shutil.rmtree(folder, ignore_errors=True)
        results.say()


if __name__ == "__main__":
    main()
