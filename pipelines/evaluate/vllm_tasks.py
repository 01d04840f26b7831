"""The samples of an evaluation's tasks, drawn by vLLM before the tasks go to their actors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pipelines.evaluate.facts import EvaluationFacts
from pipelines.evaluate.prompts import CodePrompts, prompt_ids
from pipelines.evaluate.tasks import Drawn, SamplePrompts, WritePrograms
from pipelines.evaluate.vllm_generation import Request, vllm_samples
from pipelines.models import load_tokenizer, resolve_model
from pipelines.pairs import PairTable
from pipelines.recipe import MODEL
from pipelines.storage import digest

Task = TypeVar("Task")


@dataclass(frozen=True)
class _Asked:
    """The requests of a task, per prompt."""

    task: SamplePrompts | WritePrograms
    requests: list[list[Request]]


def with_vllm_samples(
    tasks: Sequence[Task], facts: EvaluationFacts, pairs: PairTable
) -> list[Task]:
    """The tasks with their samples, where the recipe has vLLM draw them."""
    tokenizer = load_tokenizer(str(resolve_model(facts.tokenizer, tokenizer_only=True)))
    asked = {
        i: found
        for i, task in enumerate(tasks)
        if (found := _asked(task, facts, pairs, tokenizer)) is not None
    }
    if not asked:
        return list(tasks)
    flat = [request for each in asked.values() for some in each.requests for request in some]
    named = facts.settings.model
    policy = f"{facts.training.root}/{MODEL}" if named is None else str(resolve_model(named))
    by_policy = iter(vllm_samples(policy, facts.ends, flat))
    by_start = iter(vllm_samples(str(resolve_model(facts.start)), facts.ends, flat))
    drawn: dict[int, Any] = {}
    for i, each in asked.items():
        samples = (_shared_out(by, each.requests) for by in (by_policy, by_start))
        drawn[i] = replace(each.task, drawn=Drawn(*samples))
    return [drawn.get(i, task) for i, task in enumerate(tasks)]


def _asked(task: Any, facts: EvaluationFacts, pairs: PairTable, tokenizer: Any) -> _Asked | None:
    """None for a task whose samples vLLM does not draw."""
    settings = facts.settings
    match task:
        case SamplePrompts() if settings.generation.engine == "vllm":
            prompts = prompt_ids(pairs, settings.split, task.rows)
            generation = settings.generation.model_copy(update={"temperature": task.temperature})
            count = task.num_samples
        case WritePrograms() if settings.code and settings.code.generation.engine == "vllm":
            code = CodePrompts(tokenizer, settings.code, facts.training.chat)
            prompts = [code(text) for text in task.prompts]
            generation, count = settings.code.generation, task.num_samples
        case _:
            return None
    seed = int(digest([settings.seed, task.kind, task.number])[:8], 16)
    return _Asked(
        task,
        [
            [Request(prompt, generation, seed + at * count + k) for k in range(count)]
            for at, prompt in enumerate(prompts)
        ],
    )


def _shared_out(
    samples: Iterator[list[int]], requests: list[list[Request]]
) -> list[list[list[int]]]:
    return [[next(samples) for _ in each] for each in requests]
