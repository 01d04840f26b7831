"""evaluate: benchmarks of a trained run's model beside the model it started from.

They run in Ray Data actor pools.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.cluster import run_tasks
from pipelines.errors import UserError
from pipelines.evaluate.actor import Evaluator, code_prompt_ids, prompt_ids
from pipelines.evaluate.held_out import check_held_out, check_kept
from pipelines.evaluate.history import append_history
from pipelines.evaluate.leaderboard import task_files_hash
from pipelines.models import (
    ADAPTER_CONFIG,
    Placement,
    ResponseEnds,
    load_tokenizer,
    resolve_model,
    response_ends,
)
from pipelines.pairs import SPLITS, PairTable, open_pairs
from pipelines.recipe import OpenAIJudge, Recipe, StageRecord, VaderReward
from pipelines.reference import usable_rows
from pipelines.storage import RunStore, TaskResults, digest, file_hash
from pipelines.train import check_files, check_published, train_record, train_store

# The modules that benchmarks and their models need are heavy, and of no use to the other stages,
# which import this one for its record.
if TYPE_CHECKING:
    from pipelines.evaluate.judge import EndpointJudge

SAMPLES = "samples/samples.jsonl"
TOKENS = "samples/tokens.jsonl"
CODE_SAMPLES = "samples/code.jsonl"
_PAIRS_PER_TASK, _TEXTS_PER_TASK, _RESPONSES_SHOWN = 128, 64, 12
Records = list[dict[str, Any]]


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
    _check_engine(recipe, step)
    if step is None:
        check_published(recipe)
    else:
        check_files(
            train_store(recipe),
            step,
            Placement.choose("auto", torch.device("cpu"), rank=0, world=1),
        )
    record = evaluate_record(recipe, step)
    settings = recipe.evaluate
    judge = (
        EndpointJudge(settings.judge, record.store)
        if isinstance(settings.judge, OpenAIJudge) and "dialogue" in settings.benchmarks
        else None
    )
    pairs = open_pairs(recipe)
    check_kept(recipe, {split: pairs.num_rows(split) for split in SPLITS}, evaluates=True)
    tasks = [{**task, "step": step} for task in _tasks(recipe, pairs)]
    record.begin()
    parts = TaskResults(record.store)
    todo = _with_vllm_samples(recipe, parts.missing(tasks), pairs)
    parts.add(todo, run_tasks(todo, Evaluator, recipe, settings.num_actors, "evaluate", quiet))
    found: dict[str, Records] = {
        "pair": [],
        "response": [],
        "sample": [],
        "program": [],
        "leaderboard": [],
    }
    for records in parts.results(tasks):
        for kind, items in records.items():
            found[kind] += items
    samples = _scored(
        sorted(found["sample"], key=lambda s: (s["temperature_number"], s["order"])),
        recipe,
        parts,
        quiet,
    )
    if judge is not None:
        _ask(judge, samples, quiet)
    results = _results(recipe, found, samples)
    if samples:
        record.store.write_bytes(SAMPLES, _lines(samples))
    if found["program"]:
        record.store.write_bytes(CODE_SAMPLES, _lines(_by_task(found["program"])))
    record.store.write_bytes(TOKENS, _lines(found["response"][:_RESPONSES_SHOWN]))
    for name, result in results.items():
        record.store.write_json(f"{name}.json", result)
    append_history(evaluation_store(recipe), results, record, step)
    warnings = [
        f"the model lists {token} as an end of responses, which is ordinary text to its "
        "tokenizer: sampling goes on after it"
        for token in (
            ends_of(recipe).left_out if samples or found["program"] or found["leaderboard"] else ()
        )
    ]
    manifest = record.finish(
        {"benchmarks": sorted(results), "results": results, "warnings": warnings}
    )
    parts.clear()
    return manifest


def check_evaluation(recipe: Recipe) -> None:
    """Check what the benchmarks need besides the trained model.

    A run then ends before its training rather than after it.

    Raises: UserError for held-out pairs that the recipe does not keep back, a package that is not
        installed, a model, task file, key or chat template that is not there.
    """
    from pipelines.evaluate.leaderboard import check_tasks
    from pipelines.evaluate.text_scorer import check_text_models

    settings, wanted = recipe.evaluate, recipe.evaluate.benchmarks
    if not recipe.objective.build().uses_rejected:
        raise UserError(
            f"objective.name = {recipe.objective.name!r} has no preferences to evaluate: train it "
            "with `sparsepo sft`"
        )
    check_held_out(recipe)
    check_text_models(settings)
    _check_engine(recipe, None, is_trained=False)
    asking = {"code": settings.code, "leaderboard": settings.leaderboard}
    for name, section in asking.items():
        if name in wanted and section is not None and section.apply_chat_template:
            tokenizer = resolve_model(
                recipe.model.tokenizer or recipe.model.name_or_path, tokenizer_only=True
            )
            if load_tokenizer(str(tokenizer)).chat_template is None:
                raise UserError(
                    f"evaluate.{name}.apply_chat_template: the tokenizer of {tokenizer} has no "
                    "chat template"
                )
    if "leaderboard" in wanted and settings.leaderboard is not None:
        check_tasks(settings.leaderboard)
    if "code" in wanted and settings.code is not None:
        from pipelines.evaluate.code_tasks import read_code_tasks

        read_code_tasks(settings.code)
    if "dialogue" in wanted and isinstance(settings.judge, OpenAIJudge):
        from pipelines.evaluate.judge import judge_key

        judge_key(settings.judge)


def _tasks(recipe: Recipe, pairs: PairTable) -> list[dict[str, Any]]:
    """What the evaluating actors do.

    It is a function of recipe and pairs: a resumed evaluation has the same tasks.
    """
    settings = recipe.evaluate
    usable = usable_rows(recipe, pairs, settings.split)
    tasks: list[dict[str, Any]] = []
    if {"preference", "masks"} & set(settings.benchmarks):
        for number, rows in _chunks(usable[: settings.max_pairs], _PAIRS_PER_TASK):
            tasks.append({"kind": "pairs", "number": number, "rows": rows})
    if settings.sampled_benchmarks():
        first: dict[str, int] = {}
        prompts = pairs.column(settings.split, "prompt_hash")
        for row in usable:
            first.setdefault(prompts[row], row)
        chosen = list(enumerate(list(first.values())[: settings.num_prompts]))
        lengths = {row: len(pairs.pairs(settings.split, [row])[0].prompt) for _, row in chosen}
        chosen.sort(
            key=lambda item: lengths[item[1]]
        )  # prompts of one length need no padding beside each other
        for t, temperature in enumerate(settings.sampling_temperatures()):
            for number, items in _chunks(chosen, settings.sequences_per_batch):
                named = {
                    "rows": [row for _, row in items],
                    "order": [at for at, _ in items],
                    "temperature": temperature,
                }
                tasks.append(
                    {"kind": f"samples{t}", "temperature_number": t, "number": number, **named}
                )
    if "code" in settings.benchmarks:
        from pipelines.evaluate.code_tasks import read_code_tasks

        assert settings.code is not None
        at_once = min(settings.code.num_samples, settings.sequences_per_batch)
        prompts_each = max(1, settings.sequences_per_batch // at_once)
        found = read_code_tasks(settings.code)
        for number, items in _chunks(
            sorted(found, key=lambda task: len(task.prompt)), prompts_each
        ):
            for start in range(0, settings.code.num_samples, at_once):
                drawn = min(at_once, settings.code.num_samples - start)
                named = {
                    "task_ids": [task.task_id for task in items],
                    "prompts": [task.prompt for task in items],
                    "num_samples": drawn,
                }
                tasks.append(
                    {"kind": f"programs{start}", "number": number, "start": start, **named}
                )
    if "leaderboard" in settings.benchmarks:
        tasks.append({"kind": "leaderboard", "number": 0})
    return tasks


def _with_vllm_samples(
    recipe: Recipe, tasks: list[dict[str, Any]], pairs: PairTable
) -> list[dict[str, Any]]:
    """The tasks with their samples, where the recipe has vLLM draw them."""
    settings, code = recipe.evaluate, recipe.evaluate.code
    by_rows = settings.generation.engine == "vllm"
    by_programs = code is not None and code.generation.engine == "vllm"
    wanted = {
        i
        for i, t in enumerate(tasks)
        if (by_rows and "order" in t) or (by_programs and "task_ids" in t)
    }
    if not wanted:
        return tasks
    from pipelines.evaluate.vllm_generation import Request, vllm_samples

    tokenizer = load_tokenizer(
        str(resolve_model(recipe.model.tokenizer or recipe.model.name_or_path, tokenizer_only=True))
    )
    requests: dict[int, list[list[Request]]] = {}
    for i in wanted:
        task = tasks[i]
        if "order" in task:
            prompts = prompt_ids(pairs, settings.split, task["rows"])
            generation, count = (
                settings.generation.model_copy(update={"temperature": task["temperature"]}),
                1,
            )
        else:
            assert code is not None
            prompts = [code_prompt_ids(tokenizer, code, prompt) for prompt in task["prompts"]]
            generation, count = code.generation, task["num_samples"]
        seed = int(digest([settings.seed, task["kind"], task["number"]])[:8], 16)
        requests[i] = [
            [Request(prompt, generation, seed + at * count + k) for k in range(count)]
            for at, prompt in enumerate(prompts)
        ]
    flat = [request for i in sorted(wanted) for each in requests[i] for request in each]
    found = {i: {**tasks[i], "drawn": {}} for i in wanted}
    for who, model in (
        ("policy", f"{train_store(recipe).root}/model"),
        ("start", str(resolve_model(recipe.model.name_or_path))),
    ):
        samples = iter(vllm_samples(model, ends_of(recipe), flat))
        for i in sorted(wanted):
            found[i]["drawn"][who] = [[next(samples) for _ in each] for each in requests[i]]
    return [found.get(i, task) for i, task in enumerate(tasks)]


def _check_engine(recipe: Recipe, step: int | None, is_trained: bool = True) -> None:
    """UserError if vLLM is to draw samples and cannot.

    For a model that is not trained yet: if it is known that it could not.
    """
    settings = recipe.evaluate
    engines = [settings.generation.engine] if settings.sampled_benchmarks() else []
    if "code" in settings.benchmarks and settings.code is not None:
        engines.append(settings.code.generation.engine)
    if "vllm" not in engines:
        return
    from pipelines.evaluate.vllm_generation import require_vllm

    require_vllm()
    if step is not None:
        raise UserError(
            "generation.engine = 'vllm': checkpoints have no model directory that vLLM could "
            "load; take engine=transformers"
        )
    lora = recipe.train.lora
    has_adapter = (
        train_store(recipe).exists(f"model/{ADAPTER_CONFIG}")
        if is_trained
        else lora is not None and lora.save == "adapter"
    )
    if not train_store(recipe).is_local or has_adapter:
        raise UserError(
            f"generation.engine = 'vllm': {train_store(recipe).root}/model must be whole weights "
            "on a disk that every node sees (train.lora.save=merged)"
        )


def _chunks(items: list[Any], size: int) -> Iterable[tuple[int, list[Any]]]:
    return ((i, items[i : i + size]) for i in range(0, len(items), size))


def _scored(samples: Records, recipe: Recipe, parts: TaskResults, quiet: bool) -> Records:
    """Add what the sampled benchmarks need of each text; in actors where it takes a model."""
    from pipelines.evaluate.text_scorer import TextScorer

    settings = recipe.evaluate
    wanted = {
        "reward": "sentiment" in settings.benchmarks,
        "judge": "dialogue" in settings.benchmarks and not isinstance(settings.judge, OpenAIJudge),
        "bert_score": "summarization" in settings.benchmarks
        and settings.summarization.bert_score_model is not None,
        "entailment": "summarization" in settings.benchmarks
        and settings.summarization.entailment_model is not None,
    }
    names = [name for name, is_wanted in wanted.items() if is_wanted]
    if not names or not samples:
        return samples
    if names == ["reward"] and isinstance(settings.reward, VaderReward):
        return TextScorer(recipe.model_dump(mode="json"))({"records": samples, "wanted": names})
    tasks = [
        {"kind": "scores", "number": number, "records": items, "wanted": names}
        for number, items in _chunks(samples, _TEXTS_PER_TASK)
    ]
    todo = parts.missing(tasks)
    parts.add(todo, run_tasks(todo, TextScorer, recipe, settings.num_actors, "score texts", quiet))
    return [record for found in parts.results(tasks) for record in found]


def _ask(judge: "EndpointJudge", samples: Records, quiet: bool) -> None:
    """Add the endpoint's verdicts on the policy's reply against each opponent's."""
    from evaluation.benchmarks.dialogue import OPPONENTS

    for opponent in OPPONENTS:
        prompts, ours, theirs = (
            [s[key] for s in samples] for key in ("prompt", "policy_text", f"{opponent}_text")
        )
        for sample, found in zip(samples, judge.compare(prompts, ours, theirs, quiet), strict=True):
            sample |= {f"{opponent}_{key}": value for key, value in found.items()}


