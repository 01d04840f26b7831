"""How much every response token moves what a frozen model says at the end of the response."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparsepo.backbone import decoder_layers, has_decoder_layers, run_backbone, transformer_of
from sparsepo.batching.layouts import TokenizedPair, padded_layout
from sparsepo.model import head_input, head_of
from sparsepo.records import ModelInputs


def input_saliency(causal_lm: Any, inputs: ModelInputs) -> Tensor:
    """[S] L1 norm of a gradient with respect to each scored token's input embedding, >= 0.

    The gradient is that of the largest logit at the response's last position. One backward per
    batch: a response's tokens reach its own logits alone, so those of all responses are added.
    Decoder layers run again in the backward, which keeps their inputs alone.

    Args:
        causal_lm: a causal language model in eval mode; its parameters get no gradient.
        inputs: of either layout, which changes nothing.
    Returns: float32 [S], on the inputs' device.
    Raises: ValueError for a model that does not let a gradient through to its input embeddings.
    Source: token importance of TI-DPO, arXiv:2505.19653, read in part.
    """
    transformer = transformer_of(causal_lm)
    own, last = _own_rows(inputs), _last_rows(inputs)
    with (
        torch.enable_grad(),
        _watched_embeddings(transformer) as embedded,
        _kept_small(transformer),
    ):
        states = run_backbone(causal_lm, inputs).last_hidden_state
        ends = head_input(causal_lm, states.flatten(0, 1).index_select(0, last.to(states.device)))
        largest = head_of(causal_lm).detached().logits(ends).max(-1).values.sum()
        if len(embedded) != 1 or embedded[0].shape[:2] != inputs.input_ids.shape:
            raise ValueError(
                f"saliency: {type(transformer).__name__} does not read its input embeddings once"
            )
        gradient = None
        if largest.requires_grad:
            (gradient,) = torch.autograd.grad(largest, embedded, allow_unused=True)
        if gradient is None:
            raise ValueError(
                f"saliency: {type(transformer).__name__} lets no gradient through to its input "
                "embeddings"
            )
    norms = gradient.flatten(0, 1).index_select(0, own.to(gradient.device)).float()
    return norms.norm(p=1, dim=-1).to(inputs.labels.device)


def check_saliency(causal_lm: Any) -> None:
    """ValueError for a model whose gradient at its input embeddings is missing, zero or no number.

    A few tokens are read. Rounded activations, for example, have a gradient of zero.
    """
    transformer = transformer_of(causal_lm)
    vocabulary = transformer.config.get_text_config().vocab_size
    tokens = [(7 * i + 1) % vocabulary for i in range(7)]
    device = transformer.get_input_embeddings().weight.device
    # The last but one reaches the end through attention alone, the last also past all layers.
    pair = TokenizedPair(tokens[:3], tokens[3:5], tokens[5:7])
    try:
        found = input_saliency(causal_lm, padded_layout([pair]).to(device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # an operation that has no backward
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"saliency: {type(transformer).__name__} has no backward ({reason})"
        ) from error
    if not bool((found.isfinite() & (found > 0)).all()):
        raise ValueError(
            f"saliency: gradients of {type(transformer).__name__} at its input embeddings are "
            f"{', '.join(f'{value:.1e}' for value in found.tolist())}: they must be finite and > 0"
        )


def _last_rows(inputs: ModelInputs) -> Tensor:
    """The row of the flattened states of every response's last token."""
    width = inputs.input_ids.shape[1]
    if inputs.segments is None:
        starts = torch.arange(len(inputs.input_ids), device=inputs.input_ids.device) * width
        return starts + inputs.attention_mask.sum(1) - 1
    last = _ends_of_segments(inputs, "amax")
    is_response = torch.arange(len(last), device=last.device) % 4 > 0
    return last[is_response & (last >= 0)]


def _own_rows(inputs: ModelInputs) -> Tensor:
    """[S] the row of the flattened inputs that holds each scored token itself.

    It follows the row that predicts it, but for a response's first token in a packed row: the
    prompt's last row predicts that one.
    """
    if inputs.segments is None:
        return inputs.score_rows + 1
    segment = 4 * (inputs.response_index // 2) + 1 + inputs.response_index % 2
    is_first = inputs.segments.flatten()[inputs.score_rows] % 4 == 0
    first = _ends_of_segments(inputs, "amin")[segment]
    return torch.where(is_first, first, inputs.score_rows + 1)


def _ends_of_segments(inputs: ModelInputs, which: str) -> Tensor:
    """int64 [4 * num_pairs] first ("amin") or last ("amax") row of each segment.

    That of a segment that does not exist is beyond all rows: negative as a last one.
    """
    assert inputs.segments is not None
    segments = inputs.segments.flatten().long()
    rows = torch.arange(len(segments), device=segments.device)
    is_read = segments >= 0
    nowhere = -1 if which == "amax" else len(segments)
    empty = torch.full((4 * inputs.num_pairs,), nowhere, device=segments.device)
    return empty.scatter_reduce(0, segments[is_read], rows[is_read], which)


@contextlib.contextmanager
def _watched_embeddings(transformer: Any) -> Iterator[list[Tensor]]:
    """What the input embeddings give, as leaves with a gradient: [R, T, d] per call."""
    found: list[Tensor] = []

    def watched(module: Any, given: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1].clone()  # some models scale it in place

    hook = transformer.get_input_embeddings().register_forward_hook(watched)
    try:
        yield found
    finally:
        hook.remove()


@contextlib.contextmanager
def _kept_small(transformer: Any) -> Iterator[None]:
    """Decoder layers keep their inputs alone and run again in the backward.

    A model in which they are not found keeps everything.
    """
    layers = decoder_layers(transformer) if has_decoder_layers(transformer) else []
    # A layer spread over GPUs has a forward of its own in the instance, which comes back.
    kept = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, kept, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
