"""sample: n candidates per prompt from a model, scored.

They have the scored-candidates form that prepare reads.
"""

import json
from typing import Any

from pipelines.cluster import run_tasks
from pipelines.errors import UserError
from pipelines.evaluate.rewards import build_reward
from pipelines.models import (
    compute_device,
    generate,
    load_causal_lm,
    load_tokenizer,
    reference_dtype,
    resolve_model,
    response_ends,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from pipelines.pairs import PairEncoder, RawPair, chunks_of, read_chunk, source_fingerprint
from pipelines.recipe import Recipe, StageRecord
from pipelines.storage import RunStore, digest

CANDIDATES = "candidates.jsonl"


def sample_record(recipe: Recipe) -> StageRecord:
    """The stage record of a recipe's candidates, in RUN/sample."""
    directory = resolve_model(recipe.model.name_or_path)
    inputs = {
        "weights": weights_fingerprint(directory),
        "tokenizer": tokenizer_fingerprint(directory),
        "sources": [source_fingerprint(s) for s in recipe.data.sources],
    }
    inputs |= response_ends(recipe.model.name_or_path).fingerprint()
    record = StageRecord.of(recipe, "sample", RunStore(f"{recipe.run_dir}/sample"), inputs)
    shared = {
        "generation": recipe.sample.generation.model_dump(mode="json"),
        "reward": recipe.sample.reward.model_dump(mode="json"),
    }
    columns = [s.columns.prompt for s in recipe.data.sources]
    return StageRecord(
        record.stage, record.store, {**record.settings, **shared, "prompt_columns": columns}, inputs
    )


def run_sample(recipe: Recipe, quiet: bool = False) -> dict[str, Any]:
    """Sample and score candidates for every distinct prompt of data.sources; returns the manifest.

    Needs a running Ray.
    """
    if recipe.sample.generation.engine != "transformers":
        raise UserError(
            f"sample.generation.engine = {recipe.sample.generation.engine!r}: candidates are "
            "drawn with transformers"
        )
    record = sample_record(recipe)
    prompts = _prompts(recipe)
    record.begin()
    size = recipe.sample.batch_prompts
    tasks = [{"number": i, "prompts": prompts[i : i + size]} for i in range(0, len(prompts), size)]
    reward = build_reward(recipe.sample.reward)
    lines: list[str] = []
    for found in run_tasks(tasks, CandidateSampler, recipe, None, "sample", quiet):
        for candidates in found:
            scored = {**candidates, "scores": reward(candidates["responses"])}
            lines.append(json.dumps(scored))
    record.store.write_bytes(CANDIDATES, "".join(line + "\n" for line in lines).encode())
    counts = {"prompts": len(lines), "candidates": len(lines) * recipe.sample.num_candidates}
    return record.finish(counts, {CANDIDATES: record.store.checksum(CANDIDATES)})


def _prompts(recipe: Recipe) -> list[str]:
    tokenizer = load_tokenizer(str(resolve_model(recipe.model.name_or_path)))
    found: dict[str, None] = {}
    for source in recipe.data.sources:
        for chunk in chunks_of(source, recipe.data.rows_per_task):
            for _, row in read_chunk(chunk):
                value = (row or {}).get(source.columns.prompt)
                if isinstance(value, list):
                    value = tokenizer.apply_chat_template(
                        value, tokenize=False, add_generation_prompt=True
                    )
                if isinstance(value, str) and value.strip():
                    found.setdefault(value)
    if not found:
        names = ", ".join(s.columns.prompt for s in recipe.data.sources)
        raise UserError(
            f"no prompt in column {names} of {', '.join(s.path for s in recipe.data.sources)}"
        )
    ranked = sorted(found, key=lambda p: digest([recipe.sample.seed, p]))
    return ranked[: recipe.sample.max_prompts]


class CandidateSampler:
    """Actor: the sampling model."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        self._recipe = Recipe.model_validate(recipe)
        device = compute_device()
        directory = str(resolve_model(self._recipe.model.name_or_path))
        self._tokenizer = load_tokenizer(directory)
        self._encoder = PairEncoder(self._tokenizer, self._recipe.data)
        self._ends = response_ends(self._recipe.model.name_or_path)
        self._model = load_causal_lm(directory, reference_dtype("auto", device), device)

    def __call__(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        settings, prompts = self._recipe.sample, task["prompts"]
        ids = [self._encoder.encode(RawPair(p, "x", None)).prompt for p in prompts]
        seed = settings.seed * 1_000_003 + task["number"]
        drawn = generate(
            self._model, self._ends, ids, settings.generation, seed, settings.num_candidates
        )
        texts = [self._ends.text(self._tokenizer, sample) for sample in drawn]
        count = settings.num_candidates
        return [
            {"prompt": prompt, "responses": texts[i * count : (i + 1) * count]}
            for i, prompt in enumerate(prompts)
        ]
