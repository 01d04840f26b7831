"""Hidden states + LM head -> log-probability, KL and moments of every token, chunk by chunk.

No [tokens, vocabulary] tensor goes beyond one chunk. The backward recomputes the chunk's logits
instead of keeping them. With g1 and g2 the upstream gradients of a token's log-probability and KL,
the gradient of its logits is g1 * (onehot - p) + g2 * (p - p_reference). `score_tokens_eager` is
the readable definition that tests compare with. On CUDA the element-wise part is one Triton kernel
each way (vocabulary.py); elsewhere, in float64 and for a top-k reference it is torch.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsepo.kernels import vocabulary

CHUNK_ELEMENTS = 2**25  # logits per chunk: 128 MiB in float32
FUSED_CHUNK_ELEMENTS = (
    2**27
)  # of the kernels, which keep one copy in the states' dtype: 256 MiB in bfloat16


@dataclass(frozen=True)
class LMHead:
    """The map from last hidden states to logits.

    logits = softcap * tanh(scale * (h W^T + b) / softcap), without the parts that are None.

    Attributes:
        weight: [V, d]. bias: [V] or None. softcap: > 0 or None. scale: multiplies the logits before
            the soft-cap.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def detached(self) -> "LMHead":
        return replace(
            self,
            weight=self.weight.detach(),
            bias=None if self.bias is None else self.bias.detach(),
        )

    def cut(self, rows: int | None) -> "LMHead":
        """The head over its first rows alone; the whole one for None. Gradients reach these rows.

        Raises: ValueError if it has fewer.
        """
        if rows is None or rows == len(self.weight):
            return self
        if not 0 < rows < len(self.weight):
            raise ValueError(f"a head of {len(self.weight)} rows cannot be cut to {rows}")
        bias = None if self.bias is None else self.bias[:rows]
        return replace(self, weight=self.weight[:rows], bias=bias)

    @property
    def shape(self) -> vocabulary.Shape:
        return vocabulary.Shape(self.softcap, self.scale)

    def product(self, hidden: Tensor) -> Tensor:
        """[S, d] -> [S, V] in the states' dtype, before scale and soft-cap."""
        return F.linear(
            hidden,
            self.weight.to(hidden.dtype),
            None if self.bias is None else self.bias.to(hidden.dtype),
        )

    def linear_logits(self, hidden: Tensor) -> Tensor:
        """[S, d] -> [S, V] after the scale, before the soft-cap.

        The result is float32, or float64 for float64 states.
        """
        logits = self.product(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits * self.scale if self.scale != 1.0 else logits

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, d] -> [S, V], float32 or float64."""
        logits = self.linear_logits(hidden)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class ReferenceDistribution(Protocol):
    """The reference's next-token distribution of every scored token; carries no gradient."""

    def divergence(self, rows: slice, log_probs: Tensor) -> Tensor:
        """KL(reference || policy) [n] of some tokens from the policy's log-probabilities [n, V]."""

    def target(self, rows: slice, log_probs: Tensor) -> Tensor:
        """The target of the divergence's gradient, [n, V].

        The gradient of the divergence with respect to the policy's logits is policy - target.
        """


@dataclass(frozen=True)
class ReferenceStates:
    """The exact distribution, from the reference's last hidden states [S, d] and its head."""

    hidden: Tensor
    head: LMHead

    def divergence(self, rows: slice, log_probs: Tensor) -> Tensor:
        reference = self._log_probs(rows)
        return (reference.exp() * (reference - log_probs)).sum(-1)

    def target(self, rows: slice, log_probs: Tensor) -> Tensor:
        return self._log_probs(rows).exp_()

    def _log_probs(self, rows: slice) -> Tensor:
        return self.head.logits(self.hidden[rows]).log_softmax(-1)


