"""TRL's batches in our terms: the same token ids, and what else is known of their pairs."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsepo.kernels.token_scoring import CHUNK_ELEMENTS, LMHead
from sparsepo.records import Metrics, ModelInputs

# Columns of the data set that go with a pair, by the feature that they become.
COLUMNS = {
    "preference_scores": ("chosen_score", "rejected_score"),
    "external_weights": ("chosen_weights", "rejected_weights"),
}


class PairColumns:
    """TRL's collator, with what else is known of the pairs."""

    def __init__(self, collator: Any, wanted: frozenset[str]) -> None:
        self._collator, self._wanted = collator, wanted

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = self._collator(examples)
        for feature in sorted(self._wanted & COLUMNS.keys()):
            missing = [column for column in COLUMNS[feature] if column not in examples[0]]
            if missing:
                raise ValueError(f"the data set has no column {missing[0]!r}, which is read")
        if "preference_scores" in self._wanted:
            batch["preference_scores"] = torch.tensor(
                [[float(one[column]) for column in COLUMNS["preference_scores"]]
                 for one in examples], dtype=torch.float64,
            )  # fmt: skip
        if "external_weights" in self._wanted:
            batch["external_weights"] = self._weights(examples, batch["input_ids"].shape[1])
        if "pair_keys" in self._wanted:
            batch["pair_keys"] = torch.tensor([_pair_key(example) for example in examples])
        return batch

    def _weights(self, examples: Sequence[Mapping[str, Any]], width: int) -> Tensor:
        """[2 * pairs, width] like input_ids: all chosen rows, then all rejected ones."""
        rows = []
        for side in ("chosen", "rejected"):
            for example in examples:
                given, ids = example[f"{side}_weights"], example[f"{side}_ids"]
                if len(given) != len(ids):
                    raise ValueError(
                        f"{side}_weights has {len(given)} numbers for a response of {len(ids)} "
                        "tokens: one per token, the end token's too"
                    )
                row = [0.0] * len(example["prompt_ids"]) + [float(weight) for weight in given]
                longest = getattr(self._collator, "max_length", None)
                if longest is not None and len(row) > longest:
                    starts = getattr(self._collator, "truncation_mode", "") != "keep_end"
                    row = row[:longest] if starts else row[-longest:]
                rows.append(row + [0.0] * (width - len(row)))
        return torch.tensor(rows)


def token_batch(inputs: Mapping[str, Tensor]) -> ModelInputs:
    """TRL's batch, all chosen rows over all rejected ones, as one whose sides alternate."""
    order = _alternating(inputs["input_ids"])
    ids, attention = inputs["input_ids"][order], inputs["attention_mask"][order]
    scored = _scored(inputs)
    rows, columns = scored.nonzero(as_tuple=True)
    return ModelInputs(
        input_ids=ids,
        attention_mask=attention,
        position_ids=(attention.cumsum(1) - 1).clamp(min=0),
        score_rows=scored.flatten().nonzero().squeeze(1),
        labels=ids[rows, columns + 1],
        response_index=rows,
        num_pairs=len(ids) // 2,
    )


def in_canonical_order(values: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """[S] of values that lie like input_ids, for the scored tokens."""
    return values[_alternating(values)][:, 1:][_scored(inputs)[:, :-1]]


def prompts_of(inputs: Mapping[str, Tensor]) -> list[list[int]]:
    """The prompt's token ids of each pair."""
    is_prompt = inputs["attention_mask"].bool() & ~inputs["completion_mask"].bool()
    pairs = len(is_prompt) // 2
    ids = inputs["input_ids"]
    return [ids[row][is_prompt[row]].tolist() for row in range(pairs)]


def head_metrics(hidden: Tensor, head: LMHead, batch: ModelInputs) -> Metrics:
    """TRL's metrics of the policy's distributions, as (sum, count), without gradient.

    Args:
        hidden: [S, d], what the head reads.
    """
    entropies, means, hits = [], [], []
    size = max(16, CHUNK_ELEMENTS // head.weight.shape[0])
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for states, labels in zip(hidden.split(size), batch.labels.split(size), strict=True):
            logits = head.logits(states)
            logps = logits.log_softmax(-1)
            entropies.append(-(logps.exp() * logps).sum(-1))
            means.append(logits.mean(-1))
            hits.append(logits.argmax(-1) == labels)
    entropy, mean, hit = torch.cat(entropies), torch.cat(means), torch.cat(hits).double()
    rejected = (batch.response_index % 2).double()
    chosen, every = 1 - rejected, torch.ones_like(rejected)
    return {
        "entropy": (entropy.double().sum(), every.sum()),
        "logits/chosen": ((mean * chosen).sum(), chosen.sum()),
        "logits/rejected": ((mean * rejected).sum(), rejected.sum()),
        "mean_token_accuracy": ((hit * chosen).sum(), chosen.sum()),
    }


def _alternating(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device).view(2, -1).t().flatten()


def _scored(inputs: Mapping[str, Tensor]) -> Tensor:
    """bool [2 * pairs, T], sides alternating: what predicts a token of a response."""
    mask = inputs["completion_mask"].bool()[_alternating(inputs["input_ids"])]
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)


def _pair_key(example: Mapping[str, Any]) -> int:
    """A number that names the pair in every batch and run."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    text = "|".join(",".join(map(str, example[name])) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
