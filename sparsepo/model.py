"""The LM head of a transformers model, and the module that trains one: the policy."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsepo.backbone import (
    backbone_of,
    plain_attention,
    run_backbone,
    scored_rows,
    transformer_of,
)
from sparsepo.batching.layouts import TokenizedPair, padded_layout
from sparsepo.compression import unpack_topk
from sparsepo.features import FEATURES
from sparsepo.kernels.token_scoring import LMHead, score_tokens, score_tokens_and_moments
from sparsepo.masks.base import TokenMasks
from sparsepo.records import Features, ModelInputs, TokenScores

# Config fields of transformers models that change logits after the head's matrix product.
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_MULTIPLIED_BY = ("logit_scale", "lm_head_multiplier")
_DIVIDED_BY = ("logits_scaling", "logits_mup_width_multiplier")
_BEFORE_HEAD = {"modernbert-decoder": "lm_head"}  # a module, by the model's type
_MULTIPLIED_IN = {"hyperclovax": ("logits_scaling",)}  # where others divide


def head_of(causal_lm: Any) -> LMHead:
    """The LM head of a transformers causal model, bias, soft-cap and logit scale included.

    The model may be one that peft has wrapped.

    Raises: ValueError if the model has no output embeddings, or peft has put an adapter on them.
    """
    transformer = transformer_of(causal_lm)
    layer = _trained_copy(transformer.get_output_embeddings())
    if layer is None:
        raise ValueError(
            f"{type(transformer).__name__} has no LM head (get_output_embeddings() is None)"
        )
    if type(layer).__module__.startswith("peft."):
        raise ValueError(
            f"the LM head of {type(transformer).__name__} is a {type(layer).__name__}: leave it "
            "out of peft's target modules"
        )
    config = transformer.config.get_text_config()
    scale = 1.0
    factors = (*_MULTIPLIED_BY, *_MULTIPLIED_IN.get(config.model_type, ()))
    for name in (*_MULTIPLIED_BY, *_DIVIDED_BY):
        factor = float(getattr(config, name, None) or 1.0)
        scale = scale * factor if name in factors else scale / factor
    softcap = next((float(cap) for name in _SOFTCAPS if (cap := getattr(config, name, None))), None)
    rows = getattr(config, "unpadded_vocab_size", None)
    bias = getattr(layer, "bias", None)
    return LMHead(layer.weight[:rows], None if bias is None else bias[:rows], softcap, scale)


def head_input(causal_lm: Any, states: Tensor) -> Tensor:
    """What the LM head reads [..., d] for last hidden states [..., d].

    They are the same but where a model has layers of its own before the head (ModernBERT decoder).
    """
    transformer = transformer_of(causal_lm)
    before = _BEFORE_HEAD.get(transformer.config.model_type)
    return states if before is None else transformer.get_submodule(before)(states)


def _trained_copy(layer: Any) -> Any:
    """The layer itself, or the whole copy that peft trains in its place (modules_to_save).

    Of a head that is tied to embeddings of which peft trains some rows, the layer as it was: these
    rows stand in front of prompts, and `PolicyModel`'s vocabulary leaves them out.
    """
    tokens = getattr(layer, "token_adapter", layer)
    if type(tokens).__name__ == "TrainableTokensLayer":
        return tokens.get_base_layer()
    copies = getattr(layer, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict):
        return layer
    return copies[layer.active_adapters[0]]


@torch.no_grad()
def verify_head(causal_lm: Any) -> None:
    """Compare `head_of` with the model's own logits, and two rows with a sequence alone.

    One row goes on after the sequence, the other is padded: neither may change its states.

    Raises: ValueError if the model changes its logits in a way that this version does not know, or
        lets a token see what comes after it (an encoder that is not set to decode) or padding.
    """
    transformer = transformer_of(causal_lm)
    vocabulary = transformer.config.get_text_config().vocab_size
    tokens = [(7 * i + 1) % vocabulary for i in range(7)]
    rows = padded_layout([TokenizedPair(tokens[:2], tokens[2:], tokens[2:4])]).to(
        transformer.get_input_embeddings().weight.device
    )
    ids = rows.input_ids[:1, :4]
    with plain_attention():
        expected = transformer(input_ids=ids, use_cache=False).logits.float()
        hidden = backbone_of(transformer)(input_ids=ids, use_cache=False).last_hidden_state
        states = run_backbone(causal_lm, rows).last_hidden_state[:, :4]
    head = head_of(causal_lm)  # on another GPU than the inputs if the model is spread over several
    found = (
        head.logits(head_input(causal_lm, hidden).flatten(0, 1).to(head.weight.device))
        .view_as(expected)
        .to(expected.device)
    )
    scale = float(expected.abs().max())
    is_float32 = hidden.dtype == torch.float32
    if not torch.allclose(
        found, expected, rtol=0, atol=(1e-4 if is_float32 else 3e-2) * max(scale, 1e-6)
    ):
        raise ValueError(
            f"{type(transformer).__name__} changes its logits beyond head bias, soft-cap "
            f"({', '.join(_SOFTCAPS)}) and scale ({', '.join((*_MULTIPLIED_BY, *_DIVIDED_BY))}): "
            "add its rule to head_of in sparsepo/model.py"
        )
    # The median of a row: in low precision a token near a tie may go to another expert in another
    # batch.
    apart = (states - hidden).float().norm(dim=-1) / hidden.float().norm(dim=-1).clamp_min(1e-12)
    difference = torch.stack([row.median() for row in apart]).max()
    if not float(difference) <= (1e-3 if is_float32 else 0.1):
        raise ValueError(
            f"{type(transformer).__name__} is no causal model here: what follows a sequence, or "
            f"padding, changes its states by {float(difference):.1%} (an encoder needs is_decoder "
            "in its config)"
        )


def cut_vocabulary(causal_lm: Any, rows: int) -> None:
    """Keep the first rows of embeddings and head, in place; a model with no more stays as it is.

    Raises: ValueError if the model cannot be cut.
    """
    if len(head_of(causal_lm).weight) <= rows:
        return
    try:
        causal_lm.resize_token_embeddings(rows, mean_resizing=False)
    except (NotImplementedError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{type(causal_lm).__name__} cannot be cut to {rows} embeddings: {error}"
        ) from error
    left = len(head_of(causal_lm).weight)
    if left != rows:
        raise ValueError(
            f"{type(causal_lm).__name__} was cut to {rows} embeddings, its head still has {left}"
        )


def cut_head(causal_lm: Any, rows: int) -> None:
    """Keep the first rows of the head alone, in place: the others can be read, not predicted."""
    layer = transformer_of(causal_lm).get_output_embeddings()
    if len(layer.weight) <= rows:
        return
    bias = getattr(layer, "bias", None)
    with torch.device("meta"):
        cut = nn.Linear(layer.weight.shape[1], rows, bias=bias is not None)
    cut.weight = nn.Parameter(layer.weight.detach()[:rows], requires_grad=False)
    if bias is not None:
        cut.bias = nn.Parameter(bias.detach()[:rows], requires_grad=False)
    transformer_of(causal_lm).set_output_embeddings(cut)


def scored_states(causal_lm: Any, inputs: ModelInputs) -> Tensor:
    """The hidden states [S, d] that the LM head turns into the scored tokens' logits."""
    output = run_backbone(causal_lm, inputs)
    return head_input(causal_lm, scored_rows(output.last_hidden_state, inputs))


