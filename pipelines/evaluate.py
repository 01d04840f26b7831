"""evaluate: held-out preference, sentiment of samples and mask statistics of a trained run (Ray Data actor pool)."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tqdm import tqdm

from evaluation.benchmarks import masks_benchmark, preference_benchmark, sentiment_benchmark
from evaluation.key_tokens import key_token_labels
from pipelines.config import Recipe
from pipelines.errors import UserError
from pipelines.generation import generate
from pipelines.models import compute_device, file_hash, load_causal_lm, load_tokenizer, reference_dtype, resolve_model
from pipelines.pair_table import PairTable
from pipelines.prepare import open_pairs
from pipelines.reference_source import online_reference
from pipelines.rewards import build_reward
from pipelines.sampler import token_budget_batches
from pipelines.stage_record import StageRecord
from pipelines.store import RunStore
from pipelines.train import train_record, train_store
from pipelines.train_worker import build_masks
from sparsepo import LearnedMasks, PolicyModel, head_of, score_tokens
from sparsepo.layouts import TokenizedPair, padded_layout
from sparsepo.records import ModelInputs

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
    if not train_store(recipe).exists("model"):
        raise UserError(f"{train_store(recipe).root} has no trained model: run `sparsepo train` first")
    record = evaluate_record(recipe)
    settings = recipe.evaluate
    pairs = open_pairs(recipe)
    rows = pairs.num_rows(settings.split)
    if rows == 0:
        raise UserError(f"evaluate.split = {settings.split!r}: prepare kept no such pair; set data.{settings.split}_fraction or data.{settings.split}")
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
    tasks = []
    if {"preference", "masks"} & set(settings.benchmarks):
        rows = list(range(min(pairs.num_rows(settings.split), settings.max_pairs or 10**12)))
        tasks += [{"kind": "pairs", "rows": rows[i : i + _PAIRS_PER_TASK], "number": i} for i in range(0, len(rows), _PAIRS_PER_TASK)]
    if "sentiment" in settings.benchmarks:
        first: dict[str, int] = {}
        for row, prompt in enumerate(pairs.column(settings.split, "prompt_hash")):
            first.setdefault(prompt, row)
        rows = list(first.values())[: settings.num_prompts]
        tasks += [{"kind": "samples", "rows": rows[i : i + _PROMPTS_PER_TASK], "number": i} for i in range(0, len(rows), _PROMPTS_PER_TASK)]
    return tasks


def _run(tasks: list[dict[str, Any]], recipe: Recipe, quiet: bool) -> dict[str, list[dict[str, Any]]]:
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    actors = min(len(tasks), recipe.evaluate.num_actors or max(1, gpus))
    cpus = max(1, int(resources.get("CPU", 1)) // actors) if not gpus else 1
    dataset = ray.data.from_items([{"task": json.dumps(t)} for t in tasks], override_num_blocks=len(tasks)).map_batches(
        Evaluator,
        fn_constructor_args=(recipe.model_dump(mode="json"), cpus),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if gpus else 0,
        num_cpus=cpus,
    )
    found: dict[str, list[dict[str, Any]]] = {"pair": [], "response": [], "sample": []}
    with tqdm(total=len(tasks), desc="evaluate", unit="batch", disable=quiet) as progress:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                for kind, items in json.loads(row["records"]).items():
                    found[kind] += items
                progress.update(1)
    return found


class Evaluator:
    """Actor: holds the policy with its masks, the starting model and the reference."""

    def __init__(self, recipe: dict[str, Any], threads: int) -> None:
        self._recipe = Recipe.model_validate(recipe)
        self._settings = self._recipe.evaluate
        self._device = compute_device()
        if self._device.type == "cpu":
            torch.set_num_threads(threads)
        dtype = reference_dtype("auto", self._device)
        start_dir = str(resolve_model(self._recipe.model.name_or_path))
        self._tokenizer = load_tokenizer(str(resolve_model(self._recipe.model.tokenizer or start_dir, tokenizer_only=True)))
        self._reference = online_reference(self._recipe, self._device)
        same = self._recipe.model.reference in (None, self._recipe.model.name_or_path)
        self._start = self._reference.causal_lm if same else load_causal_lm(start_dir, dtype, self._device)
        train = train_store(self._recipe)
        with train.as_local_directory("model") as folder:
            policy = load_causal_lm(str(folder), dtype, self._device)
        masks = build_masks(self._recipe, policy)
        if isinstance(masks, LearnedMasks):
            with train.as_local_directory("masks") as folder:
                masks = LearnedMasks.from_pretrained(folder)
        self._policy = PolicyModel(policy, masks, self._reference.head).to(self._device).eval()
        self._objective = self._recipe.objective.build()
        self._pairs = open_pairs(self._recipe)
        words = Path(self._settings.key_words).read_text().split() if self._settings.key_words else None
        self._key_words = None if words is None else frozenset(w.lower() for w in words)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (row,) = batch.to_pylist()
        task = json.loads(row["task"])
        records = self._score_pairs(task["rows"]) if task["kind"] == "pairs" else {"sample": self._sample(task["rows"], task["number"])}
        return pa.table({"records": [json.dumps(records)]})

    @torch.no_grad()
    def _score_pairs(self, rows: list[int]) -> dict[str, list[dict[str, Any]]]:
        split = self._settings.split
        pairs = self._pairs.pairs(split, rows)
        texts = {side: self._texts(split, rows, side) for side in ("chosen", "rejected")}
        widths = [len(p.prompt) + max(len(r) for r in p.responses()) for p in pairs]
        found: dict[int, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        wanted = self._objective.requires | self._policy.masks.requires | {"reference_logps", "reference_hidden"}
        for batch in token_budget_batches(range(len(pairs)), widths, 2, self._settings.batch_tokens):
            inputs = padded_layout([pairs[i] for i in batch]).to(self._device)
            features = self._reference.features(inputs, wanted)
            scores = self._policy(inputs, features)
            output = self._objective(scores)
            start = features.reference_logps if self._start is self._reference.causal_lm else self._start_logps(inputs)
            assert start is not None and scores.token_kl is not None
            sums = {
                "policy": scores.per_response(scores.policy_logps).tolist(),
                "start": scores.per_response(start).tolist(),
                "kl": scores.per_response(scores.token_kl).tolist(),
            }
            lengths = [len(r) for i in batch for r in pairs[i].responses()]
            flat = {
                name: [part.tolist() for part in value.float().cpu().split(lengths)]
                for name, value in (("reward_mask", scores.reward_mask), ("kl_mask", scores.kl_mask), ("token_kl", scores.token_kl))
            }
            for at, i in enumerate(batch):
                pair = {"reward_chosen": float(output.chosen_rewards[at]), "reward_rejected": float(output.rejected_rewards[at])}
                responses = []
                for side, name in enumerate(("chosen", "rejected")):
                    pair |= {f"{who}_{name}": values[at][side] for who, values in sums.items()}
                    pair[f"num_{name}"] = lengths[2 * at + side]
                    ids = pairs[i].responses()[side]
                    weights = {key: parts[2 * at + side] for key, parts in flat.items()}
                    responses.append({"side": name, **weights, **self._token_texts(ids, texts[name][i])})
                found[i] = (pair, responses)
        ordered = [found[i] for i in range(len(pairs))]
        return {"pair": [p for p, _ in ordered], "response": [r for _, responses in ordered for r in responses]}

    def _start_logps(self, inputs: ModelInputs) -> torch.Tensor:
        hidden = _scored_states(self._start, inputs)
        return score_tokens(hidden, head_of(self._start), inputs.labels)[0]

    def _texts(self, split: str, rows: list[int], side: str) -> list[str]:
        return [self._pairs.shard(split, shard)[side][offset].as_py() for shard, offset in (self._pairs.locate(split, r) for r in rows)]

    def _token_texts(self, ids: Any, text: str) -> dict[str, Any]:
        tokens = [self._tokenizer.decode([int(i)]) for i in ids]
        if self._key_words is None:
            return {"tokens": tokens, "is_key": None}
        offsets = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping[: len(tokens)]
        labels = key_token_labels(text, offsets, self._key_words)
        return {"tokens": tokens, "is_key": labels + [False] * (len(tokens) - len(labels))}

    def _sample(self, rows: list[int], number: int) -> list[dict[str, Any]]:
        pairs = self._pairs.pairs(self._settings.split, rows)
        prompts = [[int(i) for i in p.prompt] for p in pairs]
        seed = self._settings.seed * 1_000_003 + number
        drawn = {
            who: generate(model, self._tokenizer, prompts, self._settings.generation, seed)
            for who, model in (("policy", self._policy.causal_lm), ("start", self._start))
        }
        kl = self._sequence_kl(prompts, drawn["policy"])
        records = []
        for i, prompt in enumerate(prompts):
            record: dict[str, Any] = {"prompt": self._tokenizer.decode(prompt, skip_special_tokens=True), "kl_policy_reference": kl[i]}
            for who, samples in drawn.items():
                record |= {f"{who}_text": self._tokenizer.decode(samples[i], skip_special_tokens=True), f"{who}_tokens": len(samples[i])}
            records.append(record)
        return records

    @torch.no_grad()
    def _sequence_kl(self, prompts: list[list[int]], samples: list[list[int]]) -> list[float]:
        """Per sample the sum over its tokens of KL(policy || reference), nats."""
        pairs = [TokenizedPair(p, s, None) for p, s in zip(prompts, samples, strict=True)]
        totals = [0.0] * len(pairs)
        widths = [len(p.prompt) + len(p.chosen) for p in pairs]
        for batch in token_budget_batches(range(len(pairs)), widths, 1, self._settings.batch_tokens):
            inputs = padded_layout([pairs[i] for i in batch]).to(self._device)
            policy, reference = self._policy.causal_lm, self._reference.causal_lm
            # KL(policy || reference): the policy plays the part of score_tokens' fixed distribution.
            kl = score_tokens(_scored_states(reference, inputs), self._reference.head, inputs.labels, _scored_states(policy, inputs), head_of(policy))[1]
            assert kl is not None
            for i, part in zip(batch, kl.split([len(pairs[i].chosen) for i in batch]), strict=True):
                totals[i] = float(part.sum())
        return totals


def _scored_states(causal_lm: Any, inputs: ModelInputs) -> torch.Tensor:
    output = causal_lm.base_model(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, position_ids=inputs.position_ids, use_cache=False
    )
    states: torch.Tensor = output.last_hidden_state.flatten(0, 1).index_select(0, inputs.score_rows)
    return states


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
    record.store.write_table(f"history/part-{len(record.store.list('history')):05d}.parquet", table)
