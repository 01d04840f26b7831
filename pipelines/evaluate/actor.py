"""The evaluating actor: scores held-out pairs and draws samples.

The benchmarks' numbers are made of its results elsewhere.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from evaluation.key_tokens import key_token_labels
from pipelines.evaluate.distance import pair_floors, sequence_kl
from pipelines.evaluate.facts import EvaluationFacts
from pipelines.evaluate.leaderboard import run_tasks_of
from pipelines.evaluate.precision import compute_dtype, in_dtype
from pipelines.evaluate.prompts import CodePrompts, prompt_ids
from pipelines.evaluate.sampling_way import sample_seed
from pipelines.evaluate.tasks import (
    FLOOR_PROMPTS,
    Drawn,
    EvaluationTask,
    Records,
    RunLeaderboard,
    SamplePrompts,
    ScorePairs,
    WritePrograms,
)
from pipelines.evaluate.token_weights import write_weights
from pipelines.models import (
    JobSampler,
    TokenTexts,
    compute_device,
    generate,
    in_front,
    load_causal_lm,
    load_tokenizer,
    resolve_model,
)
from pipelines.pairs import Question, answer_ids, read_pairs
from pipelines.recipe import GenerationSection
from pipelines.reference import FeatureSource, load_reference, open_reference
from pipelines.storage import RunStore
from pipelines.train import build_objective, open_policy, open_untrained
from sparsepo import PolicyModel, head_of, score_tokens
from sparsepo.batching.cutting import token_budget_batches
from sparsepo.batching.layouts import TokenizedPair, padded_layout
from sparsepo.features import FEATURES
from sparsepo.model import scored_states
from sparsepo.records import Features, ModelInputs, TokenScores


def _sides(label: bool | None) -> tuple[str, ...]:
    """Names of a pair's responses whose tokens are looked at; of a labelled row its own alone."""
    if label is None:
        return "chosen", "rejected"
    return ("desirable" if label else "undesirable",)


