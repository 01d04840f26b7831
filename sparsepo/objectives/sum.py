"""A weighted sum of objectives on the same pairs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsepo.objectives.base import (
    CoupledBatch,
    CoupledObjective,
    Objective,
    PairLosses,
    positive,
)
from sparsepo.objectives.declarations import OBJECTIVES, common_mask_kinds
from sparsepo.objectives.sft import SFT
from sparsepo.records import Metrics, ModelInputs, ObjectiveOutput, TokenScores, on_device

# Of the pairs, whatever the loss: the same in every term.
_OF_ALL = ("logps/", "kl/", "nll/")


class Sum(CoupledObjective, name="sum"):
    """losses = sum_i weight_i * losses_i over terms that read the same pairs.

    A term of SFT is the global batch's token sum over its token count: loss = sum_t -log pi / T
    with T the chosen responses' scored tokens, whatever the micro-batches. Alone, SFT weighs every
    response the same. Terms share one mask; a term that reads none ignores it. Implicit rewards are
    those of the first term with rewards, unweighted. Metrics of term i stand under
    `of/i_name/`; without prefix stand the sum's loss and what is the first term's that has it.
    MPO (Wang et al., arXiv:2411.10442) is 0.8 DPO, 0.2 BCO on pairs, 1.0 SFT.

    Args:
        of: (weight, objective) of every term, weight > 0; or a mapping with weight, name and the
            objective's options.
    Raises: ValueError for a weight that is none, no term with rewards, or terms of which no mask
        serves all.
    """

    def __init__(self, of: Sequence[tuple[float, Objective] | Mapping[str, Any]]) -> None:
        super().__init__()
        self.terms = [_built(term) for term in of]
        if not any(term.uses_rejected for _, term in self.terms):
            raise ValueError("of: a sum needs a term that reads rejected responses")
        self.requires = frozenset().union(*(term.requires for _, term in self.terms))
        if "desirable" in self.requires:
            raise ValueError("of: kto reads rows with labels, the terms of a sum read pairs")
        common_mask_kinds([term.name for _, term in self.terms])
        self.couples_pairs = any(
            term.couples_pairs or isinstance(term, SFT) for _, term in self.terms
        )

    def values_of_inputs(self, inputs: ModelInputs) -> Tensor | None:
        if any(term.couples_pairs for _, term in self.terms):
            return None
        counts = torch.bincount(inputs.response_index, minlength=2 * inputs.num_pairs)
        return counts[::2, None].double()

    def shared_values(self, scores: TokenScores) -> Tensor:
        """[num_pairs, c]: the coupled terms' in order, then the chosen responses' lengths."""
        shared = [
            term.shared_values(scores)
            for _, term in self.terms
            if isinstance(term, CoupledObjective)
        ]
        return torch.cat([*shared, scores.lengths()[:, :1].to(shared[0].dtype)], dim=1)

    def pair_losses(self, scores: TokenScores) -> PairLosses:
        return _losses_of(self(scores))

    def slice_losses(self, scores: TokenScores, batch: CoupledBatch) -> PairLosses:
        return _losses_of(self(scores, batch))

    def __call__(self, scores: TokenScores, batch: CoupledBatch | None = None) -> ObjectiveOutput:
        outputs = self._outputs(scores, batch)
        named = [
            (weight, term, output)
            for (weight, term), output in zip(self.terms, outputs, strict=True)
        ]
        losses = torch.stack([weight * output.losses for weight, _, output in named]).sum(0)
        leader = next(output for _, term, output in named if term.uses_rejected)
        metrics: Metrics = {
            **leader.metrics,
            "loss": (losses.detach().sum(), on_device(scores.num_pairs, losses)),
        }
        for number, (_, term, output) in enumerate(named):
            for key, value in output.metrics.items():
                metrics.setdefault(key, value)
                if not key.startswith(_OF_ALL):
                    metrics[f"of/{number}_{term.name}/{key}"] = value
        return ObjectiveOutput(losses, leader.chosen_rewards, leader.rejected_rewards, metrics)

    def _outputs(
        self, scores: TokenScores, batch: CoupledBatch | None
    ) -> Iterator[ObjectiveOutput]:
        start = 0
        for _, term in self.terms:
            if isinstance(term, SFT):
                yield _over_tokens(term(scores), scores, batch)
            elif isinstance(term, CoupledObjective) and batch is not None:
                width = term.shared_values(scores).shape[1]
                values = batch.values[:, start : start + width]
                start += width
                yield term(scores, CoupledBatch(values, batch.rows))
            else:
                yield term(scores)


def _built(term: tuple[float, Objective] | Mapping[str, Any]) -> tuple[float, Objective]:
    if isinstance(term, Mapping):
        options = {key: value for key, value in term.items() if key not in ("name", "weight")}
        term = term["weight"], OBJECTIVES[term["name"]](**options)
    weight, objective = term
    return positive("weight", weight), objective


def _losses_of(output: ObjectiveOutput) -> PairLosses:
    return PairLosses(
        output.losses, torch.stack([output.chosen_rewards, output.rejected_rewards], dim=1)
    )


def _over_tokens(
    output: ObjectiveOutput, scores: TokenScores, batch: CoupledBatch | None
) -> ObjectiveOutput:
    """SFT's output with every token weighing the same in the global batch."""
    lengths = scores.lengths()[:, 0]
    counts = lengths if batch is None else batch.values[:, -1]
    losses = output.losses * (lengths * (len(counts) / counts.double().sum()).to(lengths.dtype))
    metrics = {**output.metrics, "loss": (losses.detach().sum(), output.metrics["loss"][1])}
    return replace(output, losses=losses, metrics=metrics)