@dataclass(frozen=True)
class TopK:
    """The reference's k most likely tokens and everything else as one outcome.

    The divergence over these k + 1 outcomes is a lower bound of the exact one (data-processing
    inequality).

    Attributes:
        ids: int64 [S, k]. logps: float32 [S, k]. tail_logps: float32 [S], log of the other tokens'
            mass.
    """

    ids: Tensor
    logps: Tensor
    tail_logps: Tensor

    def divergence(self, rows: slice, log_probs: Tensor) -> Tensor:
        logps, tail = self.logps[rows], self.tail_logps[rows]
        kept = (logps.exp() * (logps - log_probs.gather(1, self.ids[rows]))).sum(-1)
        return kept + tail.exp() * (tail - self._policy_tail(rows, log_probs))

    def target(self, rows: slice, log_probs: Tensor) -> Tensor:
        rest = (self.tail_logps[rows] - self._policy_tail(rows, log_probs))[:, None]
        return (
            (log_probs + rest)
            .exp_()
            .scatter_(1, self.ids[rows], self.logps[rows].exp().to(log_probs.dtype))
        )

    def _policy_tail(self, rows: slice, log_probs: Tensor) -> Tensor:
        return log_probs.scatter(1, self.ids[rows], -torch.inf).logsumexp(-1)


class TokenMoments(NamedTuple):
    """[S] each, of a token's next-token distribution p; no gradient.

    entropy: -sum p log p, nats. square_sum: sum p^2, in (0, 1].
    """

    entropy: Tensor
    square_sum: Tensor


