"""Speed of the reference stage: the scoring actor, a bare forward loop, TRL's precompute.

    python benchmarks/reference_stage.py --model pythia-1.4b --tokenizer DIR \\
        --pairs pairs.jsonl --work /tmp/bench

All in one process. Prints the result as JSON, again after every peer that is added: the last line
is the whole. Rates are pairs per second and tokens per second, where a pair counts 2 * prompt +
chosen + rejected tokens on every side, however often a side really computes the prompt.

stage: what one actor does with whole shards (read, score, copy, hash, write, fsync), several shards
       in work at once.
bare:  the same batches, already laid out, through the backbone and the chunked log-probabilities;
       nothing is kept.
trl:   DPOTrainer's own precompute_ref_log_probs over the same rows, for every batch size asked for.
ray:   the whole stage through Ray, its start and the loading of the model included.

With --actors or --gpus-per-model only the stage through Ray is measured, for each combination. Its
steady rate is that of the shards that were finished after every actor had finished two and before
the last two of each.
"""

import argparse
import gc
import json
import platform
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from shapes import model_directory

from pipelines.cluster.session import ray_session
from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, REFERENCE
from pipelines.pairs.table import TOKEN_COLUMNS, open_pairs
from pipelines.recipe.files import validate_recipe
from pipelines.recipe.stage import Run
from pipelines.reference.actor import ShardScorer, ShardTask
from pipelines.reference.scoring import CALLS_AT_ONCE, scoring_facts
from sparsepo.backbone import run_backbone, scored_rows
from sparsepo.kernels.token_scoring import score_tokens

WANTED = {
    "logps": {"objective": {"name": "dpo"}},
    "kl": {"objective": {"name": "tdpo1"}},
    "mapo": {"objective": {"name": "mapo"}, "mask": {"kind": "activation"}},
    "layers": {
        "objective": {"name": "sparsepo"},
        "mask": {"kind": "learned", "architecture": "simple_all"},
        "reference": {"mode": "stored"},
    },
}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and peak GiB of GPU memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    seconds = time.perf_counter() - started
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def rates(seconds: float, gib: float, pairs: int, tokens: int) -> dict[str, float]:
    return {
        "seconds": seconds,
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": tokens / seconds,
        "peak_gib": gib,
    }


def write_pairs(source: Path, target: Path, limit: int | None, repeat: int) -> None:
    """The rows, repeated under distinct prompts, so that no row is an exact copy."""
    rows = [json.loads(line) for line in source.read_text().splitlines()][:limit]
    with target.open("w") as file:
        for copy in range(repeat):
            for row in rows:
                prompt = (
                    row["prompt"] if copy == 0 else f"{row['prompt'][:1]}{copy}{row['prompt'][1:]}"
                )
                file.write(
                    json.dumps(
                        {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}
                    )
                    + "\n"
                )


