"""evaluate: benchmarks of a trained run's model beside the model it started from.

They run in Ray Data actor pools.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.cluster import Pool, local_paths, run_tasks
from pipelines.errors import UserError
from pipelines.evaluate.actor import Evaluator
from pipelines.evaluate.checks import check_evaluation, check_weights, wants_vllm
from pipelines.evaluate.facts import EvaluationFacts
from pipelines.evaluate.held_out import check_kept
from pipelines.evaluate.history import append_history
from pipelines.evaluate.leaderboard import task_files_hash
from pipelines.evaluate.policy import training_facts
from pipelines.evaluate.results import Found, benchmark_results
from pipelines.evaluate.sample_scores import ask, scored
from pipelines.evaluate.tasks import (
    EvaluationTask,
    RankWeights,
    Records,
    ScorePairs,
    evaluation_tasks,
)
from pipelines.evaluate.token_weights import TOKEN_WEIGHTS, RankingFacts, WeightRanker
from pipelines.evaluate.vllm_tasks import with_vllm_samples
from pipelines.models import Placement, ResponseEnds, response_ends
from pipelines.pairs import SPLITS, open_pairs
from pipelines.recipe import OpenAIJudge, Recipe, StageRecord
from pipelines.reference import reference_facts, reference_record, usable_rows
from pipelines.storage import RunStore, TaskResults, file_hash
from pipelines.train import check_files, check_published, train_record, train_store

SAMPLES = "samples/samples.jsonl"
TOKENS = "samples/tokens.jsonl"
CODE_SAMPLES = "samples/code.jsonl"


def evaluation_store(recipe: Recipe) -> RunStore:
    return RunStore(f"{recipe.run_dir}/evaluation")


def evaluate_record(recipe: Recipe, step: int | None = None) -> StageRecord:
    """The stage record of the evaluation of a recipe's model, or of a checkpoint.

    Args:
        step: names the checkpoint after that many steps; None is the published model.
    Raises: UserError if a file that the recipe names does not exist.
    """
    inputs: dict[str, Any] = {"train": train_record(recipe).fingerprint()}
    if (
        recipe.evaluate.leaderboard is not None
        and recipe.evaluate.leaderboard.include_path is not None
    ):
        inputs["leaderboard.include_path"] = task_files_hash(
            recipe.evaluate.leaderboard.include_path
        )
    if {*recipe.evaluate.sampled_benchmarks(), "code", "leaderboard"} & set(
        recipe.evaluate.benchmarks
    ):
        inputs |= ends_of(recipe).fingerprint()
    store = evaluation_store(recipe)
    if step is not None:
        inputs["step"] = step
        store = store.at(checkpoint_folder(step))
    code = recipe.evaluate.code
    files = {"key_words": recipe.evaluate.key_words, "code.tasks": code.tasks if code else None}
    for key, name in files.items():
        if name is not None:
            if not Path(name).is_file():
                raise UserError(f"evaluate.{key} = {name!r}: no such file")
            inputs[key] = file_hash(Path(name))
    record = StageRecord.of(recipe, "evaluate", store, inputs)
    settings = {
        key: value
        for key, value in record.settings.items()
        if key.removeprefix("evaluate.") not in files
    }
    return StageRecord(record.stage, record.store, settings, inputs)


def ends_of(recipe: Recipe) -> ResponseEnds:
    """Where samples of the recipe's models end: by its starting model, for all of them."""
    return response_ends(recipe.model.name_or_path, recipe.model.tokenizer)


def checkpoint_folder(step: int) -> str:
    return f"checkpoints/step-{step:08d}"


