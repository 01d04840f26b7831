"""sample: n candidates per prompt from a model, scored.

They have the scored-candidates form that prepare reads: in a chat, messages stay messages, so that
prepare finds the very ids that were sampled from.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.cluster import Pool, local_paths, pool_gpus, run_tasks
from pipelines.evaluate.rewards import Reward, build_reward
from pipelines.evaluate.sampling_way import CAPTURED_TASK, Way, sample_seed, way_of
from pipelines.models import (
    JobSampler,
    ResponseEnds,
    compute_device,
    generate,
    load_causal_lm,
    load_tokenizer,
    reference_dtype,
    resolve_model,
)
from pipelines.pairs import Prompt, PromptEncoder, Prompts
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
    coming = Prompts(recipe.data, load_tokenizer(_tokenizer_of(sampling_facts(recipe, ends))))
    prompts = first_prompts(coming, recipe.sample.seed, recipe.sample.max_prompts)
    if not prompts:
        raise coming.none()
    pool = Pool(
        "sample",
        recipe.ray,
        local_paths(recipe),
        recipe.sample.num_actors,
        lighter="lower sample.num_actors or sample.batch_prompts",
    )
    tasks = sampling_tasks(prompts, recipe.sample, pool_gpus(pool))
    record.begin()
    record.store.sweep_temporary()
    parts = TaskResults(record.store)
    todo = parts.missing(tasks)
    parts.add(todo, run_tasks(todo, CandidateSampler, sampling_facts(recipe, ends), pool, quiet))
    warnings = _publish(record.store, parts.results(tasks))
    counts = {
        "prompts": len(prompts),
        "candidates": len(prompts) * recipe.sample.num_candidates,
        "rejected": dict(sorted(coming.reasons.items())),
        "layouts": coming.lines,
        "warnings": warnings,
    }
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
    prompts: tuple[Prompt, ...]
    way: Way = "batches"

    @property
    def kind(self) -> str:
        return f"{'drawn' if self.way == 'batches' else self.way}{self.batch_prompts}-"


@dataclass(frozen=True)
class SamplingFacts:
    """What a `CandidateSampler` needs besides its tasks.

    Attributes:
        model, tokenizer: name or path. ends: of the model's responses. data: how prompts are
            rendered, tokenised and cut.
    """

    model: str
    tokenizer: str
    ends: ResponseEnds
    data: DataSection
    settings: SampleSection


def sampling_facts(recipe: Recipe, ends: ResponseEnds) -> SamplingFacts:
    name = recipe.model.name_or_path
    tokenizer = recipe.model.tokenizer or name
    return SamplingFacts(name, tokenizer, ends, recipe.data, recipe.sample)


def _tokenizer_of(facts: SamplingFacts) -> str:
    return str(resolve_model(facts.tokenizer, tokenizer_only=True))


class CandidateSampler:
    """Actor: the sampling model, and the reward, which is built when a task first asks for it."""

    def __init__(self, facts: SamplingFacts) -> None:
        self._settings, self._ends = facts.settings, facts.ends
        self._job_sampler = JobSampler(facts.ends)
        device = compute_device()
        self._tokenizer = load_tokenizer(_tokenizer_of(facts))
        self._encoder = PromptEncoder(self._tokenizer, facts.data)
        self._model = load_causal_lm(
            str(resolve_model(facts.model)), reference_dtype("auto", device), device
        )

    @cached_property
    def _reward(self) -> Reward:
        return build_reward(self._settings.reward)

    def __call__(self, task: DrawCandidates) -> dict[str, list[Any]]:
        """Candidates: per prompt the prompt (and tools), responses and scores; and warnings."""
        count = self._settings.num_candidates
        drawn = self._drawn(task)
        texts = [self._ends.text(self._tokenizer, sample) for sample in drawn]
        scores = self._reward(texts)
        candidates = [
            {
                **_columns(prompt),
                "responses": texts[i * count : (i + 1) * count],
                "scores": scores[i * count : (i + 1) * count],
            }
            for i, prompt in enumerate(task.prompts)
        ]
        return {"candidates": candidates, "warnings": self._job_sampler.warnings}

    def _drawn(self, task: DrawCandidates) -> list[list[int]]:
        """Token ids of the candidates, prompt by prompt."""
        settings, count = self._settings, self._settings.num_candidates
        ids = [self._encoder(prompt) for prompt in task.prompts]
        if task.way == "batches":
            seed = settings.seed * 1_000_003 + task.number
            return generate(self._model, self._ends, ids, settings.generation, seed, count)
        return self._job_sampler(
            self._model,
            [prompt for prompt in ids for _ in range(count)],
            settings.generation,
            [
                sample_seed(settings.seed, "candidate", task.number + i, k)
                for i in range(len(ids))
                for k in range(count)
            ],
            settings.batch_prompts * count,
        )


def _columns(prompt: Prompt) -> dict[str, Any]:
    """A prompt as `prepare` reads it: a text, or messages and tools."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    return {"prompt": prompt.messages, **({"tools": prompt.tools} if prompt.tools else {})}


def sampling_tasks(
    prompts: Sequence[Prompt], settings: SampleSection, gpus: float
) -> list[DrawCandidates]:
    batch, count = settings.batch_prompts, settings.num_candidates
    way = way_of(gpus, len(prompts) * count, batch * count, settings.generation)
    size = max(1, CAPTURED_TASK // count) if way == "captured" else batch
    return [
        DrawCandidates(first, size, tuple(prompts[first : first + size]), way)
        for first in range(0, len(prompts), size)
    ]


def _publish(store: RunStore, results: Iterable[dict[str, list[Any]]]) -> list[str]:
    """Write the candidates line by line; returns the distinct warnings."""
    folder = store.staging_directory()
    warnings: dict[str, None] = {}
    try:
        staged = folder / CANDIDATES
        with store.told_where(CANDIDATES, staged), staged.open("w") as lines:
            for found in results:
                lines.writelines(json.dumps(prompt) + "\n" for prompt in found["candidates"])
                warnings |= dict.fromkeys(found["warnings"])
        store.publish_file(staged, CANDIDATES)
        return list(warnings)
    finally:
        shutil.rmtree(folder)


def first_prompts(prompts: Iterable[Prompt], seed: int, most: int | None) -> list[Prompt]:
    """The distinct prompts in the order of their hashes with a seed, the first ones if many.

    About twice as many as are asked for are kept at a time.
    """
    kept: dict[str, Prompt] = {}
    last = ""  # the rank that a further prompt has to come before, once so many are known
    for prompt in prompts:
        named = prompt if isinstance(prompt, str) else [prompt.messages, prompt.tools]
        rank = digest([seed, named])
        if last and rank >= last:
            continue
        kept[rank] = prompt
        if most is not None and len(kept) >= 2 * most:
            kept = dict(sorted(kept.items())[:most])
            last = max(kept)
    return [prompt for _, prompt in sorted(kept.items())[:most]]
