"""Speed and memory of a training step: under Ray Train, in a bare loop, and in TRL's DPOTrainer.

    python benchmarks/train_step.py --model pythia-1.4b --tokenizer DIR --lengths 256+256 \\
        --work /tmp/bench
    python benchmarks/train_step.py --model DIR --pairs pairs.jsonl \\
        --methods mapo,sparsepo-all --work /tmp/bench

All see the same rows. Prints one JSON line per measurement, then all of them as one. Rates are
pairs per second and tokens per second, where a pair counts 2 * prompt + chosen + rejected tokens on
every side, however often a side really computes the prompt; padding never counts. Peak memory is
that of the GPU's allocator over a whole run.

ray:   the train stage as a user runs it, over its steps after the warm-up; validation and the final
       writing are outside. --workers and --scaling measure it with several workers: weak gives each
       --global-batch pairs a step, strong deals the same --global-batch pairs to all.
bare:  the same model, optimizer and micro-batches, laid out and on the device before, without
       logging or checkpoints.
trl:   DPOTrainer with precomputed or online reference, SDPA, without checkpointing, for every batch
       size asked for.

With --cut-short the stage's command is interrupted once --steps are logged, before it writes its
last checkpoint and its model: for models whose state fills a disk.

State (weights, gradients, Adam) is bfloat16 with --precision bfloat16, and float32 with bfloat16
compute with --precision mixed.
"""

import argparse
import gc
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from shapes import model_directory
from trl_side import dpo_trainer

from pipelines.cluster.session import ray_session
from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
from pipelines.models.device import Placement
from pipelines.pairs.table import open_pairs
from pipelines.recipe.files import validate_recipe
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.train.metrics import read_metrics
from pipelines.train.stage import training_facts
from pipelines.train.trainer import Trainer

METHODS: dict[str, dict[str, Any]] = {
    "simpo": {"objective": {"name": "simpo"}},
    "dpo": {"objective": {"name": "dpo"}},
    "mapo": {"objective": {"name": "mapo"}, "mask": {"kind": "activation"}},
    "sparsepo-last": {
        "objective": {"name": "sparsepo"},
        "mask": {"kind": "learned", "architecture": "simple_last"},
    },
    "sparsepo-all": {
        "objective": {"name": "sparsepo"},
        "mask": {"kind": "learned", "architecture": "simple_all"},
        "reference": {"mode": "online"},
    },
    # Producers beside `weighted-none`, which is DPO under that name.
    **{
        f"weighted-{kind}": {"objective": {"name": "weighted"}, "mask": {"kind": kind}}
        for kind in (
            *("none", "random", "position_decay", "length_split", "confidence", "surprise"),
            "adversarial",
        )
    },
}


def say(**record: Any) -> dict[str, Any]:
    print(json.dumps(record), flush=True)
    return record


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def write_synthetic_pairs(tokenizer_dir: Path, lengths: str, count: int, target: Path) -> None:
    """Rows of exact lengths: every word is one token, and the response's last token is the end
    token that both sides add.
    """
    from transformers import AutoTokenizer

    prompt_tokens, response_tokens = (int(part) for part in lengths.split("+"))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    words = [
        text
        for i in range(len(tokenizer))
        if (text := tokenizer.decode([i])).startswith(" ")
        and text[1:].isascii()
        and text[1:].isalpha()
    ]
    words = [
        word
        for word in words
        if len(tokenizer(word + word, add_special_tokens=False).input_ids) == 2
    ]
    rng = random.Random(0)

    def draw(number: int) -> str:
        return "".join(rng.choice(words) for _ in range(number))

    with target.open("w") as file:
        for _ in range(count):
            row = {
                "prompt": draw(prompt_tokens),
                "chosen": draw(response_tokens - 1),
                "rejected": draw(response_tokens - 1),
            }
            file.write(json.dumps(row) + "\n")


def write_rows(options: argparse.Namespace, tokenizer_dir: Path, target: Path) -> None:
    """The first --count rows of --pairs, or synthetic ones of --lengths."""
    if options.pairs is None:
        write_synthetic_pairs(tokenizer_dir, options.lengths, options.count, target)
    else:
        lines = options.pairs.read_text().splitlines()
        target.write_text("".join(line + "\n" for line in lines[: options.count]))


def measured_ray(recipe: Recipe, warmup: int, cut_short: bool = False) -> dict[str, float]:
    """The train stage under Ray: rates from its own log."""
    store = RunStore(f"{recipe.run_dir}/train")
    if cut_short:
        train_until_logged(recipe, store, recipe.train.max_steps or 0)
    else:
        TRAIN.run(Run(recipe), print, True)
    steps = [r for r in read_metrics(store) if "kind" not in r]
    first, *records = steps[warmup - 1 : recipe.train.max_steps]
    seconds = records[-1]["elapsed_seconds"] - first["elapsed_seconds"]
    tokens = sum(r["tokens_per_second"] * r["step_seconds"] for r in records)
    pairs = sum(r["pairs_per_second"] * r["step_seconds"] for r in records)
    found = {
        "steps": len(records),
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": tokens / seconds,
        "median_step_seconds": statistics.median(r["step_seconds"] for r in records),
        "step_seconds": [round(r["step_seconds"], 4) for r in records],
        "first_step_after_seconds": first["elapsed_seconds"],
        "peak_gib": records[-1]["memory_gib"],
    }
    return found | (
        {"mfu": statistics.median(r["mfu"] for r in records)} if "mfu" in records[-1] else {}
    )


