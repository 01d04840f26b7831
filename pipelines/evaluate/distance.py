"""How far a model is from the reference, and the floor of that number.

The floor is what is found where there is no distance: the reference's own weights, loaded as the
policy is, in the policy's place. It is 0 where both are computed alike.
"""

from collections.abc import Sequence
from typing import Any

import torch

from sparsepo import ReferenceModel, head_of, score_tokens
from sparsepo.batching.cutting import token_budget_batches
from sparsepo.batching.layouts import TokenizedPair, padded_layout
from sparsepo.model import scored_states
from sparsepo.records import Features, ModelInputs


@torch.no_grad()
def sequence_kl(
    policy: Any,
    reference: Any,
    prompts: Sequence[list[int]],
    samples: Sequence[list[int]],
    batch_tokens: int,
    reference_prompts: Sequence[list[int]] | None = None,
) -> list[float]:
    """Per sample the sum over its tokens of KL(policy || reference), nats, full vocabulary.

    Args:
        policy, reference: causal language models on one device, over one vocabulary.
            reference_prompts: what the reference reads in the place of prompts, if not these.
    """
    pairs = [TokenizedPair(p, s, None) for p, s in zip(prompts, samples, strict=True)]
    others = [
        TokenizedPair(p, s, None)
        for p, s in zip(reference_prompts or prompts, samples, strict=True)
    ]
    totals = [0.0] * len(pairs)
    widths = [len(p.prompt) + len(p.chosen) for p in pairs]
    for batch in token_budget_batches(range(len(pairs)), widths, 1, batch_tokens):
        inputs = padded_layout([pairs[i] for i in batch]).to(policy.device)
        given = inputs
        if reference_prompts is not None:
            given = padded_layout([others[i] for i in batch]).to(policy.device)
        # KL(policy || reference): the policy plays the part of score_tokens' fixed distribution.
        kl = score_tokens(
            scored_states(reference, given),
            head_of(reference),
            inputs.labels,
            scored_states(policy, inputs),
            head_of(policy),
        )[1]
        assert kl is not None
        for i, part in zip(batch, kl.split([len(pairs[i].chosen) for i in batch]), strict=True):
            totals[i] = float(part.double().sum())
    return totals


@torch.no_grad()
def pair_floors(
    reference: ReferenceModel, inputs: ModelInputs, features: Features, lengths: Sequence[int]
) -> list[float]:
    """Per pair the mean over both responses of KL(reference || reference's weights), nats.

    Args:
        features: the pairs', with the reference's states. lengths: scored tokens of each response.
    """
    kl = score_tokens(
        scored_states(reference.causal_lm, inputs),
        reference.head,
        inputs.labels,
        features.reference_hidden,
        reference.head,
    )[1]
    assert kl is not None
    sums = [float(part.double().sum()) for part in kl.split(list(lengths))]
    return [(one + other) / 2 for one, other in zip(sums[::2], sums[1::2], strict=True)]
