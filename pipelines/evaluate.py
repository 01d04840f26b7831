"""evaluate: held-out preference, sentiment of samples and mask statistics of a trained run (Ray Data actor pool)."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.actor_pool import run_tasks
from pipelines.config import Recipe
from pipelines.errors import UserError
from pipelines.evaluate_worker import Evaluator
from pipelines.models import file_hash
from pipelines.pair_table import PairTable
from pipelines.prepare import open_pairs
from pipelines.reference import usable_rows
from pipelines.rewards import build_reward
from pipelines.stage_record import StageRecord
from pipelines.store import RunStore
from pipelines.train import train_record, train_store

SAMPLES = "samples/samples.jsonl"
TOKENS = "samples/tokens.jsonl"
_PAIRS_PER_TASK, _PROMPTS_PER_TASK, _RESPONSES_SHOWN = 128, 64, 12


def evaluation_store(recipe: Recipe) -> RunStore:
    return RunStore(f"{recipe.run_dir}/evaluation")


def evaluate_record(recipe: Recipe) -> StageRecord:
    """The stage record of a recipe's evaluation. UserError if the key word file does not exist."""
    inputs = {"train": train_record(recipe).fingerprint()}
    if recipe.evaluate.key_words:
        path = Path(recipe.evaluate.key_words)
        if not path.is_file():
            raise UserError(f"evaluate.key_words = {recipe.evaluate.key_words!r}: no such file")
        inputs["key_words"] = file_hash(path)
    record = StageRecord.of(recipe, "evaluate", evaluation_store(recipe), inputs)
    settings = {key: value for key, value in record.settings.items() if key != "evaluate.key_words"}
    return StageRecord(record.stage, record.store, settings, inputs)


def run_evaluate(recipe: Recipe, quiet: bool = False) -> dict[str, Any]:
    """Evaluate RUN/train/model on held-out pairs and prompts; returns the stage's manifest. Needs a running Ray.

    Raises: UserError if the run has no trained model or no held-out pair.
    """
    # Heavy, and of no use to the other stages, which import this module for its record.
    from evaluation.benchmarks import masks_benchmark, preference_benchmark, sentiment_benchmark

    if not train_store(recipe).exists("model"):
        raise UserError(f"{train_store(recipe).root} has no trained model: run `sparsepo train` first")
    if not recipe.objective.build().uses_rejected:
        raise UserError(f"objective.name = {recipe.objective.name!r} has no preferences to evaluate: train it with `sparsepo sft`")
    record = evaluate_record(recipe)
    settings = recipe.evaluate
    pairs = open_pairs(recipe)
    rows = pairs.num_rows(settings.split)
    if rows == 0:
        raise UserError(
            f"evaluate.split = {settings.split!r}: prepare kept no such pair; set data.{settings.split}_fraction or data.{settings.split}"
        )
    record.begin()
    tasks = _tasks(recipe, pairs)
    records = _run(tasks, recipe, quiet)
    results: dict[str, dict[str, Any]] = {}
    if "preference" in settings.benchmarks:
        results["preference"] = preference_benchmark(records["pair"], settings.bootstrap_samples, settings.seed)
    if "masks" in settings.benchmarks:
        results["masks"] = masks_benchmark(records["response"], settings.bootstrap_samples, settings.seed)
    if "sentiment" in settings.benchmarks:
        samples = _rewarded(records["sample"], recipe)
        results["sentiment"] = sentiment_benchmark(samples, settings.generation.temperature, settings.bootstrap_samples, settings.seed)
        record.store.write_bytes(SAMPLES, "".join(json.dumps(s) + "\n" for s in samples).encode())
    record.store.write_bytes(TOKENS, "".join(json.dumps(r) + "\n" for r in records["response"][:_RESPONSES_SHOWN]).encode())
    for name, result in results.items():
        record.store.write_json(f"{name}.json", result)
    _append_history(record, results)
    return record.finish({"benchmarks": sorted(results), "results": results})


def _tasks(recipe: Recipe, pairs: PairTable) -> list[dict[str, Any]]:
    settings = recipe.evaluate
    usable = usable_rows(recipe, pairs, settings.split)
    tasks = []
    if {"preference", "masks"} & set(settings.benchmarks):
        rows = usable[: settings.max_pairs]
        tasks += [{"kind": "pairs", "rows": rows[i : i + _PAIRS_PER_TASK], "number": i} for i in range(0, len(rows), _PAIRS_PER_TASK)]
    if "sentiment" in settings.benchmarks:
        first: dict[str, int] = {}
        prompts = pairs.column(settings.split, "prompt_hash")
        for row in usable:
            first.setdefault(prompts[row], row)
        rows = list(first.values())[: settings.num_prompts]
        tasks += [{"kind": "samples", "rows": rows[i : i + _PROMPTS_PER_TASK], "number": i} for i in range(0, len(rows), _PROMPTS_PER_TASK)]
    return tasks


def _run(tasks: list[dict[str, Any]], recipe: Recipe, quiet: bool) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {"pair": [], "response": [], "sample": []}
    for records in run_tasks(tasks, Evaluator, recipe, recipe.evaluate.num_actors, "evaluate", quiet):
        for kind, items in records.items():
            found[kind] += items
    return found


def _rewarded(samples: list[dict[str, Any]], recipe: Recipe) -> list[dict[str, Any]]:
    """Add the reward of each continuation (the prompt is the same for both models)."""
    reward = build_reward(recipe.evaluate.reward)
    for who in ("start", "policy"):
        for sample, value in zip(samples, reward([s[f"{who}_text"] for s in samples]), strict=True):
            sample[f"{who}_reward"] = value
    return samples


def _append_history(record: StageRecord, results: dict[str, dict[str, Any]]) -> None:
    values: dict[str, Any] = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "fingerprint": record.fingerprint()}
    for benchmark, result in results.items():
        for key, value in result.items():
            if isinstance(value, dict) and "mean" in value:
                values[f"{benchmark}/{key}"] = float(value["mean"])
            elif isinstance(value, float):
                values[f"{benchmark}/{key}"] = value
    table = pa.table({key: [value] for key, value in values.items()})
    record.store.write_table(f"history/part-{len(record.store.names('history')):05d}.parquet", table)
