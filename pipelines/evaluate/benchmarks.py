"""evaluate: benchmarks of a trained run's model beside the model it started from.

They run in Ray Data actor pools.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pipelines.cluster import Pool, local_paths, pool_gpus, run_alone, run_tasks
from pipelines.errors import UserError
from pipelines.evaluate.actor import Evaluator
from pipelines.evaluate.checks import check_evaluation, check_weights, wants_vllm
from pipelines.evaluate.facts import EvaluationFacts
from pipelines.evaluate.held_out import require_held_out
from pipelines.evaluate.history import append_history
from pipelines.evaluate.other_model import facts_of_policy
from pipelines.evaluate.results import Found, benchmark_results
from pipelines.evaluate.sample_scores import ask, scored
from pipelines.evaluate.tasks import (
    EvaluationTask,
    RankWeights,
    Records,
    ScorePairs,
    evaluation_tasks,
)
from pipelines.evaluate.token_weights import RankingFacts, WeightRanker
from pipelines.evaluate.vllm_tasks import with_vllm_samples
from pipelines.models import Placement, ResponseEnds, evaluated_control
from pipelines.pairs import SPLITS, open_pairs
from pipelines.recipe import (
    CODE_SAMPLES,
    CONTROLLED,
    MODEL,
    SAMPLES,
    TOKEN_WEIGHTS,
    TOKENS,
    OpenAIJudge,
    Run,
    StageRecord,
)
from pipelines.reference import usable_rows
from pipelines.storage import RunStore, TaskResults
from pipelines.train import check_files, check_published

# Bytes of the held-out tokens' weights that are ranked in this process.
_RANKED_HERE = 32 * 2**20


def run_evaluate(
    run: Run,
    record: StageRecord,
    ends: ResponseEnds,
    quiet: bool = False,
    step: int | None = None,
) -> dict[str, Any]:
    """Evaluate RUN/train/model, a checkpoint or evaluate.model on held-out pairs and prompts.

    Needs a running Ray. A killed evaluation goes on where it was: what a finished task found is
    kept in evaluation/parts.

    Returns: the stage's manifest.
    Raises: UserError if the run has no trained model or no held-out pair, or a model or file that a
        benchmark needs does not exist.
    """
    from pipelines.evaluate.judge import EndpointJudge
    from pipelines.evaluate.reward_judge import judge_warnings

    recipe = run.recipe
    is_own = recipe.evaluate.model is None
    if is_own and step is None and not run.paths.train.exists(MODEL):
        raise UserError(f"{run.paths.train.root} has no trained model: run `sparsepo train` first")
    check_evaluation(recipe)
    if is_own:
        _check_trained(run, step)
    settings = recipe.evaluate
    judge = (
        EndpointJudge(settings.judge, record.store)
        if isinstance(settings.judge, OpenAIJudge) and "dialogue" in settings.benchmarks
        else None
    )
    pairs = open_pairs(run)
    require_held_out(recipe, {split: pairs.num_rows(split) for split in SPLITS})
    pairs.check(settings.split)
    control = evaluated_control(recipe)
    facts = EvaluationFacts.of(recipe, record.store, facts_of_policy(run), step, ends, control)
    usable = usable_rows(facts.training.reference, pairs, settings.split)
    pool = Pool(
        "evaluate",
        recipe.ray,
        local_paths(recipe),
        settings.num_actors,
        lighter="lower evaluate.num_actors or evaluate.sequences_per_batch",
    )
    tasks = evaluation_tasks(settings, pairs, usable, pool_gpus(pool))
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
    judged = list(judge_warnings(found.samples))
    if judge is not None:
        ask(judge, found.samples, quiet)
    masks = _masks(tasks, facts, parts, pool.paths) if "masks" in settings.benchmarks else {}
    results = benchmark_results(settings, found, masks)
    outputs = _write(record.store, found, results)
    append_history(run.paths.evaluation, results, record, step)
    samples = found.samples or found.programs or found.leaderboard
    warnings = [
        f"the model lists {token} as an end of responses, which is ordinary text to its "
        "tokenizer: sampling goes on after it"
        for token in (facts.ends.left_out if samples else ())
    ]
    if "summarization" in settings.benchmarks and settings.samples_per_prompt == 1:
        warnings.append(
            "evaluate.samples_per_prompt = 1: self-BLEU compares the samples of a prompt and is "
            "left out"
        )
    warnings += [*judged, *dict.fromkeys(found.warnings)]
    manifest = record.finish(
        {"benchmarks": sorted(results), "results": results, "warnings": warnings}, outputs
    )
    parts.clear()
    record.store.delete(TOKEN_WEIGHTS)
    return manifest


def _check_trained(run: Run, step: int | None) -> None:
    """UserError if the model is not what training wrote, or vLLM is to load it and cannot."""
    train = run.paths.train
    check_weights(run, step)
    if step is None:
        check_published(train)
    else:
        check_files(train, step, Placement.choose("auto", torch.device("cpu"), rank=0, world=1))


def _masks(
    tasks: Sequence[EvaluationTask],
    facts: EvaluationFacts,
    parts: TaskResults,
    paths: dict[str, str],
) -> dict[str, Any]:
    """The benchmark of masks: its sums from the parts, its ranks from a task that has them all.

    That task has a process of its own where the weights are many: starting one takes seconds.

    The parts are read one after the other, and each is forgotten when it is added.
    """
    from evaluation.benchmarks import mask_totals

    scored_pairs = [task for task in tasks if isinstance(task, ScorePairs)]
    totals = mask_totals(found["masks"] for found in parts.results(scored_pairs))
    ranking = RankWeights(tuple(task.number for task in scored_pairs))
    if parts.missing([ranking]):
        known = RankingFacts(facts.store, facts.settings)
        stored = sum(size for _, size, _ in RunStore(facts.store).at(TOKEN_WEIGHTS).files())
        if stored <= _RANKED_HERE:
            result = WeightRanker(known)(ranking)
        else:
            result = run_alone(ranking, WeightRanker, known, paths)
        parts.add([ranking], [result])
    return totals | next(parts.results([ranking]))


def _write(store: RunStore, found: Found, results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Write samples and numbers; returns file -> sha256 of what is read again."""
    lines = {TOKENS: _lines(found.shown)}
    if found.samples:
        lines[SAMPLES] = _lines(found.samples_of(0))
    if others := [sample for sample in found.samples if sample.get("control_number", 0)]:
        lines[CONTROLLED] = _lines(others)
    if found.programs:
        lines[CODE_SAMPLES] = _lines(found.by_programming_task())
    for path, content in lines.items():
        store.write_bytes(path, content)
    for name, result in results.items():
        store.write_json(f"{name}.json", result)
    return {path: hashlib.sha256(content).hexdigest() for path, content in lines.items()}


def _lines(records: Records) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in records).encode()