def _results(
    recipe: Recipe, found: dict[str, Records], samples: Records
) -> dict[str, dict[str, Any]]:
    from evaluation.benchmarks import (
        dialogue_benchmark,
        leaderboard_benchmark,
        masks_benchmark,
        preference_benchmark,
        sentiment_benchmark,
        summarization_benchmark,
    )

    settings = recipe.evaluate
    of_samples = {
        "sentiment": sentiment_benchmark,
        "dialogue": dialogue_benchmark,
        "summarization": summarization_benchmark,
    }
    results: dict[str, dict[str, Any]] = {}
    if "preference" in settings.benchmarks:
        results["preference"] = preference_benchmark(
            found["pair"], settings.bootstrap_samples, settings.seed
        )
    if "masks" in settings.benchmarks:
        results["masks"] = masks_benchmark(
            found["response"], settings.bootstrap_samples, settings.seed
        )
    if "leaderboard" in settings.benchmarks:
        results["leaderboard"] = leaderboard_benchmark(
            found["leaderboard"], settings.bootstrap_samples, settings.seed
        )
    for name in settings.sampled_benchmarks():
        results[name] = {}
        for t, temperature in enumerate(settings.sampling_temperatures()):
            drawn = [s for s in samples if s["temperature_number"] == t]
            if name == "dialogue" and not isinstance(settings.judge, OpenAIJudge):
                _compare_scores(drawn)
            numbers = of_samples[name](
                drawn, temperature, settings.bootstrap_samples, settings.seed
            )
            # The first temperature has the plain names; the others say theirs.
            results[name] |= (
                numbers
                if t == 0
                else {f"temperature={temperature:g}/{key}": value for key, value in numbers.items()}
            )
    return results


def _compare_scores(samples: Records) -> None:
    """Verdicts of a reward model: the higher score wins."""
    from evaluation.benchmarks.dialogue import OPPONENTS

    for sample in samples:
        for opponent in OPPONENTS:
            difference = sample["policy_judge_score"] - sample[f"{opponent}_judge_score"]
            sample[f"{opponent}_verdict"] = (
                "policy" if difference > 0 else "opponent" if difference < 0 else "tie"
            )
            sample[f"{opponent}_consistent"] = None


def _by_task(programs: Records) -> Records:
    """One record per programming task, with all samples of both models in order."""
    found: dict[str, dict[str, Any]] = {}
    for part in sorted(programs, key=lambda p: p["start"]):
        record = found.setdefault(
            part["task_id"], {"task_id": part["task_id"], "start_texts": [], "policy_texts": []}
        )
        for who in ("start", "policy"):
            record[f"{who}_texts"] += part[f"{who}_texts"]
    return list(found.values())


def _lines(records: Records) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in records).encode()
