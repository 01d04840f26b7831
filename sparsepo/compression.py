"""Compact forms of reference features, as byte rows [S, n].

They can be stored, moved and concatenated like any tensor.

Top-k: the k most likely tokens with their log-probabilities and the log-probability of all others
together. From it the KL over these k + 1 outcomes follows, a lower bound of the exact one
(data-processing inequality). Int8 states: blocks of 64 consecutive values share a scale, so that a
single huge activation spoils its own block alone.
"""

import torch
from torch import Tensor

from sparsepo.kernels.token_scoring import CHUNK_ELEMENTS, LMHead, TopK
from sparsepo.packed_sizes import STATE_BLOCK, state_bytes

_LARGEST = 127.0


@torch.no_grad()
def topk_of(hidden: Tensor, head: LMHead, k: int) -> TopK:
    """The k most likely next tokens under hidden [S, d] times the head, chunk by chunk.

    ValueError unless 0 < k < V.
    """
    vocabulary = head.weight.shape[0]
    if not 0 < k < vocabulary:
        raise ValueError(f"k = {k}: must be above 0 and below the vocabulary's {vocabulary} tokens")
    size = max(16, CHUNK_ELEMENTS // vocabulary)
    ids, logps, tails = [], [], []
    for start in range(0, hidden.shape[0], size):
        log_probs = head.logits(hidden[start : start + size]).log_softmax(-1)
        values, chosen = log_probs.topk(k, dim=-1)
        ids.append(chosen)
        logps.append(values.float())
        tails.append(log_probs.scatter_(1, chosen, -torch.inf).logsumexp(-1).float())
    return TopK(torch.cat(ids), torch.cat(logps), torch.cat(tails))


def pack_topk(topk: TopK) -> Tensor:
    """uint8 [S, 6k + 4]."""
    parts = (
        topk.ids.to(torch.int32),
        topk.logps.to(torch.float16),
        topk.tail_logps.to(torch.float32)[:, None],
    )
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)


def unpack_topk(packed: Tensor) -> TopK:
    """The packed outcomes, normalised again: float16 log-probabilities do not quite sum to one."""
    k = (packed.shape[1] - 4) // 6
    ids, logps, tail = (part.contiguous() for part in packed.split([4 * k, 2 * k, 4], dim=1))
    rounded = torch.cat(
        [logps.view(torch.float16).float(), tail.view(torch.float32)], dim=1
    ).log_softmax(-1)
    return TopK(ids.view(torch.int32).long(), rounded[:, :-1], rounded[:, -1])


@torch.no_grad()
def pack_states(states: Tensor) -> Tensor:
    """States [S, L, d] -> uint8 [S, state_bytes(L, d)].

    The error of a value is at most 1/252 of its block's largest.
    """
    tokens, layers, width = states.shape
    blocks = -(-width // STATE_BLOCK)
    padded = torch.nn.functional.pad(states.float(), (0, blocks * STATE_BLOCK - width)).view(
        tokens, layers, blocks, STATE_BLOCK
    )
    # The stored scale must not be rounded below the largest value's, or that value would leave
    # int8's range.
    scales = (
        (padded.abs().amax(-1) / _LARGEST * (1 + 2.0**-8)).clamp_min(2.0**-100).to(torch.bfloat16)
    )
    whole = (padded / scales.float()[..., None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    values = whole.view(tokens, layers, -1)[..., :width].reshape(tokens, -1)
    return torch.cat([values.view(torch.uint8), scales.view(tokens, -1).view(torch.uint8)], dim=1)


def unpack_states(packed: Tensor, num_layers: int, width: int, dtype: torch.dtype) -> Tensor:
    """uint8 [S, n] -> states [S, L, d].

    ValueError naming both sizes if n is not state_bytes(L, d).
    """
    if packed.shape[1] != state_bytes(num_layers, width):
        raise ValueError(
            f"{packed.shape[1]} bytes per token: {num_layers} layers of {width} take "
            f"{state_bytes(num_layers, width)}"
        )
    blocks = -(-width // STATE_BLOCK)
    values, scales = packed.split([num_layers * width, 2 * num_layers * blocks], dim=1)
    steps = (
        scales.contiguous()
        .view(torch.bfloat16)
        .view(-1, num_layers, blocks)
        .repeat_interleave(STATE_BLOCK, dim=-1)[..., :width]
    )
    return (
        values.contiguous().view(torch.int8).view(-1, num_layers, width).float() * steps.float()
    ).to(dtype)