def train_until_logged(recipe: Recipe, store: RunStore, steps: int) -> None:
    """`sparsepo train` on this process's Ray, interrupted once so many steps are logged."""
    import ray

    file = Path(f"{recipe.run_dir}.json")  # which is YAML too
    longer = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"max_steps": steps + 50})}
    )
    file.write_text(longer.model_dump_json())
    with file.with_suffix(".log").open("w") as log:
        command = subprocess.Popen(
            [sys.executable, "-m", "pipelines", "train", str(file), "--quiet"],
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            stdout=log,
            stderr=log,
        )
        while sum("kind" not in r for r in read_metrics(store)) < steps:
            time.sleep(1.0)
            if command.poll() is not None:
                raise SystemExit(f"sparsepo train: {file.with_suffix('.log').read_text()[-3000:]}")
        command.send_signal(signal.SIGINT)
        command.wait()


def measured_bare(recipe: Recipe, steps: int, warmup: int) -> dict[str, float]:
    """The same step without the pipeline around it; the run directory must hold no checkpoint."""
    free_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(
        training_facts(Run(recipe)),
        Placement.choose(recipe.train.precision, device, 0, 1),
        torch.get_num_threads(),
    )
    work = []
    for step in range(steps):
        rows = trainer.rows_of_step(step)
        loader = trainer.loader
        batches = [
            (b.inputs.to(device), b.features.to(device))
            for b in loader.stream(loader.cuts("train", rows))
        ]
        work.append((rows, batches))
    started, pairs, tokens = 0.0, 0, 0
    for number, (rows, batches) in enumerate(work):
        if number == warmup:
            synchronize()
            started = time.perf_counter()
        trainer.optimizer.zero_grad(set_to_none=True)
        for inputs, read in batches:
            features = trainer.source.complete(read, inputs)
            with trainer.placement.computing():
                scores = trainer.model(inputs, features)
            (trainer.objective(scores).losses.sum() / len(rows)).backward()
        trainer.strategy.clip(recipe.train.max_grad_norm)
        trainer.optimizer.step()
        if number >= warmup:
            pairs, tokens = pairs + len(rows), tokens + int(trainer.lengths[rows].sum())
    synchronize()
    seconds = time.perf_counter() - started
    found = {
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": tokens / seconds,
        "peak_gib": peak_gib(),
    }
    trainer.close()
    del trainer, work
    free_memory()
    return found


