"""sample: n candidates per prompt from a model, scored.

They have the scored-candidates form that prepare reads.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.cluster import Pool, local_paths, run_tasks
from pipelines.errors import UserError
from pipelines.evaluate.rewards import Reward, build_reward
from pipelines.models import (
    ResponseEnds,
    compute_device,
    generate,
    load_causal_lm,
    load_tokenizer,
    reference_dtype,
    resolve_model,
)
from pipelines.pairs import PairEncoder, chunks_of, read_chunk
from pipelines.recipe import CANDIDATES, DataSection, Recipe, SampleSection, StageRecord
from pipelines.storage import RunStore, TaskResults, digest


def run_sample(
    recipe: Recipe, record: StageRecord, ends: ResponseEnds, quiet: bool = False
) -> dict[str, Any]:
    """Sample and score candidates for every distinct prompt of data.sources; returns the manifest.

    Needs a running Ray. A killed one goes on where it was: the candidates of finished tasks are
    kept in sample/parts.

    Raises: UserError for a reward that cannot be built, or no prompt.
    """
    prompts = _prompts(recipe)
    tasks = _tasks(prompts, recipe.sample.batch_prompts)
    record.begin()
    record.store.sweep_temporary()
    parts = TaskResults(record.store)
    todo = parts.missing(tasks)
    pool = Pool("sample", recipe.ray, local_paths(recipe), lighter="lower sample.batch_prompts")
    parts.add(todo, run_tasks(todo, CandidateSampler, sampling_facts(recipe, ends), pool, quiet))
    _publish(record.store, parts.results(tasks))
    counts = {"prompts": len(prompts), "candidates": len(prompts) * recipe.sample.num_candidates}
    manifest = record.finish(counts, {CANDIDATES: record.store.checksum(CANDIDATES)})
    parts.clear()
    return manifest


@dataclass(frozen=True)
class DrawCandidates:
    """Draw and score the candidates of some prompts.

    Attributes:
        batch_prompts: of every task but the last; it says which prompts a number stands for.
    """

    number: int
    batch_prompts: int
    prompts: tuple[str, ...]

    @property
    def kind(self) -> str:
        return f"candidates{self.batch_prompts}-"


@dataclass(frozen=True)
class SamplingFacts:
    """What a `CandidateSampler` needs besides its tasks.

    Attributes:
        model: its name or path. ends: of its responses. data: how prompts are tokenised and cut.
    """

    model: str
    ends: ResponseEnds
    data: DataSection
    settings: SampleSection


def sampling_facts(recipe: Recipe, ends: ResponseEnds) -> SamplingFacts:
    return SamplingFacts(recipe.model.name_or_path, ends, recipe.data, recipe.sample)


class CandidateSampler:
    """Actor: the sampling model, and the reward, which is built when a task first asks for it."""

    def __init__(self, facts: SamplingFacts) -> None:
        self._settings, self._ends = facts.settings, facts.ends
        device = compute_device()
        directory = str(resolve_model(facts.model))
        self._tokenizer = load_tokenizer(directory)
        self._encoder = PairEncoder(self._tokenizer, facts.data)
        self._model = load_causal_lm(directory, reference_dtype("auto", device), device)

    @cached_property
    def _reward(self) -> Reward:
        return build_reward(self._settings.reward)

    def __call__(self, task: DrawCandidates) -> list[dict[str, Any]]:
        """Per prompt: prompt, responses and their scores."""
        settings, count = self._settings, self._settings.num_candidates
        ids = [self._encoder.asked(prompt) for prompt in task.prompts]
        seed = settings.seed * 1_000_003 + task.number
        drawn = generate(self._model, self._ends, ids, settings.generation, seed, count)
        texts = [self._ends.text(self._tokenizer, sample) for sample in drawn]
        scores = self._reward(texts)
        return [
            {
                "prompt": prompt,
                "responses": texts[i * count : (i + 1) * count],
                "scores": scores[i * count : (i + 1) * count],
            }
            for i, prompt in enumerate(task.prompts)
        ]


def _tasks(prompts: Sequence[str], size: int) -> list[DrawCandidates]:
    return [
        DrawCandidates(first, size, tuple(prompts[first : first + size]))
        for first in range(0, len(prompts), size)
    ]


def _publish(store: RunStore, results: Iterable[list[dict[str, Any]]]) -> None:
    """Write the candidates line by line."""
    folder = store.staging_directory()
    try:
        with (folder / CANDIDATES).open("w") as lines:
            for found in results:
                lines.writelines(json.dumps(candidates) + "\n" for candidates in found)
        store.publish_file(folder / CANDIDATES, CANDIDATES)
    finally:
        shutil.rmtree(folder)


def _prompts(recipe: Recipe) -> list[str]:
    """The distinct prompts of data.sources in an order drawn by sample.seed, at most max_prompts.

    Raises: UserError if there is none.
    """
    tokenizer = load_tokenizer(str(resolve_model(recipe.model.name_or_path)))

    def found() -> Iterator[str]:
        for source in recipe.data.sources:
            for chunk in chunks_of(source, recipe.data.rows_per_task):
                for _, row in read_chunk(chunk):
                    value = (row or {}).get(source.columns.prompt)
                    if isinstance(value, list):
                        value = tokenizer.apply_chat_template(
                            value, tokenize=False, add_generation_prompt=True
                        )
                    if isinstance(value, str) and value.strip():
                        yield value

    prompts = first_prompts(found(), recipe.sample.seed, recipe.sample.max_prompts)
    if not prompts:
        names = ", ".join(s.columns.prompt for s in recipe.data.sources)
        raise UserError(
            f"no prompt in column {names} of {', '.join(s.path for s in recipe.data.sources)}"
        )
    return prompts


def first_prompts(prompts: Iterable[str], seed: int, most: int | None) -> list[str]:
    """The distinct prompts in the order of their hashes with a seed, the first ones if many.

    About twice as many as are asked for are kept at a time.
    """
    kept: dict[str, str] = {}
    last = ""  # the rank that a further prompt has to come before, once so many are known
    for prompt in prompts:
        rank = digest([seed, prompt])
        if last and rank >= last:
            continue
        kept[rank] = prompt
        if most is not None and len(kept) >= 2 * most:
            kept = dict(sorted(kept.items())[:most])
            last = max(kept)
    return [prompt for _, prompt in sorted(kept.items())[:most]]
