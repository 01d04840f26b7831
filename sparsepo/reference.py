"""The frozen reference model: what it knows of a micro-batch, without gradient."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparsepo.activations import ActivationRecorder, select_hooks
from sparsepo.backbone import (
    backbone_of,
    decoder_layers,
    run_backbone,
    scored_rows,
    state_size,
    token_rows,
    transformer_of,
)
from sparsepo.compression import pack_topk, topk_of
from sparsepo.discriminator import TokenDiscriminator
from sparsepo.features import FEATURES
from sparsepo.kernels.token_scoring import score_tokens, score_tokens_and_moments
from sparsepo.masks.activation import activation_weights, logit_activation
from sparsepo.masks.declarations import ActivationMapping
from sparsepo.model import head_input, head_of
from sparsepo.records import Features, ModelInputs
from sparsepo.saliency import input_saliency

_TOKEN_VALUES = ("reference_logps", "reference_entropy", "reference_square_sum")


def _layer_state(output: Any, inputs: ModelInputs, width: int) -> Tensor:
    """The states [R, T, width] that a decoder layer gives.

    Raises: ValueError if it gives anything else, as layers with several residual streams do.
    """
    state: Tensor = output[0] if isinstance(output, tuple | list) else output
    expected = (*inputs.input_ids.shape, width)
    if tuple(state.shape) != expected:
        raise ValueError(
            f"states of layers: a layer gives {list(state.shape)}, one state per token is "
            f"{list(expected)}"
        )
    return state


class _TokenStates:
    """Records, while it is entered, what layers make of the scored tokens themselves.

    Args:
        layers: name -> layer, 1..L; the last is the backbone's output.
    Raises: ValueError for a layer that the model has not, or whose output is not one state a token.
    """

    def __init__(self, transformer: Any, inputs: ModelInputs, layers: dict[str, int]) -> None:
        self._inputs, self._layers = inputs, layers
        text = transformer.config.get_text_config()
        self._last, self._width = int(text.num_hidden_layers), int(text.hidden_size)
        for layer in layers.values():
            if not 1 <= layer <= self._last:
                raise ValueError(f"layer {layer} is none of the model's 1 to {self._last}")
        inner = {layer for layer in layers.values() if layer < self._last}
        modules = decoder_layers(transformer) if inner else []
        self._modules = {layer: modules[layer - 1] for layer in inner}
        self._found: dict[int, Tensor] = {}
        self._hooked: list[Any] = []

    def __enter__(self) -> None:
        for layer, module in self._modules.items():
            self._hooked.append(
                module.register_forward_hook(
                    lambda _, __, out, layer=layer: self._found.update(
                        {layer: self._own(_layer_state(out, self._inputs, self._width))}
                    )
                )
            )

    def __exit__(self, *error: object) -> None:
        for hook in self._hooked:
            hook.remove()

    def states(self, last: Tensor) -> dict[str, Tensor]:
        """Name -> [S, d]; last are the backbone's [R, T, d]."""
        return {
            name: self._own(last) if layer == self._last else self._found[layer]
            for name, layer in self._layers.items()
        }

    def _own(self, states: Tensor) -> Tensor:
        return token_rows(states, self._inputs)