def trl_seconds(
    model_dir: Path, rows: list[dict[str, str]], batch: int, work: Path, length: int
) -> tuple[float, float]:
    """Seconds of DPOTrainer's precompute alone (tokenising, loading and hashing the model are
    left out).
    """
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found: list[tuple[float, float]] = []

    class Timed(trl.DPOTrainer):
        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            kept: list[Any] = []
            compute = super()._precompute_ref_logps
            found.append(timed(lambda: kept.append(compute(*args, **kwargs))))
            return kept[0]

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    for part in (rows[: 4 * batch], rows):  # the first is a warm-up
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=dtype, attn_implementation="sdpa"
        ).to("cuda" if on_gpu else "cpu")
        arguments = trl.DPOConfig(
            output_dir=str(work / "trl"),
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=batch,
            per_device_train_batch_size=batch,
            max_length=length,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            report_to="none",
            disable_tqdm=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        Timed(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(part),
            processing_class=tokenizer,
        )
        del model
        if on_gpu:
            torch.cuda.empty_cache()
    return found[-1]


def steady_rate(stage: Path, feature: str, lengths: Any, shard_pairs: int, actors: int) -> float:
    """Tokens per second between the first and the last shards, by the times of their markers."""
    markers = sorted(
        (stage / "shards" / feature).glob("*.json"), key=lambda path: path.stat().st_mtime
    )
    inner = markers[2 * actors - 1 : len(markers) - 2 * actors]
    if len(inner) < 2:
        raise SystemExit(f"{len(markers)} shards are too few for {actors} actors")
    numbers = [int(path.stem.rsplit("-", 1)[-1]) for path in inner[1:]]
    tokens = sum(int(lengths[n * shard_pairs : (n + 1) * shard_pairs].sum()) for n in numbers)
    return tokens / (inner[-1].stat().st_mtime - inner[0].stat().st_mtime)


def measure_actors(options: argparse.Namespace, recipe_in: Callable[..., Any]) -> None:
    """Print a JSON line for each number of actors and of GPUs per copy of the model."""
    results = []
    first = recipe_in("first")
    with ray_session(first.ray):
        run_stages(first, (PREPARE,), lambda line: None, quiet=True)
        pairs = open_pairs(Run(first))
        lengths = pairs.lengths("train")
        for gpus in (int(number) for number in options.gpus_per_model.split(",")):
            for actors in (int(number) for number in options.actors.split(",")):
                recipe = recipe_in("ray", num_actors=actors, gpus_per_model=gpus)
                started = time.perf_counter()
                REFERENCE.run(Run(recipe), print, True)
                seconds = time.perf_counter() - started
                stage = options.work / "ray" / "reference"
                feature = sorted(recipe.stored_features())[0]
                rate = steady_rate(stage, feature, lengths, options.shard_pairs, actors)
                record = {
                    "side": "ray",
                    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                    "torch": torch.__version__,
                    "model": options.model,
                    "features": options.features,
                    "actors": actors,
                    "gpus_per_model": gpus,
                    "steady_tokens_per_second": rate,
                    "whole": rates(seconds, 0.0, pairs.num_rows("train"), int(lengths.sum())),
                }
                print(json.dumps(record), flush=True)
                results.append(record)
    print(json.dumps({"benchmark": "reference_stage", "results": results}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help="model directory, or a shape of benchmarks/shapes.py"
    )
    parser.add_argument("--tokenizer", default="", help="directory of the tokenizer, for a shape")
    parser.add_argument(
        "--pairs", required=True, type=Path, help="JSON lines with prompt, chosen, rejected"
    )
    parser.add_argument("--limit", type=int, default=None, help="rows of the file")
    parser.add_argument("--repeat", type=int, default=1, help="copies of them")
    parser.add_argument("--features", choices=WANTED, default="kl")
    parser.add_argument("--layout", choices=("auto", "packed", "padded"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--batch-tokens", type=int, default=None)
    parser.add_argument(
        "--max-tokens", type=int, default=512, help="of a prompt, and of a response"
    )
    parser.add_argument("--shard-pairs", type=int, default=512)
    parser.add_argument(
        "--trl-batches",
        default="8,16,32",
        help="batch sizes of TRL, comma separated; empty to leave it out",
    )
    parser.add_argument(
        "--trl-rows", type=int, default=None, help="rows that TRL scores; all by default"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--actors", default="", help="comma separated; see above")
    parser.add_argument("--gpus-per-model", default="", help="comma separated; see above")
    parser.add_argument("--ray", action="store_true", help="run the stage through Ray too")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()

    options.work.mkdir(parents=True, exist_ok=True)
    directory = model_directory(options.model, options.tokenizer, options.work)
    rows_file = options.work / "pairs.jsonl"
    write_pairs(options.pairs, rows_file, options.limit, options.repeat)
    wanted = WANTED[options.features]
    base: dict[str, Any] = {
        "model": {"name_or_path": str(directory)},
        "data": {
            "sources": [{"path": str(rows_file), "form": "text"}],
            "max_prompt_tokens": options.max_tokens,
            "max_response_tokens": options.max_tokens,
            "shard_pairs": options.shard_pairs,
        },
        **wanted,
        "reference": {
            **wanted.get("reference", {}),
            "layout": options.layout,
            "dtype": options.dtype,
            "batch_tokens": options.batch_tokens,
        },
        "paths": {"pairs": str(options.work / "prepared" / str(options.repeat))},
    }

    def recipe_in(name: str, **reference: int) -> Any:
        shutil.rmtree(options.work / name, ignore_errors=True)
        body = {**base, "reference": {**base["reference"], **reference}}
        return validate_recipe({**body, "run_dir": str(options.work / name)})

    if options.actors or options.gpus_per_model:
        options.actors = options.actors or "1"
        options.gpus_per_model = options.gpus_per_model or "1"
        measure_actors(options, recipe_in)
        return
    recipe = recipe_in("stage")
    with ray_session(recipe.ray):
        run_stages(recipe, (PREPARE,), lambda line: None, quiet=True)
        through_ray = None
        if options.ray:
            ray_recipe = recipe_in("ray")
            started = time.perf_counter()
            through_ray = {
                **REFERENCE.run(Run(ray_recipe), print, True)["counts"],
                "seconds": time.perf_counter() - started,
            }
    pairs = open_pairs(Run(recipe))
    shards, total = pairs.num_shards("train"), pairs.num_rows("train")
    tokens = int(pairs.lengths("train").sum())
    features = tuple(sorted(recipe.stored_features()))
    scorer: Any = ShardScorer(scoring_facts(Run(recipe), Run(recipe).record(REFERENCE), features))
    tasks = [ShardTask("train", number, features) for number in range(shards)]

    def stage() -> None:
        shutil.rmtree(options.work / "stage" / "reference", ignore_errors=True)
        with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
            list(pool.map(scorer, tasks))

    stage()  # warm-up: loads the model, compiles, fills the allocators
    layout = scorer._reference_layout
    batches = []
    for number in range(shards):
        for window in scorer._windows(pairs.shard("train", number, TOKEN_COLUMNS)):
            batches += [
                layout.inputs([window.pairs[i] for i in places])
                for places in layout.batches(window.pairs)
            ]
    model: Any
    head: Any
    model, head, device = scorer._reference.causal_lm, scorer._reference.head, scorer._device

    @torch.no_grad()
    def bare() -> None:
        for batch in batches:
            inputs = batch.to(device)
            score_tokens(
                scored_rows(run_backbone(model, inputs).last_hidden_state, inputs),
                head,
                inputs.labels,
            )

    bare()
    found: dict[str, list[tuple[float, float]]] = {"bare": [], "stage": []}
    for _ in range(options.rounds):
        found["bare"].append(timed(bare))
        found["stage"].append(timed(stage))
    best = {name: min(times) for name, times in found.items()}
    written = sum(
        path.stat().st_size for path in (options.work / "stage" / "reference").rglob("*.parquet")
    )
    scored = sum(
        json.loads(p.read_text())["tokens"]
        for p in (options.work / "stage" / "reference" / "shards" / features[0]).glob("*.json")
    )
    result: dict[str, Any] = {
        "benchmark": "reference_stage",
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "model": options.model,
        "features": features,
        "layout": layout.kind,
        "batch_tokens": layout.budget,
        "pairs": total,
        "tokens": tokens,
        "scored_tokens": scored,
        "mean_tokens": {"prompt": (tokens - scored) / 2 / total, "response": scored / 2 / total},
        "bare": rates(*best["bare"], total, tokens),
        "stage": rates(*best["stage"], total, tokens),
        "stage_over_bare": best["bare"][0] / best["stage"][0],
        "all_seconds": {name: [seconds for seconds, _ in times] for name, times in found.items()},
        "bytes_per_scored_token": written / scored,
        "written_gib": written / 2**30,
    }
    if through_ray is not None:
        result["ray"] = rates(through_ray["seconds"], 0.0, total, tokens)
    # The peer gets the whole GPU: what `bare` and `stage` hold goes first.
    scorer = model = head = None
    batches.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    sizes = [int(size) for size in options.trl_batches.split(",") if size]
    if sizes:
        texts = [
            {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            for prompt, chosen, rejected in zip(
                *(pairs.column("train", name) for name in ("prompt", "chosen", "rejected")),
                strict=True,
            )
        ]
        count = min(total, options.trl_rows or total)
        counted = int(pairs.lengths("train")[:count].sum())
        result["trl"] = {"pairs": count}
        best_rate = 0.0
        for size in sizes:
            print(json.dumps(result), flush=True)
            run = rates(
                *trl_seconds(directory, texts[:count], size, options.work, 2 * options.max_tokens),
                count,
                counted,
            )
            best_rate = max(best_rate, run["pairs_per_second"])
            result["trl"][str(size)] = run
            result["stage_over_best_trl"] = result["stage"]["pairs_per_second"] / best_rate
    print(json.dumps(result))


if __name__ == "__main__":
    main()
