"""Held-out pairs scored by the models of an evaluation."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from evaluation.key_tokens import key_token_labels
from pipelines.evaluate.distance import pair_floors
from pipelines.evaluate.evaluated_models import EvaluatedModels
from pipelines.evaluate.tasks import (
    Records,
    ScorePairs,
)
from pipelines.evaluate.token_weights import write_weights
from pipelines.pairs import Question
from pipelines.storage import RunStore
from sparsepo import head_of, score_tokens
from sparsepo.batching.cutting import token_budget_batches
from sparsepo.batching.layouts import TokenizedPair, padded_layout
from sparsepo.model import scored_states
from sparsepo.records import Features, ModelInputs, TokenScores


def _sides(label: bool | None) -> tuple[str, ...]:
    """Names of a pair's responses whose tokens are looked at; of a labelled row its own alone."""
    if label is None:
        return "chosen", "rejected"
    return ("desirable" if label else "undesirable",)


class PairScorer(EvaluatedModels):
    """Numbers of pairs, and the weights of their tokens."""

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
