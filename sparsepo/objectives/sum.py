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
        self._widths: list[int] = []  # columns of the coupled terms in the batch under way
        self.couples_pairs = any(
            term.couples_pairs or isinstance(term, SFT) for _, term in self.terms
        )

    def values_of_inputs(self, inputs: ModelInputs) -> Tensor | None:
        if any(term.couples_pairs for _, term in self.terms):
            return None
        counts = torch.bincount(inputs.response_index, minlength=2 * inputs.num_pairs)
        return counts[::2, None].double()

    def advance(self, progress: float) -> None:
        for _, term in self.terms:
            term.advance(progress)

    def state(self) -> dict[str, Any]:
        """The terms' by their numbers, of those that have one."""
        states = {str(number): term.state() for number, (_, term) in enumerate(self.terms)}
        return {number: state for number, state in states.items() if state}

    def restore(self, state: Mapping[str, Any]) -> None:
        for number, found in state.items():
            self.terms[int(number)][1].restore(found)

    def shared_values(self, scores: TokenScores) -> Tensor:
        """[num_pairs, c]: how many columns each coupled term has, theirs, and chosen lengths."""
        shared = [term.shared_values(scores) for term in self._coupled()]
        widths = shared[0].new_tensor([part.shape[1] for part in shared])
        lengths = scores.lengths()[:, :1].to(shared[0].dtype)
        return torch.cat([widths.expand(scores.num_pairs, -1), *shared, lengths], dim=1)

    def batch_values(self, shared: Tensor, is_training: bool = True) -> Tensor:
        """[N, c]: the coupled terms', and the chosen responses' lengths."""
        parts = [
            term.batch_values(part, is_training)
            for term, part in zip(self._coupled(), self._parts(shared), strict=True)
        ]
        self._widths = [part.shape[1] for part in parts]
        return torch.cat([*parts, shared[:, -1:]], dim=1)

    def observe(self, shared: Tensor) -> None:
        for term, part in zip(self._coupled(), self._parts(shared), strict=True):
            term.observe(part)

    def _coupled(self) -> list[CoupledObjective]:
        return [term for _, term in self.terms if isinstance(term, CoupledObjective)]

    def _parts(self, shared: Tensor) -> list[Tensor]:
        """What the coupled terms' `shared_values` are among these."""
        count = len(self._coupled())
        widths = [int(width) for width in shared[0, :count]]
        return list(shared[:, count:-1].split(widths, dim=1)) if count else []

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
        widths = self._widths if batch is not None else []
        parts = iter(batch.values[:, :-1].split(widths, dim=1) if batch is not None else ())
        for _, term in self.terms:
            if isinstance(term, SFT):
                yield _over_tokens(term(scores), scores, batch)
            elif isinstance(term, CoupledObjective) and batch is not None:
                yield term(scores, CoupledBatch(next(parts), batch.rows))
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