class ReferenceModel:
    """The frozen reference: a micro-batch in, features of its scored tokens out.

    Args:
        causal_lm: a transformers causal language model; set to eval mode here.
        topk: the k of reference_topk.
        hooks: hook points for `activation_mask`: "all", a type, or a list of names. mapping: how
            they become weights.
        token_layer: of token_states, 1..L; the last by default. discriminator: makes
            discriminator_values of its own layer's states.
        is_policy: the model is trained beside, without its adapters it is the reference: its mode
            and its gradients are left alone.
    Raises: ValueError for an unknown hook, or a family without a hook table, when activation_mask
        is requested.
    """

    def __init__(
        self,
        causal_lm: Any,
        hooks: str | Iterable[str] = "all",
        mapping: ActivationMapping = "zn_rescale",
        topk: int = 64,
        is_policy: bool = False,
        token_layer: int | None = None,
        discriminator: TokenDiscriminator | None = None,
    ) -> None:
        self.causal_lm = causal_lm if is_policy else causal_lm.eval().requires_grad_(False)
        self.head = head_of(causal_lm).detached()
        self._hooks, self._mapping, self._topk = hooks, mapping, topk
        self._token_layer, self._discriminator = token_layer, discriminator

    @torch.no_grad()
    def features(self, inputs: ModelInputs, wanted: Iterable[str]) -> Features:
        """Compute the wanted features in one forward, in canonical order.

        These are features of origin "reference" in FEATURES. Saliency takes a forward and a
        backward of its own.

        Raises: ValueError naming a feature that the reference model does not make.
        """
        names = frozenset(wanted)
        known = [name for name, kind in FEATURES.items() if kind.origin == "reference"]
        if names - set(known):
            raise ValueError(
                f"the reference model does not make {sorted(names - set(known))}: it makes "
                f"{', '.join(known)}"
            )
        saliency = input_saliency(self.causal_lm, inputs) if "saliency" in names else None
        if names == {"saliency"}:
            return Features(saliency=saliency)
        transformer = transformer_of(self.causal_lm)
        hooks = select_hooks(transformer.config, self._hooks) if "activation_mask" in names else ()
        recorder = ActivationRecorder(
            backbone_of(transformer),
            [h for h in hooks if h != "logits"],
            "sigmoid_mean" if self._mapping == "sigmoid" else "mean",
        )
        layers = decoder_layers(transformer) if "reference_layers" in names else []
        width = transformer.config.get_text_config().hidden_size
        # The last layer's state is the backbone's output, normalised as the head reads it; its own
        # where the backbone projects it to another width (OPT 350M).
        is_projected = state_size(transformer.config) != width
        inner: list[Tensor] = []
        hooked = [
            layer.register_forward_hook(
                lambda _, __, out: inner.append(
                    scored_rows(_layer_state(out, inputs, width), inputs)
                )
            )
            for layer in (layers if is_projected else layers[:-1])
        ]
        of_tokens = _TokenStates(transformer, inputs, self._layers_of_tokens(names, transformer))
        try:
            with recorder, of_tokens:
                output = run_backbone(self.causal_lm, inputs)
        finally:
            for hook in hooked:
                hook.remove()
        # A model spread over several GPUs ends on another one than it began on.
        device = self.head.weight.device

        def scored(values: Tensor) -> Tensor:
            return scored_rows(values, inputs).to(device)

        last = scored(output.last_hidden_state)
        hidden = head_input(self.causal_lm, last)
        labels, response_index = inputs.labels.to(device), inputs.response_index.to(device)
        logps, entropy, square_sum = self._token_values(hidden, labels, names)
        states = None
        if layers:
            inner = inner if is_projected else [*inner, last]
            states = torch.stack([state.to(device) for state in inner], dim=1)
        token_states = {
            name: state.to(device)
            for name, state in of_tokens.states(output.last_hidden_state).items()
        }
        weights = None
        if "activation_mask" in names:
            recorded = {
                name: [scored(v) for _, v in sorted(layers_of.items())]
                for name, layers_of in recorder.recorded.items()
            }
            if "logits" in hooks:
                recorded["logits"] = [logit_activation(hidden, self.head, self._mapping)]
            num_responses = 2 * inputs.num_pairs
            weights = activation_weights(
                recorded, response_index, num_responses, self._mapping, self.head.weight.shape[0]
            )
        return Features(
            reference_logps=logps,
            reference_hidden=hidden if "reference_hidden" in names else None,
            reference_topk=pack_topk(topk_of(hidden, self.head, self._topk))
            if "reference_topk" in names
            else None,
            reference_layers=states,
            activation_mask=weights,
            reference_entropy=entropy,
            reference_square_sum=square_sum,
            saliency=saliency,
            token_states=token_states.get("token_states"),
            discriminator_values=self._judged(token_states.get("discriminator_values")),
        )

    def _layers_of_tokens(self, names: frozenset[str], transformer: Any) -> dict[str, int]:
        """Feature -> the layer whose states of the tokens themselves it is made of."""
        wanted = {}
        last: int = transformer.config.get_text_config().num_hidden_layers
        if "token_states" in names:
            wanted["token_states"] = self._token_layer or last
        if "discriminator_values" in names:
            if self._discriminator is None:
                raise ValueError(
                    "discriminator_values need a discriminator: ReferenceModel(discriminator=...)"
                )
            wanted["discriminator_values"] = self._discriminator.layer
        return wanted

    def _judged(self, states: Tensor | None) -> Tensor | None:
        """D_t of these states."""
        if states is None:
            return None
        assert self._discriminator is not None
        judged: Tensor = self._discriminator.to(states.device)(states)
        return judged

    def _token_values(
        self, hidden: Tensor, labels: Tensor, names: frozenset[str]
    ) -> tuple[Tensor | None, ...]:
        """Log-probabilities, entropies and sums of squares, as far as they are wanted."""
        wanted = [name in names for name in _TOKEN_VALUES]
        if not any(wanted):
            return (None, None, None)
        if not any(wanted[1:]):
            return (score_tokens(hidden, self.head, labels)[0], None, None)
        logps, _, moments = score_tokens_and_moments(hidden, self.head, labels)
        return tuple(
            value if is_wanted else None
            for value, is_wanted in zip((logps, *moments), wanted, strict=True)
        )