def score_tokens(
    hidden: Tensor,
    head: LMHead,
    labels: Tensor,
    reference_hidden: Tensor | None = None,
    reference_head: LMHead | None = None,
    chunk_tokens: int | None = None,
    reference_topk: TopK | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the labels and, given a reference, KL(reference || policy) per token.

    The KL is exact from the reference's hidden states, a lower bound from its top-k.

    Args:
        hidden: [S, d], inputs of the policy's head, with gradient.
        head: the policy's head; gradient flows to its weight and bias.
        labels: int64 [S].
        reference_hidden: [S, d_ref] or None; no gradient flows to it or to reference_head.
        reference_head: required with reference_hidden; same vocabulary.
        chunk_tokens: tokens per chunk; by default the largest that keeps a chunk's logits at 2**25
            elements.
        reference_topk: instead of reference_hidden and reference_head.
    Returns: (per_token_logps [S], token_kl [S] or None), float32 (float64 for float64 states),
        nats.
    Raises: ValueError if lengths or vocabularies disagree.
    """
    scored = (hidden, head, labels, reference_hidden, reference_head, chunk_tokens, reference_topk)
    logps, kl, _ = _score(*scored, with_moments=False)
    return logps, kl


def score_tokens_and_moments(
    hidden: Tensor,
    head: LMHead,
    labels: Tensor,
    reference_hidden: Tensor | None = None,
    reference_head: LMHead | None = None,
    chunk_tokens: int | None = None,
    reference_topk: TopK | None = None,
) -> tuple[Tensor, Tensor | None, TokenMoments]:
    """`score_tokens`, and with it the moments of the policy's own distributions.

    They come from the same logits: no second matrix product, on a GPU no second pass over them.

    Args: as score_tokens'.
    Returns: (per_token_logps [S], token_kl [S] or None, moments).
    """
    scored = (hidden, head, labels, reference_hidden, reference_head, chunk_tokens, reference_topk)
    return _score(*scored, with_moments=True)


def _score(
    hidden: Tensor,
    head: LMHead,
    labels: Tensor,
    reference_hidden: Tensor | None,
    reference_head: LMHead | None,
    chunk_tokens: int | None,
    reference_topk: TopK | None,
    with_moments: bool,
) -> tuple[Tensor, Tensor | None, TokenMoments]:
    if hidden.ndim != 2 or labels.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and labels {tuple(labels.shape)} disagree: want [S, d] "
            "and [S]"
        )
    if (reference_hidden is None) != (reference_head is None):
        raise ValueError("reference_hidden and reference_head must be given together")
    if reference_hidden is not None and reference_head is not None:
        if reference_hidden.shape[0] != hidden.shape[0]:
            raise ValueError(
                f"reference_hidden has {reference_hidden.shape[0]} tokens, hidden has "
                f"{hidden.shape[0]}"
            )
        if reference_head.weight.shape[0] != head.weight.shape[0]:
            raise ValueError(
                f"the reference's vocabulary ({reference_head.weight.shape[0]}) and the policy's "
                f"({head.weight.shape[0]}) differ"
            )
    reference: ReferenceDistribution | None = reference_topk
    if reference_hidden is not None and reference_head is not None:
        reference = ReferenceStates(reference_hidden.detach(), reference_head.detached())
    fused = vocabulary.is_available(hidden) and not isinstance(reference, TopK)
    size = chunk_tokens or max(
        16, (FUSED_CHUNK_ELEMENTS if fused else CHUNK_ELEMENTS) // head.weight.shape[0]
    )
    function = _FusedScoreTokens if fused else _ScoreTokens
    logps, kl, *moments = function.apply(
        hidden, head.weight, head.bias, labels, head, reference, size, with_moments
    )
    return logps, (None if reference is None else kl), TokenMoments(*moments)


def score_tokens_eager(
    hidden: Tensor,
    head: LMHead,
    labels: Tensor,
    reference_hidden: Tensor | None = None,
    reference_head: LMHead | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The definition of `score_tokens` in plain autograd; needs [S, V] memory."""
    log_probs = head.logits(hidden).log_softmax(-1)
    logps = log_probs.gather(1, labels[:, None]).squeeze(1)
    if reference_hidden is None or reference_head is None:
        return logps, None
    reference_log_probs = reference_head.logits(reference_hidden).log_softmax(-1).detach()
    return logps, (reference_log_probs.exp() * (reference_log_probs - log_probs)).sum(-1)


class _ScoreTokens(torch.autograd.Function):
    """In torch, chunk by chunk."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        head: LMHead,
        reference: ReferenceDistribution | None,
        size: int,
        with_moments: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # The head record only carries soft-cap and scale here: its tensors are the saved ones.
        ctx.softcap, ctx.scale, ctx.size, ctx.reference = head.softcap, head.scale, size, reference
        ctx.save_for_backward(hidden, weight, bias, labels)
        head = LMHead(weight.to(hidden.dtype), bias, head.softcap, head.scale)
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logps, kl, entropy, square_sum = (
            hidden.new_zeros(hidden.shape[0], dtype=dtype) for _ in range(4)
        )
        for rows in _chunks(hidden, size):
            log_probs = head.logits(hidden[rows]).log_softmax(-1)
            logps[rows] = log_probs.gather(1, labels[rows, None]).squeeze(1)
            if reference is not None:
                kl[rows] = reference.divergence(rows, log_probs)
            if with_moments:
                probs = log_probs.exp()
                square_sum[rows] = probs.square().sum(-1)
                entropy[rows] = -probs.mul_(log_probs).sum(-1)
        ctx.mark_non_differentiable(entropy, square_sum, *([kl] if reference is None else []))
        return logps, kl, entropy, square_sum

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_logps: Tensor, grad_kl: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels = ctx.saved_tensors
        gradients = _HeadGradients(ctx, hidden, weight, bias)
        head = LMHead(gradients.matrix, bias, ctx.softcap, ctx.scale)
        for rows in _chunks(hidden, ctx.size):
            linear = head.linear_logits(hidden[rows])
            capped = (
                linear if ctx.softcap is None else ctx.softcap * torch.tanh(linear / ctx.softcap)
            )
            log_probs = capped.log_softmax(-1)
            probs = log_probs.exp()
            g1 = grad_logps[rows, None]
            grad = probs * -g1
            if ctx.reference is not None:
                grad += grad_kl[rows, None] * (probs - ctx.reference.target(rows, log_probs))
            grad.scatter_add_(1, labels[rows, None], g1)
            if ctx.softcap is not None:
                grad *= 1 - (capped / ctx.softcap).square()
            if ctx.scale != 1.0:
                grad *= ctx.scale
            gradients.add(rows, grad.to(hidden.dtype), grad)
        return gradients.result()


class _FusedScoreTokens(torch.autograd.Function):
    """With the kernels of vocabulary.py; the reference is ReferenceStates or None."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        head: LMHead,
        reference: ReferenceStates | None,
        size: int,
        with_moments: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.softcap, ctx.scale, ctx.size, ctx.reference = head.softcap, head.scale, size, reference
        head = LMHead(weight.to(hidden.dtype), bias, head.softcap, head.scale)
        parts = []
        for rows in _chunks(hidden, size):
            other, shape = _reference_product(reference, rows)
            parts.append(
                vocabulary.row_statistics(
                    head.product(hidden[rows]), head.shape, labels[rows], other, shape, with_moments
                )
            )
        nothing = hidden.new_zeros(0, dtype=torch.float32)
        logps, kl, normalizer, reference_normalizer, entropy, square_sum = (
            torch.cat([nothing, *(part[column] for part in parts)])
            for column in range(len(vocabulary.RowStatistics._fields))
        )
        ctx.save_for_backward(hidden, weight, bias, labels, normalizer, reference_normalizer)
        ctx.mark_non_differentiable(entropy, square_sum, *([kl] if reference is None else []))
        return logps, kl, entropy, square_sum

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_logps: Tensor, grad_kl: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, normalizer, reference_normalizer = ctx.saved_tensors
        gradients = _HeadGradients(ctx, hidden, weight, bias)
        head = LMHead(gradients.matrix, bias, ctx.softcap, ctx.scale)
        for rows in _chunks(hidden, ctx.size):
            other, shape = _reference_product(ctx.reference, rows)
            grad = vocabulary.logits_gradient_(
                head.product(hidden[rows]),
                head.shape,
                labels[rows],
                other,
                shape,
                normalizer[rows],
                reference_normalizer[rows],
                grad_logps[rows],
                grad_kl[rows],
            )
            gradients.add(rows, grad, grad)
        return gradients.result()


def _chunks(hidden: Tensor, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]


def _reference_product(
    reference: ReferenceStates | None, rows: slice
) -> tuple[Tensor | None, vocabulary.Shape]:
    if reference is None:
        return None, vocabulary.Shape(None, 1.0)
    return reference.head.product(reference.hidden[rows]), reference.head.shape


class _HeadGradients:
    """Gathers the gradients of states, weight and bias from those of the chunks' logits.

    It computes only what somebody wants.
    """

    def __init__(self, ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.matrix = weight.to(hidden.dtype)
        self._hidden, self._weight, self._bias = hidden, weight, bias
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # A head in float64 sums in float64; several chunks are summed in float32 before they are
        # rounded to the weight's dtype.
        self._sums = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self._is_one_chunk = hidden.shape[0] <= ctx.size
        self.hidden = torch.empty_like(hidden) if wants_hidden else None
        self.weight: Tensor | None = None
        if wants_weight and not self._is_one_chunk:
            self.weight = torch.zeros(weight.shape, dtype=self._sums, device=weight.device)
        self._wants_weight = wants_weight
        self.bias = (
            torch.zeros(bias.shape, dtype=self._sums, device=bias.device)
            if bias is not None and wants_bias
            else None
        )

    def add(self, rows: slice, low: Tensor, grad: Tensor) -> None:
        """Add what the gradient of these rows' logits gives.

        low: the gradient of the logits in the states' dtype; grad: the same, as precise as it is
        known.
        """
        if self.hidden is not None:
            torch.mm(low, self.matrix, out=self.hidden[rows])
        if self._wants_weight:
            if self.weight is None:
                self.weight = low.t() @ self._hidden[rows]
            elif self._sums == low.dtype:
                self.weight.addmm_(low.t(), self._hidden[rows])
            elif low.is_cuda:
                torch.ops.aten.addmm.dtype_out(
                    self.weight, low.t(), self._hidden[rows], self._sums, out=self.weight
                )
            else:
                self.weight += low.t() @ self._hidden[rows]
        if self.bias is not None:
            self.bias += grad.sum(0, dtype=self._sums)

    def result(self) -> tuple[Tensor | None, ...]:
        if self._wants_weight and self.weight is None:  # no token at all
            self.weight = torch.zeros_like(self._weight)
        weight = None if self.weight is None else self.weight.to(self._weight.dtype)
        bias = None if self.bias is None or self._bias is None else self.bias.to(self._bias.dtype)
        return self.hidden, weight, bias, None, None, None, None, None