class PolicyModel(nn.Module):
    """Backbone + head + masks: one forward from a micro-batch to a TokenScores record.

    Args:
        causal_lm: a transformers causal language model, or one that peft has wrapped (LoRA).
        masks: the token masks; trained together with the policy when they have parameters, under
            LoRA too.
        reference_head: the frozen reference's head, kept as buffers; required for token_kl.
        vocabulary: distributions are over the head's first rows alone, where a reference has no
            more; by default over all.
        requires: features that the objective reads; of these, PolicyModel makes the policy's own.
    """

    reference_weight: Tensor | None
    reference_bias: Tensor | None

    def __init__(
        self,
        causal_lm: nn.Module,
        masks: TokenMasks,
        reference_head: LMHead | None = None,
        vocabulary: int | None = None,
        requires: Iterable[str] = (),
    ) -> None:
        super().__init__()
        wanted = masks.requires | frozenset(requires)
        self._of_the_step = frozenset(n for n in wanted if FEATURES[n].origin == "step")
        self.causal_lm: Any = causal_lm
        self.masks = masks
        self.vocabulary = vocabulary
        self._reference_head = reference_head
        # Not persistent: the reference's head is stored once, with the reference.
        self.register_buffer(
            "reference_weight",
            None if reference_head is None else reference_head.weight.detach(),
            persistent=False,
        )
        bias = (
            None
            if reference_head is None or reference_head.bias is None
            else reference_head.bias.detach()
        )
        self.register_buffer("reference_bias", bias, persistent=False)

    def reference_head(self) -> LMHead | None:
        if self._reference_head is None:
            return None
        assert self.reference_weight is not None
        return LMHead(
            self.reference_weight,
            self.reference_bias,
            self._reference_head.softcap,
            self._reference_head.scale,
        )

    def forward(self, inputs: ModelInputs, features: Features) -> TokenScores:
        """Score the micro-batch's response tokens.

        Args:
            inputs: any layout. features: reference features of the same scored tokens, in the same
                order.
        Returns: TokenScores; token_kl is present iff features.reference_hidden and a reference head
            are (exact), or features.reference_topk is (a lower bound).
        """
        return self.scores(self.states(inputs), inputs, features)

    def states(self, inputs: ModelInputs) -> Tensor:
        """The hidden states [S, d] that the head reads for the scored tokens."""
        return scored_states(self.causal_lm, inputs)

    def scores(self, hidden: Tensor, inputs: ModelInputs, features: Features) -> TokenScores:
        """See forward; hidden are the micro-batch's `states`."""
        reference_head = self.reference_head()
        uses_kl = reference_head is not None and features.reference_hidden is not None
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            hidden = hidden.to(torch.get_autocast_dtype(device))
        # The primitive and the masks choose their own dtypes; autocast would undo that, and in the
        # forward only.
        with torch.autocast(device, enabled=False):
            scored = (
                hidden,
                head_of(self.causal_lm).cut(self.vocabulary),
                inputs.labels,
                features.reference_hidden if uses_kl else None,
                reference_head if uses_kl else None,
            )
            topk = features.reference_topk
            other = None if uses_kl or topk is None else unpack_topk(topk)
            square_sum = None
            if "policy_square_sum" in self._of_the_step:
                policy_logps, token_kl, moments = score_tokens_and_moments(
                    *scored, reference_topk=other
                )
                square_sum = moments.square_sum
            else:
                policy_logps, token_kl = score_tokens(*scored, reference_topk=other)
            features = self._with_own(features, policy_logps, hidden, square_sum)
            masks = self.masks(features, inputs.response_index, inputs.num_pairs)
        return TokenScores(
            policy_logps=policy_logps,
            reference_logps=features.reference_logps,
            token_kl=token_kl,
            reward_mask=masks.reward,
            kl_mask=masks.kl,
            response_index=inputs.response_index,
            num_pairs=inputs.num_pairs,
            l1_shares=self.masks.l1_shares,
            signed_masks=self.masks.signed,
            empty_sides=self.masks.may_be_empty,
            mask_statistics=masks.statistics,
            scorer_log_ratios=features.scorer_log_ratios,
            external_weights=features.external_weights,
            policy_square_sum=features.policy_square_sum,
            prompt_embedding=features.prompt_embedding,
            preference_scores=features.preference_scores,
            desirable=features.desirable,
        )

    def _with_own(
        self, features: Features, logps: Tensor, hidden: Tensor, square_sum: Tensor | None
    ) -> Features:
        """The features with the policy's own that somebody requires, detached."""
        made = {"policy_logps": logps, "policy_hidden": hidden}
        if square_sum is not None:
            made["policy_square_sum"] = square_sum
        return replace(features, **{name: made[name].detach() for name in self._of_the_step})