def measured_trl(
    directory: Path,
    rows: list[dict[str, str]],
    tokens: list[int],
    batch: int,
    options: argparse.Namespace,
    work: Path,
    precompute: bool,
) -> dict[str, float]:
    """DPOTrainer over whole batches of the rows, its reference log-probabilities computed before
    or in every step.
    """
    from transformers import TrainerCallback

    free_memory()
    steps = max(options.warmup + 2, min(options.trl_pairs, len(rows)) // batch)
    rows, tokens = rows[: steps * batch], tokens[: steps * batch]
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            synchronize()
            times.append(time.perf_counter())

    trainer = dpo_trainer(
        directory,
        rows,
        batch,
        work / "trl",
        precompute=precompute,
        max_steps=steps,
        precision=options.precision,
        checkpointing=options.checkpointing,
        lora=options.lora,
        callbacks=[Clock()],
    )
    trainer.train()
    seconds = times[-1] - times[options.warmup - 1]
    # The sampler shuffles: with a mean over all rows the share of the measured ones is met closely
    # enough.
    pairs = (len(times) - options.warmup) * batch
    found = {
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": pairs * statistics.mean(tokens) / seconds,
        "peak_gib": peak_gib(),
    }
    del trainer
    free_memory()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help="model directory, or a shape of benchmarks/shapes.py"
    )
    parser.add_argument("--tokenizer", default="", help="directory of the tokenizer, for a shape")
    parser.add_argument(
        "--lengths", default="256+256", help="prompt+response tokens of synthetic pairs"
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        default=None,
        help="JSON lines with prompt, chosen, rejected, instead of synthetic ones",
    )
    parser.add_argument("--count", type=int, default=512, help="pairs to use")
    parser.add_argument("--methods", default="mapo", help=f"comma separated: {', '.join(METHODS)}")
    parser.add_argument(
        "--sides",
        default="ray,bare,trl-precompute",
        help="comma separated: ray, bare, trl-precompute, trl-online",
    )
    parser.add_argument("--precision", choices=("bfloat16", "mixed", "float32"), default="bfloat16")
    parser.add_argument("--layout", choices=("auto", "packed", "padded"), default="auto")
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument(
        "--global-batch", type=int, default=8, help="pairs per optimizer step (weak: and worker)"
    )
    parser.add_argument("--micro-batch-tokens", type=int, default=None)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing, on every side"
    )
    parser.add_argument(
        "--lora", type=int, default=0, help="rank of adapters, on every side; 0 trains all weights"
    )
    parser.add_argument(
        "--workers",
        default="1",
        help="comma separated worker counts of the ray side",
    )
    parser.add_argument(
        "--scaling",
        default="weak",
        help="comma separated: weak, strong; what --global-batch means with several workers",
    )
    parser.add_argument(
        "--cut-short", action="store_true", help="stop the ray side once --steps are logged"
    )
    parser.add_argument(
        "--trl-batches", default="8,16,32", help="batch sizes of TRL, comma separated"
    )
    parser.add_argument("--trl-pairs", type=int, default=512, help="pairs that TRL trains on")
    parser.add_argument(
        "--steps",
        type=int,
        default=None,
        help="optimizer steps of ray and bare; all pairs once by default",
    )
    parser.add_argument("--warmup", type=int, default=8, help="steps left out of every rate")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()

    options.work.mkdir(parents=True, exist_ok=True)
    directory = model_directory(options.model, options.tokenizer, options.work)
    name = options.lengths if options.pairs is None else options.pairs.stem
    rows_file = options.work / f"pairs-{name}-{options.count}.jsonl"
    write_rows(options, directory, rows_file)

    def recipe_of(method: str, name: str, workers: int = 1, scaling: str = "weak") -> Recipe:
        run_dir = options.work / name
        shutil.rmtree(run_dir, ignore_errors=True)
        train = {
            "global_batch_size": options.global_batch * (workers if scaling == "weak" else 1),
            "learning_rate": 1e-7,
            "max_steps": options.steps,
            "precision": options.precision,
            "layout": options.layout,
            "strategy": options.strategy,
            "micro_batch_tokens": options.micro_batch_tokens,
            "gradient_checkpointing": options.checkpointing,
            "compile": not options.no_compile,
            "num_workers": workers,
            "checkpoint_every": 1_000_000,
            "lora": {"rank": options.lora, "alpha": 2 * options.lora} if options.lora else None,
            "epochs": 100 if options.steps else 1,
        }
        return validate_recipe(
            {
                "run_dir": str(run_dir),
                "model": {"name_or_path": str(directory)},
                "data": {
                    "sources": [{"path": str(rows_file), "form": "text"}],
                    "max_prompt_tokens": 1024,
                    "max_response_tokens": 1024,
                },
                "paths": {
                    "pairs": str(rows_file.with_suffix("")),
                    "reference": f"{rows_file.with_suffix('')}-{directory.name}-reference",
                },
                **METHODS[method],
                "train": train,
            }
        )

    sides, results = options.sides.split(","), []
    common = {
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "model": options.model,
        "rows": options.lengths if options.pairs is None else options.pairs.name,
        "precision": options.precision,
        "lora": options.lora,
        "checkpointing": options.checkpointing,
    }
    methods = options.methods.split(",")
    # One worker alone is the same under both.
    counts = [int(number) for number in options.workers.split(",")]
    scalings = options.scaling.split(",")
    runs = [
        (scaling, workers)
        for scaling in scalings
        for workers in counts
        if workers > 1 or scaling == scalings[0]
    ]
    stages = (PREPARE, REFERENCE) if {"ray", "bare"} & set(sides) else (PREPARE,)
    with ray_session(recipe_of(methods[0], "first").ray):
        for method in methods:
            for scaling, workers in runs:
                recipe = recipe_of(method, f"{method}-{scaling}-{workers}", workers, scaling)
                run_stages(recipe, stages, lambda line: None, quiet=True)
                if "ray" in sides:
                    rate = measured_ray(recipe, options.warmup, options.cut_short)
                    results.append(
                        say(
                            side="ray",
                            method=method,
                            workers=workers,
                            scaling=scaling,
                            pairs_per_step=recipe.train.global_batch_size,
                            strategy=options.strategy,
                            **common,
                            **rate,
                        )
                    )
                shutil.rmtree(recipe.run_dir, ignore_errors=True)
    for method in methods:
        if "bare" in sides:
            recipe = recipe_of(method, f"{method}-bare")
            steps = options.steps or options.count // options.global_batch
            results.append(
                say(
                    side="bare",
                    method=method,
                    **common,
                    **measured_bare(recipe, steps, options.warmup),
                )
            )
    for side in ("trl-precompute", "trl-online"):
        if side in sides:
            pairs = open_pairs(Run(recipe_of(methods[0], "first")))
            rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
            for batch in (int(size) for size in options.trl_batches.split(",") if size):
                try:
                    rate = measured_trl(
                        directory,
                        rows,
                        pairs.lengths("train").tolist(),
                        batch,
                        options,
                        options.work,
                        side == "trl-precompute",
                    )
                except torch.OutOfMemoryError:
                    say(side=side, batch=batch, out_of_memory=True, **common)
                    break
                results.append(say(side=side, batch=batch, **common, **rate))
    print(json.dumps({"benchmark": "train_step", "results": results}))


if __name__ == "__main__":
    main()