def run_evaluate(recipe: Recipe, quiet: bool = False, step: int | None = None) -> dict[str, Any]:
    """Evaluate RUN/train/model, or a checkpoint, on held-out pairs and prompts.

    Needs a running Ray. A killed evaluation goes on where it was: what a finished task found is
    kept in evaluation/parts.

    Returns: the stage's manifest.
    Raises: UserError if the run has no trained model or no held-out pair, or a model or file that a
        benchmark needs does not exist.
    """
    from pipelines.evaluate.judge import EndpointJudge

    if step is None and not train_store(recipe).exists("model"):
        raise UserError(
            f"{train_store(recipe).root} has no trained model: run `sparsepo train` first"
        )
    check_evaluation(recipe)
    _check_trained(recipe, step)
    record = evaluate_record(recipe, step)
    settings = recipe.evaluate
    judge = (
        EndpointJudge(settings.judge, record.store)
        if isinstance(settings.judge, OpenAIJudge) and "dialogue" in settings.benchmarks
        else None
    )
    pairs = open_pairs(recipe)
    check_kept(recipe, {split: pairs.num_rows(split) for split in SPLITS}, evaluates=True)
    reference = reference_facts(recipe, reference_record(recipe))
    training = training_facts(recipe, reference)
    facts = EvaluationFacts.of(settings, record.store, training, step, ends_of(recipe))
    tasks = evaluation_tasks(settings, pairs, usable_rows(reference, pairs, settings.split))
    pool = Pool("evaluate", recipe.ray, local_paths(recipe), settings.num_actors)
    record.begin()
    parts = TaskResults(record.store)
    todo = parts.missing(tasks)
    if wants_vllm(settings):
        todo = with_vllm_samples(todo, facts, pairs)
    parts.add(todo, run_tasks(todo, Evaluator, facts, pool, quiet))
    found = Found.of(tasks, parts.results(tasks))
    found.samples = scored(
        found.samples, settings, parts, replace(pool, label="score texts"), quiet
    )
    if judge is not None:
        ask(judge, found.samples, quiet)
    masks = _masks(tasks, facts, parts, pool, quiet) if "masks" in settings.benchmarks else {}
    results = benchmark_results(settings, found, masks)
    _write(record.store, found, results)
    append_history(evaluation_store(recipe), results, record, step)
    samples = found.samples or found.programs or found.leaderboard
    warnings = [
        f"the model lists {token} as an end of responses, which is ordinary text to its "
        "tokenizer: sampling goes on after it"
        for token in (facts.ends.left_out if samples else ())
    ]
    manifest = record.finish(
        {"benchmarks": sorted(results), "results": results, "warnings": warnings}
    )
    parts.clear()
    record.store.delete(TOKEN_WEIGHTS)
    return manifest


def _check_trained(recipe: Recipe, step: int | None) -> None:
    """UserError if the model is not what training wrote, or vLLM is to load it and cannot."""
    check_weights(recipe, step)
    if step is None:
        check_published(recipe)
    else:
        alone = Placement.choose("auto", torch.device("cpu"), rank=0, world=1)
        check_files(train_store(recipe), step, alone)


def _masks(
    tasks: Sequence[EvaluationTask],
    facts: EvaluationFacts,
    parts: TaskResults,
    pool: Pool,
    quiet: bool,
) -> dict[str, Any]:
    """The benchmark of masks: its sums from the parts, its ranks from an actor that has them all.

    The parts are read one after the other, and each is forgotten when it is added.
    """
    from evaluation.benchmarks import mask_totals

    scored_pairs = [task for task in tasks if isinstance(task, ScorePairs)]
    totals = mask_totals(found["masks"] for found in parts.results(scored_pairs))
    ranking = [RankWeights(tuple(task.number for task in scored_pairs))]
    todo = parts.missing(ranking)
    alone = replace(pool, label="rank weights", num_actors=1, gpus_per_actor=0)
    parts.add(
        todo, run_tasks(todo, WeightRanker, RankingFacts(facts.store, facts.settings), alone, quiet)
    )
    return totals | next(parts.results(ranking))


def _write(store: RunStore, found: Found, results: dict[str, dict[str, Any]]) -> None:
    if found.samples:
        store.write_bytes(SAMPLES, _lines(found.samples))
    if found.programs:
        store.write_bytes(CODE_SAMPLES, _lines(found.by_programming_task()))
    store.write_bytes(TOKENS, _lines(found.shown))
    for name, result in results.items():
        store.write_json(f"{name}.json", result)


def _lines(records: Records) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in records).encode()
