"""The evaluating actor: scores held-out pairs and draws samples; the numbers are made of its records elsewhere."""

from pathlib import Path
from typing import Any

import torch

from evaluation.key_tokens import key_token_labels
from pipelines.config import Recipe
from pipelines.feature_source import FeatureSource
from pipelines.generation import generate
from pipelines.models import (
    compute_device,
    load_causal_lm,
    load_tokenizer,
    reference_dtype,
    resolve_model,
)
from pipelines.policy import build_masks
from pipelines.prepare import open_pairs
from pipelines.reference import open_reference
from pipelines.reference_features import feature_origins
from pipelines.reference_worker import load_reference
from pipelines.sampler import token_budget_batches
from pipelines.store import RunStore
from sparsepo import LearnedMasks, PolicyModel, head_of, score_tokens
from sparsepo.layouts import TokenizedPair, padded_layout
from sparsepo.model import scored_states
from sparsepo.records import ModelInputs


class Evaluator:
    """Actor: holds the policy with its masks, the starting model and the reference."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        self._recipe = Recipe.model_validate(recipe)
        self._settings = self._recipe.evaluate
        self._device = compute_device()
        dtype = reference_dtype("auto", self._device)
        start_dir = str(resolve_model(self._recipe.model.name_or_path))
        self._tokenizer = load_tokenizer(str(resolve_model(self._recipe.model.tokenizer or start_dir, tokenizer_only=True)))
        self._reference = load_reference(self._recipe, self._device)
        same = self._recipe.model.reference in (None, self._recipe.model.name_or_path)
        self._start = self._reference.causal_lm if same else load_causal_lm(start_dir, dtype, self._device)
        train = RunStore(f"{self._recipe.run_dir}/train")
        with train.as_local_directory("model") as folder:
            policy = load_causal_lm(str(folder), dtype, self._device)
        masks = build_masks(self._recipe)
        if isinstance(masks, LearnedMasks):
            with train.as_local_directory("masks") as folder:
                masks = LearnedMasks.from_pretrained(folder)
        self._policy = PolicyModel(policy, masks, self._reference.head).to(self._device).eval()
        self._objective = self._recipe.objective.build()
        self._pairs = open_pairs(self._recipe)
        wanted = self._objective.requires | masks.requires | {"reference_logps", "reference_hidden"}
        stored = frozenset(feature_origins(self._recipe))  # of the scorers and the embedder, which do not run here
        store = open_reference(self._recipe, self._pairs) if stored else None
        self._source = FeatureSource(self._pairs, wanted, self._reference, store)
        words = Path(self._settings.key_words).read_text().split() if self._settings.key_words else None
        self._key_words = None if words is None else frozenset(w.lower() for w in words)

    def __call__(self, task: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        if task["kind"] == "pairs":
            return self._score_pairs(task["rows"])
        return {"sample": self._sample(task["rows"], task["number"])}

    @torch.no_grad()
    def _score_pairs(self, rows: list[int]) -> dict[str, list[dict[str, Any]]]:
        split = self._settings.split
        pairs = self._pairs.pairs(split, rows)
        texts = {side: self._texts(split, rows, side) for side in ("chosen", "rejected")}
        widths = [p.width() for p in pairs]
        found: dict[int, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        for batch in token_budget_batches(range(len(pairs)), widths, 2, self._settings.batch_tokens):
            inputs = padded_layout([pairs[i] for i in batch]).to(self._device)
            features = self._source.features(split, [rows[i] for i in batch], inputs)
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
        hidden = scored_states(self._start, inputs)
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
            kl = score_tokens(
                scored_states(reference, inputs), self._reference.head, inputs.labels, scored_states(policy, inputs), head_of(policy)
            )[1]
            assert kl is not None
            for i, part in zip(batch, kl.split([len(pairs[i].chosen) for i in batch]), strict=True):
                totals[i] = float(part.sum())
        return totals
