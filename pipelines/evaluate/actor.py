"""The evaluating actor: scores held-out pairs and draws samples.

The numbers are made of its records elsewhere.
"""

from pathlib import Path
from typing import Any

import torch

from evaluation.key_tokens import key_token_labels
from pipelines.errors import UserError
from pipelines.evaluate.leaderboard import run_tasks_of
from pipelines.models import (
    Placement,
    compute_device,
    generate,
    load_causal_lm,
    load_tokenizer,
    reference_dtype,
    resolve_model,
    response_ends,
)
from pipelines.pairs import PairTable, open_pairs
from pipelines.recipe import CodeSection, GenerationSection, Recipe
from pipelines.reference import FeatureSource, feature_origins, load_reference, open_reference
from pipelines.storage import RunStore
from pipelines.train import (
    build_masks,
    build_objective,
    frozen_base,
    load_checkpoint,
    load_policy_model,
    step_folder,
    strategy_of,
)
from sparsepo import LearnedMasks, PolicyModel, head_of, score_tokens
from sparsepo.batching.cutting import token_budget_batches
from sparsepo.batching.layouts import TokenizedPair, padded_layout
from sparsepo.model import scored_states
from sparsepo.records import ModelInputs


class Evaluator:
    """Actor: holds the policy with its masks, the starting model and the reference.

    A task's `step` names the policy: a checkpoint of the run, or None for the published model. It
    is loaded when first asked for.
    """

    def __init__(self, recipe: dict[str, Any]) -> None:
        self._recipe = Recipe.model_validate(recipe)
        self._settings = self._recipe.evaluate
        self._device = compute_device()
        dtype = reference_dtype("auto", self._device)
        start_dir = str(resolve_model(self._recipe.model.name_or_path))
        self._tokenizer = load_tokenizer(
            str(resolve_model(self._recipe.model.tokenizer or start_dir, tokenizer_only=True))
        )
        # Of the starting model for both: what they say is compared.
        self._ends = response_ends(self._recipe.model.name_or_path, self._recipe.model.tokenizer)
        self._reference = load_reference(self._recipe, self._device)
        same = self._recipe.model.reference in (None, self._recipe.model.name_or_path)
        self._start = (
            self._reference.causal_lm if same else load_causal_lm(start_dir, dtype, self._device)
        )
        self._dtype = dtype
        self._loaded: tuple[int | None] | None = None
        self._objective = build_objective(self._recipe.objective)
        self._pairs = open_pairs(self._recipe)
        wanted = (
            self._objective.requires
            | self._recipe.mask.requires()
            | {"reference_logps", "reference_hidden"}
        )
        stored = frozenset(
            feature_origins(self._recipe)
        )  # of the scorers and the embedder, which do not run here
        store = open_reference(self._recipe, self._pairs) if stored else None
        self._source = FeatureSource(self._pairs, wanted, self._reference, store)
        words = (
            Path(self._settings.key_words).read_text().split() if self._settings.key_words else None
        )
        self._key_words = None if words is None else frozenset(w.lower() for w in words)

    def __call__(self, task: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        self._load_policy(task["step"])
        if task["kind"] == "pairs":
            return self._score_pairs(task["rows"])
        if task["kind"] == "leaderboard":
            return {"leaderboard": self._leaderboard()}
        if "task_ids" in task:
            return {"program": self._programs(task)}
        return {"sample": self._sample(task)}

    def _load_policy(self, step: int | None) -> None:
        if self._loaded == (step,):
            return
        masks = build_masks(self._recipe)
        train = RunStore(f"{self._recipe.run_dir}/train")
        if step is None:
            with train.as_local_directory("model") as folder:
                causal_lm = load_causal_lm(str(folder), self._dtype, self._device)
            if isinstance(masks, LearnedMasks):
                with train.as_local_directory("masks") as folder:
                    masks = LearnedMasks.from_pretrained(folder)
            policy = PolicyModel(causal_lm, masks, self._reference.head)
        else:
            placement = Placement.choose(
                self._recipe.train.precision, self._device, rank=0, world=1
            )
            policy = PolicyModel(
                load_policy_model(self._recipe, placement), masks, self._reference.head
            ).to(self._device)
            try:
                load_checkpoint(
                    train, step, policy, None, strategy_of(placement), frozen_base(self._recipe)
                )
            except OSError as error:
                raise UserError(
                    f"{train.root}/{step_folder(step)}: cannot be read: "
                    f"{str(error).splitlines()[0]}"
                ) from error
            if self._recipe.train.lora is not None:
                policy.causal_lm = policy.causal_lm.merge_and_unload()
            policy.causal_lm.to(self._dtype)
        self._policy, self._loaded = policy.to(self._device).eval(), (step,)

    @torch.no_grad()
    def _score_pairs(self, rows: list[int]) -> dict[str, list[dict[str, Any]]]:
        split = self._settings.split
        pairs = self._pairs.pairs(split, rows)
        texts = {side: self._texts(split, rows, side) for side in ("chosen", "rejected")}
        prompts = [name for (name,) in self._pairs.values(split, rows, ["prompt_hash"])]
        widths = [p.width() for p in pairs]
        found: dict[int, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        for batch in token_budget_batches(
            range(len(pairs)), widths, 2, self._settings.batch_tokens
        ):
            inputs = padded_layout([pairs[i] for i in batch]).to(self._device)
            features = self._source.features(split, [rows[i] for i in batch], inputs)
            scores = self._policy(inputs, features)
            output = self._objective(scores)
            start = (
                features.reference_logps
                if self._start is self._reference.causal_lm
                else self._start_logps(inputs)
            )
            assert start is not None and scores.token_kl is not None
            sums = {
                "policy": scores.per_response(scores.policy_logps).tolist(),
                "start": scores.per_response(start).tolist(),
                "kl": scores.per_response(scores.token_kl).tolist(),
            }
            lengths = [len(r) for i in batch for r in pairs[i].responses()]
            flat = {
                name: [part.tolist() for part in value.float().cpu().split(lengths)]
                for name, value in (
                    ("reward_mask", scores.reward_mask),
                    ("kl_mask", scores.kl_mask),
                    ("token_kl", scores.token_kl),
                )
            }
            for at, i in enumerate(batch):
                pair: dict[str, Any] = {"prompt_hash": prompts[i]}
                pair |= {
                    "reward_chosen": float(output.chosen_rewards[at]),
                    "reward_rejected": float(output.rejected_rewards[at]),
                }
                responses = []
                for side, name in enumerate(("chosen", "rejected")):
                    pair |= {f"{who}_{name}": values[at][side] for who, values in sums.items()}
                    pair[f"num_{name}"] = lengths[2 * at + side]
                    ids = pairs[i].responses()[side]
                    weights = {key: parts[2 * at + side] for key, parts in flat.items()}
                    responses.append(
                        {
                            "prompt_hash": prompts[i],
                            "side": name,
                            **weights,
                            **self._token_texts(ids, texts[name][i]),
                        }
                    )
                found[i] = (pair, responses)
        ordered = [found[i] for i in range(len(pairs))]
        return {
            "pair": [p for p, _ in ordered],
            "response": [r for _, responses in ordered for r in responses],
        }

    def _start_logps(self, inputs: ModelInputs) -> torch.Tensor:
        hidden = scored_states(self._start, inputs)
        return score_tokens(hidden, head_of(self._start), inputs.labels)[0]

    def _texts(self, split: str, rows: list[int], side: str) -> list[str]:
        return [text for (text,) in self._pairs.values(split, rows, [side])]

    def _token_texts(self, ids: Any, text: str) -> dict[str, Any]:
        tokens = [self._tokenizer.decode([int(i)]) for i in ids]
        if self._key_words is None:
            return {"tokens": tokens, "is_key": None}
        offsets = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True
        ).offset_mapping[: len(tokens)]
        labels = key_token_labels(text, offsets, self._key_words)
        return {"tokens": tokens, "is_key": labels + [False] * (len(tokens) - len(labels))}

    def _sample(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        """One continuation of each prompt by both models.

        With it comes the policy's distance from the reference along the policy's own continuation.
        """
        rows, split = task["rows"], self._settings.split
        prompts = prompt_ids(self._pairs, split, rows)
        chosen = self._texts(split, rows, "chosen")
        settings = self._settings.generation.model_copy(update={"temperature": task["temperature"]})
        drawn = task.get("drawn") or self._drawn(
            prompts, settings, task["temperature_number"] * 1009 + task["number"], 1
        )
        kl = self._sequence_kl(prompts, [samples[0] for samples in drawn["policy"]])
        records = []
        for i, prompt in enumerate(prompts):
            record: dict[str, Any] = {
                "order": task["order"][i],
                "temperature": task["temperature"],
                "temperature_number": task["temperature_number"],
                "prompt": self._text(prompt),
                "chosen_text": chosen[i],
                "kl_policy_reference": kl[i],
            }
            for who, samples in drawn.items():
                ids = samples[i][0]
                record |= {
                    f"{who}_text": self._ends.text(self._tokenizer, ids),
                    f"{who}_tokens": len(ids),
                }
            records.append(record)
        return records

    def _programs(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        assert self._settings.code is not None
        prompts = [
            code_prompt_ids(self._tokenizer, self._settings.code, prompt)
            for prompt in task["prompts"]
        ]
        drawn = task.get("drawn") or self._drawn(
            prompts,
            self._settings.code.generation,
            task["start"] * 1009 + task["number"],
            task["num_samples"],
        )
        texts = {
            who: [[self._ends.text(self._tokenizer, ids) for ids in each] for each in samples]
            for who, samples in drawn.items()
        }
        return [
            {
                "task_id": name,
                "start": task["start"],
                **{f"{who}_texts": found[i] for who, found in texts.items()},
            }
            for i, name in enumerate(task["task_ids"])
        ]

    def _text(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _leaderboard(self) -> list[dict[str, Any]]:
        section = self._settings.leaderboard
        assert section is not None
        models = {"start": self._start, "policy": self._policy.causal_lm}
        return [
            {
                "model": who,
                **run_tasks_of(section, model, self._tokenizer, self._ends, self._settings.seed),
            }
            for who, model in models.items()
        ]

    def _drawn(
        self, prompts: list[list[int]], settings: GenerationSection, number: int, num_samples: int
    ) -> dict[str, list[list[list[int]]]]:
        """Samples of both models, per prompt."""
        seed = self._settings.seed * 1_000_003 + number
        found = {}
        for who, model in (("policy", self._policy.causal_lm), ("start", self._start)):
            flat = generate(model, self._ends, prompts, settings, seed, num_samples)
            found[who] = [
                flat[i * num_samples : (i + 1) * num_samples] for i in range(len(prompts))
            ]
        return found

    @torch.no_grad()
    def _sequence_kl(self, prompts: list[list[int]], samples: list[list[int]]) -> list[float]:
        """Per sample the sum over its tokens of KL(policy || reference), nats."""
        pairs = [TokenizedPair(p, s, None) for p, s in zip(prompts, samples, strict=True)]
        totals = [0.0] * len(pairs)
        widths = [len(p.prompt) + len(p.chosen) for p in pairs]
        for batch in token_budget_batches(
            range(len(pairs)), widths, 1, self._settings.batch_tokens
        ):
            inputs = padded_layout([pairs[i] for i in batch]).to(self._device)
            policy, reference = self._policy.causal_lm, self._reference.causal_lm
            # KL(policy || reference): the policy plays the part of score_tokens' fixed
            # distribution.
            kl = score_tokens(
                scored_states(reference, inputs),
                self._reference.head,
                inputs.labels,
                scored_states(policy, inputs),
                head_of(policy),
            )[1]
            assert kl is not None
            for i, part in zip(batch, kl.split([len(pairs[i].chosen) for i in batch]), strict=True):
                totals[i] = float(part.sum())
        return totals


def prompt_ids(pairs: PairTable, split: str, rows: list[int]) -> list[list[int]]:
    """Token ids of the prompts of some rows."""
    return [[int(i) for i in pair.prompt] for pair in pairs.pairs(split, rows)]


def code_prompt_ids(tokenizer: Any, section: CodeSection, prompt: str) -> list[int]:
    """Token ids of what a programming task's prompt asks the model."""
    if section.apply_chat_template:
        from evaluation.benchmarks.code import chat_question

        messages = [{"role": "user", "content": chat_question(prompt)}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return [int(i) for i in tokenizer(text, add_special_tokens=False).input_ids]
    return [int(i) for i in tokenizer(prompt).input_ids]
