"""What frozen models other than the reference say about pairs.

Token log-probabilities of scorers are for weights of tokens, prompt embeddings for RPO.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sparsepo.backbone import backbone_of, transformer_of, without_flex_attention
from sparsepo.kernels.token_scoring import score_tokens
from sparsepo.model import head_of, scored_states
from sparsepo.records import ModelInputs

Pooling = Literal["mean", "first", "last"]


@torch.no_grad()
def scorer_logps(positive: Any, negative: Any, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
    """[S] log-probabilities of the scored tokens under the positive and the negative scorer, nats.

    Scorers with different numbers of embeddings are compared over the rows that both have.

    Args:
        positive, negative: causal language models over the same tokens, in eval mode. The positive
            one prefers good responses (for example tuned on chosen ones), the negative one bad
            responses. With one tuned model alone the reference is the other.
    Raises: ValueError for a token that one of them lacks.
    """
    heads = head_of(positive), head_of(negative)
    sizes = [len(head.weight) for head in heads]
    rows = min(sizes)
    if len(set(sizes)) > 1 and bool((inputs.input_ids >= rows).any()):
        largest = int(inputs.input_ids.max())
        raise ValueError(f"token {largest} is beyond a scorer's vocabulary of {rows}")
    found = []
    for model, head in zip((positive, negative), heads, strict=True):
        states = scored_states(model, inputs)
        # A model spread over several GPUs ends on another one than it began on.
        logps = score_tokens(states, head.cut(rows), inputs.labels.to(states.device))[0]
        found.append(logps.to(inputs.labels.device))
    return found[0], found[1]


def scorer_log_ratios(positive: Any, negative: Any, inputs: ModelInputs) -> Tensor:
    """[S] log-probability of each scored token under the positive minus the negative scorer, nats.

    Args, Raises: as scorer_logps'.
    Source: Liu et al., arXiv:2410.04350.
    """
    good, bad = scorer_logps(positive, negative, inputs)
    return good - bad


@torch.no_grad()
def pooled_states(
    model: Any, token_ids: Sequence[Sequence[int]], pooling: Pooling = "mean"
) -> Tensor:
    """One vector per text from a model's last hidden states: float32 [n, d].

    Args:
        model: an encoder, or a causal language model (its head is not used), in eval mode.
        token_ids: at least one id per text, special tokens included. pooling: over a text's tokens.
    Raises: ValueError for a text without tokens.
    """
    lengths = torch.tensor([len(ids) for ids in token_ids])
    if len(lengths) == 0 or bool((lengths == 0).any()):
        raise ValueError("every text to embed needs at least one token")
    device = transformer_of(model).get_input_embeddings().weight.device
    ids = torch.zeros(len(token_ids), int(lengths.max()), dtype=torch.long)
    for row, text in enumerate(token_ids):
        ids[row, : len(text)] = torch.as_tensor(text, dtype=torch.long)
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).to(device)
    transformer = transformer_of(model)
    with without_flex_attention(transformer):
        output = backbone_of(transformer)(input_ids=ids.to(device), attention_mask=mask.long())
    states: Tensor = output.last_hidden_state.float()
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(ids), device=device), lengths.to(device) - 1]
    return (states * mask[..., None]).sum(1) / lengths.to(device)[:, None]