class Evaluator:
    """Actor: holds the policy with its masks, the starting model and the reference.

    The policy is loaded when a task first asks for it: what is wrong with it is a task's failure.
    """

    def __init__(self, facts: EvaluationFacts) -> None:
        self._facts, self._settings, self._ends = facts, facts.settings, facts.ends
        self._job_sampler = JobSampler(facts.ends)
        self._device = compute_device()
        training = facts.training
        self._dtype = compute_dtype(training, self._device)
        directory = resolve_model(facts.tokenizer, tokenizer_only=True)
        self._tokenizer = load_tokenizer(str(directory))
        self._texts_of = TokenTexts(self._tokenizer)
        frozen = in_dtype(training.reference.model, self._dtype)
        self._reference = load_reference(frozen, self._device)
        self._start = (
            self._reference.causal_lm
            if facts.starts_from_reference()
            else load_causal_lm(
                str(resolve_model(facts.start)),
                self._dtype,
                self._device,
                vocabulary=training.reference.model.vocabulary,
            )
        )
        self._objective = build_objective(training.objective)
        self._pairs = read_pairs(RunStore(training.pairs_root))
        wanted = (
            self._objective.requires
            | training.mask.requires()
            | {"reference_logps", "reference_hidden"}
        )
        # The scorers and the embedder do not run here, and nothing runs backward.
        is_stored = any(
            FEATURES[name].origin in ("scorers", "embedder") or FEATURES[name].needs_backward
            for name in wanted
        )
        self._source = FeatureSource(
            self._pairs,
            wanted,
            self._reference,
            open_reference(training.reference, self._pairs) if is_stored else None,
        )

    def __call__(self, task: EvaluationTask) -> dict[str, Any]:
        match task:
            case ScorePairs():
                return self._score_pairs(task)
            case SamplePrompts():
                return {"sample": self._sample(task), "warnings": self._job_sampler.warnings}
            case WritePrograms():
                return {"program": self._programs(task), "warnings": self._job_sampler.warnings}
            case RunLeaderboard():
                return {"leaderboard": self._leaderboard()}

    @cached_property
    def _policy(self) -> PolicyModel:
        facts, head = self._facts, self._reference.head
        if facts.settings.model is not None:
            return open_untrained(facts.training, head, self._dtype, self._device)
        return open_policy(facts.training, facts.step, head, self._dtype, self._device)

    @torch.no_grad()
    def _score_pairs(self, task: ScorePairs) -> dict[str, Any]:
        """The numbers of every pair, the sums of its tokens' weights, and the tokens shown.

        The weights themselves stay in the evaluation's store, for `RankWeights`.
        """
        rows, split = task.rows, self._settings.split
        pairs = self._pairs.pairs(split, rows)
        stored = self._pairs.values(split, rows, ["prompt_hash", "desirable"])
        widths = [p.width() for p in pairs]
        has_masks = "masks" in self._settings.benchmarks
        needs_tokens = range(len(rows) if has_masks else task.num_shown())
        found: dict[int, dict[str, Any]] = {}
        tokens: dict[int, Records] = {}
        for batch in token_budget_batches(
            range(len(pairs)), widths, 2, self._settings.batch_tokens
        ):
            inputs = padded_layout([pairs[i] for i in batch]).to(self._device)
            features = self._source.features(split, [rows[i] for i in batch], inputs)
            scores = self._policy(self._asked(inputs, [pairs[i] for i in batch]), features)
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
            lengths = [scored for i in batch for scored in pairs[i].num_scored()]
            segments = self._segments(scores, features, lengths)
            floors: list[float] = []
            if min(batch) < task.num_shown():
                floors = pair_floors(self._reference, inputs, features, lengths)
            flat = {
                name: [part.tolist() for part in value.float().cpu().split(lengths)]
                for name, value in (
                    ("reward_mask", scores.reward_mask),
                    ("kl_mask", scores.kl_mask),
                    ("token_kl", scores.token_kl),
                )
            }
            for at, i in enumerate(batch):
                prompt, label = stored[i]
                pair: dict[str, Any] = {"prompt_hash": prompt}
                if label is not None:
                    pair["desirable"] = label
                pair |= {
                    "reward_chosen": float(output.chosen_rewards[at]),
                    "reward_rejected": float(output.rejected_rewards[at]),
                }
                for side, name in enumerate(("chosen", "rejected")):
                    pair |= {f"{who}_{name}": values[at][side] for who, values in sums.items()}
                    pair[f"num_{name}"] = lengths[2 * at + side]
                if i < task.num_shown():
                    pair["kl_floor"] = floors[at]
                found[i] = pair
                if i in needs_tokens:
                    tokens[i] = [
                        {
                            "prompt_hash": prompt,
                            "side": name,
                            **{key: parts[2 * at + side] for key, parts in flat.items()},
                            **self._token_texts(pairs[i], side),
                            **({} if segments is None else {"segment": segments[2 * at + side]}),
                        }
                        for side, name in enumerate(_sides(label))
                    ]
        responses = [response for i in needs_tokens for response in tokens[i]]
        return {
            "pair": [found[i] for i in range(len(pairs))],
            "shown": self._with_prompts(
                [(rows[i], response) for i in needs_tokens for response in tokens[i]][
                    : 2 * task.num_shown()
                ]
            ),
            "masks": self._added_up(task.number, responses) if has_masks else None,
        }

    def _behind(self, front: Sequence[int], prompts: Iterable[Sequence[int]]) -> list[list[int]]:
        """The policy's prompts with a control in front."""
        return [in_front(front, prompt, self._tokenizer.bos_token_id) for prompt in prompts]

    def _asked(self, inputs: ModelInputs, pairs: Sequence[TokenizedPair]) -> ModelInputs:
        """What the policy reads of pairs: the first control stands in front."""
        front = self._facts.fronts[0]
        if not front:
            return inputs
        prompts = self._behind(front, (pair.prompt for pair in pairs))
        return padded_layout(
            [replace(pair, prompt=prompt) for pair, prompt in zip(pairs, prompts, strict=True)]
        ).to(self._device)

    def _with_prompts(self, shown: Sequence[tuple[int, dict[str, Any]]]) -> Records:
        """Responses, each given with its row, and the prompt that they answer."""
        rows = list(dict.fromkeys(row for row, _ in shown))
        stored = self._pairs.values(self._settings.split, rows, ["prompt", "conversation"])
        asked = {
            row: prompt if conversation is None else Question.stored(conversation).read()
            for row, (prompt, conversation) in zip(rows, stored, strict=True)
        }
        return [{**response, "prompt": asked[row]} for row, response in shown]

    def _added_up(self, number: int, responses: Records) -> dict[str, Any]:
        from evaluation.benchmarks import mask_sums

        write_weights(RunStore(self._facts.store), number, responses)
        return mask_sums(responses)

    def _segments(
        self, scores: TokenScores, features: Features, lengths: Sequence[int]
    ) -> list[list[int]] | None:
        """Of every response its tokens' segments, from 0 on; None of a mask without any."""
        known = replace(features, policy_logps=scores.policy_logps)
        found = self._policy.masks.segments(known, scores.response_index)
        if found is None:
            return None
        return [(part - part[0]).tolist() for part in found.cpu().split(list(lengths))]

    def _start_logps(self, inputs: ModelInputs) -> torch.Tensor:
        hidden = scored_states(self._start, inputs)
        return score_tokens(hidden, head_of(self._start), inputs.labels)[0]

    def _token_texts(self, pair: TokenizedPair, side: int) -> dict[str, Any]:
        """Of the scored tokens of a response: their texts, and whether they are of key words."""
        texts, places = self._texts_of(pair.responses()[side]), pair.scored_places()[side]
        key_words, labels = self._facts.key_words, None
        if key_words is not None:
            ends = list(itertools.accumulate(map(len, texts), initial=0))
            found = key_token_labels("".join(texts), list(itertools.pairwise(ends)), key_words)
            labels = [found[place] for place in places]
        return {"tokens": [texts[place] for place in places], "is_key": labels}

    def _sample(self, task: SamplePrompts) -> Records:
        """Continuations of each prompt by both models, the policy's behind each control.

        With them comes the policy's distance from the reference along the policy's continuations,
        and for some prompts its floor: that of the reference's own weights in the policy's place.
        The reference reads the prompt alone.
        """
        split = self._settings.split
        prompts = prompt_ids(self._pairs, split, task.rows)
        columns = ["prompt", "chosen", "conversation"]
        stored = self._pairs.values(split, task.rows, columns)
        settings = self._settings.generation.model_copy(update={"temperature": task.temperature})
        drawing = (
            [("reply", task.temperature_number, at) for at in task.order],
            settings,
            task.temperature_number * 1009 + task.number + task.start * 100_003,
            range(task.start, task.start + task.num_samples),
        )
        first = [i for i, at in enumerate(task.order) if at < FLOOR_PROMPTS and not task.start]
        frozen = self._reference.causal_lm
        records: Records = []
        drawn = task.drawn
        for number, front in enumerate(self._facts.fronts):
            asked = self._behind(front, prompts) if front else prompts
            if drawn is None or number:
                start = (
                    drawn.start if drawn else self._drawn_by(self._start, task, prompts, *drawing)
                )
                policy = self._drawn_by(self._policy.causal_lm, task, asked, *drawing)
                drawn = Drawn(policy=policy, start=start)
            kl = self._distances(self._policy.causal_lm, range(len(prompts)), asked, prompts, drawn)
            floor = self._distances(frozen, first, prompts, prompts, drawn)
            found = self._records(task, prompts, stored, drawn, kl, floor)
            if self._settings.control:
                name = self._settings.control[number]
                found = [{**one, "control": name, "control_number": number} for one in found]
            records += found
        return records

    def _records(
        self,
        task: SamplePrompts,
        prompts: list[list[int]],
        stored: Sequence[Sequence[Any]],
        drawn: Drawn,
        kl: dict[int, list[float]],
        floor: dict[int, list[float]],
    ) -> Records:
        """A record for each sample.

        Args:
            stored: of each prompt its text, the chosen response, and the conversation.
        """
        records = []
        for i, (asked, chosen, conversation) in enumerate(stored):
            is_chat = conversation is not None
            answer = answer_ids(self._tokenizer, asked, chosen, is_chat)
            shared: dict[str, Any] = {
                "order": task.order[i],
                "temperature": task.temperature,
                "temperature_number": task.temperature_number,
                "prompt": Question.stored(conversation).read()
                if is_chat
                else self._text(prompts[i]),
                "conversation": conversation,
                "chosen_text": self._ends.text(self._tokenizer, self._ends.cut(answer)),
            }
            for k in range(task.num_samples):
                record = {
                    **shared,
                    "sample": task.start + k,
                    "kl_policy_reference": kl[i][k],
                }
                if i in floor:
                    record["kl_floor"] = floor[i][k]
                for who, samples in vars(drawn).items():
                    ids = samples[i][k]
                    record |= {
                        f"{who}_text": self._ends.text(self._tokenizer, ids),
                        f"{who}_tokens": len(ids),
                    }
                records.append(record)
        return records

    def _distances(
        self,
        model: Any,
        some: Sequence[int],
        asked: list[list[int]],
        prompts: list[list[int]],
        drawn: Drawn,
    ) -> dict[int, list[float]]:
        """Of some prompts KL(model || reference) along each of the policy's samples.

        Args:
            asked: what the model reads; prompts: the reference.
        """
        found = iter(
            sequence_kl(
                model,
                self._reference.causal_lm,
                [asked[i] for i in some for _ in drawn.policy[i]],
                [sample for i in some for sample in drawn.policy[i]],
                self._settings.batch_tokens,
                None if asked is prompts else [prompts[i] for i in some for _ in drawn.policy[i]],
            )
        )
        return {i: [next(found) for _ in drawn.policy[i]] for i in some}

    def _programs(self, task: WritePrograms) -> Records:
        section = self._settings.code
        assert section is not None
        asked = CodePrompts(self._tokenizer, section, self._facts.training.chat)
        prompts = [asked(prompt) for prompt in task.prompts]
        drawing = (
            [("program", name) for name in task.task_ids],
            section.generation,
            task.start * 1009 + task.number,
            range(task.start, task.start + task.num_samples),
        )
        behind = self._behind(self._facts.fronts[0], prompts)
        drawn = task.drawn or Drawn(
            policy=self._drawn_by(self._policy.causal_lm, task, behind, *drawing),
            start=self._drawn_by(self._start, task, prompts, *drawing),
        )
        return [
            {
                "task_id": name,
                "start": task.start,
                **{
                    f"{who}_texts": [self._ends.text(self._tokenizer, ids) for ids in samples[i]]
                    for who, samples in vars(drawn).items()
                },
            }
            for i, name in enumerate(task.task_ids)
        ]

    def _text(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _leaderboard(self) -> Records:
        section = self._settings.leaderboard
        assert section is not None
        models = {"start": self._start, "policy": self._policy.causal_lm}
        tokenizer = self._facts.training.chat.on(self._tokenizer)
        return [
            {
                "model": who,
                **run_tasks_of(section, model, tokenizer, self._ends, self._settings.seed),
            }
            for who, model in models.items()
        ]

    def _drawn_by(
        self,
        model: Any,
        task: SamplePrompts | WritePrograms,
        prompts: list[list[int]],
        names: Sequence[tuple[Any, ...]],
        settings: GenerationSection,
        number: int,
        samples: Sequence[int] = (0,),
    ) -> list[list[list[int]]]:
        """Samples of a model, by prompt.

        Args:
            names: of the prompts, for seeds of their own. number: of the task, for one seed.
            samples: numbers of each prompt's samples.
        """
        seed, count = self._settings.seed, len(samples)
        if task.way == "captured":
            flat = self._job_sampler(
                model,
                [prompt for prompt in prompts for _ in samples],
                settings,
                [sample_seed(seed, *name, k) for name in names for k in samples],
                self._settings.sequences_per_batch,
            )
        else:
            one_seed = seed * 1_000_003 + number
            flat = generate(model, self._ends, prompts, settings, one_seed, count)
        return [flat[i * count : (i + 1) * count] for i in range(len(prompts))]
