"""What a mask says of one response: its tokens and their weights."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsepo.batching.layouts import TokenizedPair, padded_layout
from sparsepo.features import FEATURES
from sparsepo.masks.base import TokenMasks
from sparsepo.masks.declarations import MASKS
from sparsepo.model import PolicyModel, head_of
from sparsepo.records import Features
from sparsepo.reference import ReferenceModel
from sparsepo.weight_display import coloured_text, html_of, plain_text, span_of

Text = str | Sequence[int]


@dataclass(frozen=True)
class TokenWeights:
    """One response's tokens with the weights of their log ratios (reward) and KLs (kl), [n].

    Attributes:
        tokens: texts where a tokenizer was given, ids otherwise.
        segments: of every token, from 0 on; None of a mask without any. A bar stands before each
            but the first where the tokens are shown.
    """

    tokens: list[str] | list[int]
    reward: Tensor
    kl: Tensor
    segments: list[int] | None = None

    def text(self, colours: bool = False) -> str:
        """The tokens as text, a line per term: the weights as colours, or else as numbers."""
        shown = coloured_text if colours else plain_text
        return "\n".join(
            f"{name} {span_of(weights)}: {shown(self.tokens, weights, self.begins())}"
            for name, weights in self._terms().items()
        )

    def _repr_html_(self) -> str:
        """What a notebook shows; a token says its weights when it is pointed at."""
        return html_of(self.tokens, self._terms(), self.begins())

    def begins(self) -> frozenset[int]:
        """Places at which a segment other than the first begins."""
        found = self.segments or []
        return frozenset(i for i in range(1, len(found)) if found[i] != found[i - 1])

    def _terms(self) -> dict[str, list[float]]:
        """Name -> weights of the terms; the KL's are left out where they are the reward's, or 1."""
        reward, kl = self.reward.tolist(), self.kl.tolist()
        return {"reward": reward} | ({} if kl in (reward, [1.0] * len(kl)) else {"kl": kl})


@torch.no_grad()
def token_weights(
    model: Any,
    masks: TokenMasks | str,
    prompt: Text,
    response: Text,
    *,
    tokenizer: Any = None,
    reference: Any = None,
    side: Literal["chosen", "rejected"] = "chosen",
    other: Text | None = None,
    features: Mapping[str, Tensor] | None = None,
    **reference_options: Any,
) -> TokenWeights:
    """The tokens of a response and the weights that masks, or a producer, give them.

    Models, masks and their training modes are left as they were. Masks are asked in eval mode.

    Args:
        model: the policy, a transformers causal language model. masks: masks, or a key of MASKS
            for a producer with its defaults.
        prompt, response: texts, or token ids. No token is added to a response; a prompt's special
            tokens are the tokenizer's.
        tokenizer: needed for texts. reference: the frozen model that masks read, by default
            `model`.
        side: the response's. other: the pair's other response, for masks that read both.
        features: of the response's tokens ([n], with `other` those of chosen, then rejected) or
            of the pair: what the models do not make, as external_weights or scorer_log_ratios; by
            default pair_keys is 0.
        reference_options: of ReferenceModel (hooks, mapping, ...).
    Raises: ValueError for a text without tokenizer, an unknown producer, a mask that reads both
        responses if `other` is missing, or a feature that nothing gives.
    """
    if isinstance(masks, str):
        producers = [kind for kind in MASKS if kind != "learned"]
        if masks not in producers:
            allowed = ", ".join(producers)
            raise ValueError(
                f"producer {masks!r} is not one of {allowed}; give learned masks as such"
            )
        masks = MASKS[masks]()
    if masks.reads_both and other is None:
        raise ValueError("the mask reads both responses of a pair: give the other one as `other`")
    question, own = _ids("prompt", prompt, tokenizer), _ids("response", response, tokenizer)
    apart = own if other is None else _ids("other", other, tokenizer)
    is_rejected = side == "rejected"
    sides = (apart, own) if is_rejected else (own, apart)
    device = _device_of(model)
    inputs = padded_layout([TokenizedPair(question, *sides)]).to(device)
    of_response = inputs.response_index == int(is_rejected)
    given = {"pair_keys": torch.zeros(1, dtype=torch.long), **(features or {})}
    known = Features(
        **{name: _spread(name, value, other is None).to(device) for name, value in given.items()}
    )
    frozen = model if reference is None else reference
    masks = copy.deepcopy(masks).to(device).eval()
    with _as_they_were(model, frozen):
        model.eval()
        wanted = {n for n in masks.requires - given.keys() if FEATURES[n].origin == "reference"}
        if wanted:
            made = ReferenceModel(frozen, **reference_options).features(inputs, wanted)
            known = replace(known, **{name: getattr(made, name) for name in wanted})
        scores = PolicyModel(model, masks)(inputs, known)
        found = masks.segments(
            replace(known, policy_logps=scores.policy_logps), inputs.response_index
        )
    segments = None if found is None else (found[of_response] - found[of_response][0]).tolist()
    tokens = own if tokenizer is None else tokenizer.convert_ids_to_tokens(own)
    return TokenWeights(
        tokens, scores.reward_mask[of_response], scores.kl_mask[of_response], segments
    )


def _device_of(model: Any) -> torch.device:
    """The device on which a model takes its inputs."""
    device: torch.device = head_of(model).weight.device
    return device


def _ids(name: str, text: Text, tokenizer: Any) -> list[int]:
    if not isinstance(text, str):
        return list(text)
    if tokenizer is None:
        raise ValueError(f"{name} is a text: give its tokenizer, or token ids")
    ids: list[int] = tokenizer(text, add_special_tokens=name == "prompt").input_ids
    return ids


def _spread(name: str, value: Tensor, is_alone: bool) -> Tensor:
    """A feature of the pair's tokens: without another response both sides are the same one."""
    return torch.cat([value, value]) if is_alone and FEATURES[name].per == "token" else value


@contextlib.contextmanager
def _as_they_were(*modules: nn.Module) -> Iterator[None]:
    """Restore training modes and what is trained."""
    modes = {part: part.training for module in modules for part in module.modules()}
    trained = {p: p.requires_grad for module in modules for p in module.parameters()}
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for parameter, is_trained in trained.items():
            parameter.requires_grad_(is_trained)
