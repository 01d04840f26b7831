"""SparsePO: masks learned from the reference's hidden states.

ReLU, an L1 penalty or a target keeps them sparse. A mask scores one state per token (`*_last`: the
last hidden state) or one per layer (`*_all`), with one linear map (`simple_*`, `binary_*`) or two
in a row (`ml_*`, 200 units, no non-linearity between them):

    *_last : f(score(h_L))
    *_all  : f(mixer . [g(score_i(LN(h_i)))] for i = 1..L)

`*_all` has one LayerNorm shared by all layers and no mixer bias.

f and g are relu, none (identity; weights may be negative) or rescale (min-max within the response).
binary_* end in sign(relu(.)), with the gradient of the identity, because the released code's is
zero everywhere. Gradient flows to the mask's parameters only.

`released` weights are these values; they start near zero, have no upper bound, and can close on
every token for good. `centred` weights say how much more a token counts than its response's mean,
with s the score before f:

    c = 1 + s - mean of s over the response,   weight = clip(c, 0, 2)

They start at exactly 1 (TDPO 1), stay within [0, 2], and the token with the highest score of a
response weighs 1 at least. What moves all scores of a response alike, a step of Adam above all,
does not move them. With a target for the zeros a moving threshold stands where 0 is in c, and what
is above it weighs 1 and more:

    d = s - mean of s over the response + shift,   weight = min(1 + d, 2) if d >= 0 else 0

Source: arXiv:2410.05102, section on SparsePO, and its released code.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sparsepo.masks.base import (
    MaskWeights,
    TokenMasks,
    require_feature,
    rescale_per_response,
    response_means,
    unit_weights,
)
from sparsepo.masks.declarations import (
    MaskActivation,
    MaskArchitecture,
    MaskedTerms,
    MaskSharing,
    MaskWeighting,
    check_mask_options,
)
from sparsepo.records import Features, Metrics, on_device

CONFIG_FILE, WEIGHTS_FILE = "mask_config.json", "masks.safetensors"
_HIDDEN_UNITS = 200
_CEILING = 2.0  # of centred weights: as far above their mean as zero is below it
# The sparsity controller: gains of the error and of its sum; half the window that the density is
# measured in and the smallest density believed, in units of the scores' standard deviation.
_GAIN, _DRIFT_GAIN, _WINDOW, _LEAST_DENSITY = 0.5, 0.5, 0.25, 0.3


class LinearScores(nn.Module):
    """w_i . h_i + b_i for each of n states: [S, n, d] -> [S, n]."""

    def __init__(self, num_states: int, hidden_size: int, initializer_range: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(num_states, hidden_size).normal_(std=initializer_range)
        )
        self.bias = nn.Parameter(torch.zeros(num_states))

    def output(self) -> nn.Parameter:
        """The last map: at zero all scores are equal, and it has a gradient all the same."""
        return self.weight

    def biases(self) -> tuple[nn.Parameter, ...]:
        """What moves all scores of a state alike."""
        return (self.bias,)

    def forward(self, states: Tensor) -> Tensor:
        return (states * self.weight).sum(-1) + self.bias


class TwoLayerScores(nn.Module):
    """ff2_i(ff1_i(h_i)) for each of n states: [S, n, d] -> [S, n].

    Nothing non-linear stands between the maps, so their product is applied: same values and
    gradients, no [S, n, 200].
    """

    def __init__(self, num_states: int, hidden_size: int, initializer_range: float) -> None:
        super().__init__()
        self.ff1_weight = nn.Parameter(
            torch.empty(num_states, _HIDDEN_UNITS, hidden_size).normal_(std=initializer_range)
        )
        self.ff1_bias = nn.Parameter(torch.zeros(num_states, _HIDDEN_UNITS))
        self.ff2_weight = nn.Parameter(
            torch.empty(num_states, _HIDDEN_UNITS).normal_(std=initializer_range)
        )
        self.ff2_bias = nn.Parameter(torch.zeros(num_states))

    def output(self) -> nn.Parameter:
        """See LinearScores."""
        return self.ff2_weight

    def biases(self) -> tuple[nn.Parameter, ...]:
        """See LinearScores."""
        return self.ff1_bias, self.ff2_bias

    def forward(self, states: Tensor) -> Tensor:
        weight = torch.einsum("nk,nkd->nd", self.ff2_weight, self.ff1_weight)
        return (states * weight).sum(-1) + (self.ff2_weight * self.ff1_bias).sum(-1) + self.ff2_bias


class LearnedMask(nn.Module):
    """One mask network.

    Args: as LearnedMasks.
    """

    def __init__(
        self,
        architecture: MaskArchitecture,
        hidden_size: int,
        num_layers: int,
        initializer_range: float,
        norm_eps: float,
        layer_activation: MaskActivation,
        mixer_activation: MaskActivation,
        dropout: float,
        has_target: bool,
        weights: MaskWeighting,
    ) -> None:
        super().__init__()
        self.architecture, self.dropout, self.has_target = architecture, dropout, has_target
        self.is_centred = weights == "centred"
        self.layer_activation, self.mixer_activation = layer_activation, mixer_activation
        num_states = num_layers if architecture.reads_all_layers else 1
        self.state_shape = (
            (num_layers, hidden_size) if architecture.reads_all_layers else (hidden_size,)
        )
        self.scores = (TwoLayerScores if architecture.is_two_layer else LinearScores)(
            num_states, hidden_size, initializer_range
        )
        if architecture.reads_all_layers:
            self.layer_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
            self.mixer = nn.Parameter(torch.empty(num_layers).normal_(std=initializer_range))
        final = mixer_activation if architecture.reads_all_layers else layer_activation
        if self.is_centred and final != "rescale":  # rescaled equal scores would have no gradient
            nn.init.zeros_(self.mixer if architecture.reads_all_layers else self.scores.output())
        if self.is_centred and not (architecture.reads_all_layers and layer_activation == "relu"):
            # Centring takes a bias out again. Its gradient is rounding noise, of which Adam would
            # make full steps.
            for bias in self.scores.biases():
                bias.requires_grad_(False)
        # Moved by the sparsity controller, never by the optimizer; parameters so that every
        # checkpoint carries them.
        self.shift = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.drift = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.window = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(
        self, states: Tensor, response_index: Tensor, num_responses: int
    ) -> tuple[Tensor, Tensor]:
        """(weights [S], scores [S]) of states [S, d] or [S, L, d].

        What has a score below -shift weighs 0.
        """
        if tuple(states.shape[1:]) != self.state_shape:
            raise ValueError(
                f"states end in {tuple(states.shape[1:])}, the mask was built for "
                f"{self.state_shape}"
            )
        states = states.to(self.shift.dtype)
        if self.architecture.reads_all_layers:
            states = F.dropout(self.layer_norm(states), self.dropout, self.training)
            per_layer = _activated(
                self.scores(states), self.layer_activation, response_index, num_responses
            )
            scores, final = per_layer @ self.mixer, self.mixer_activation
        else:
            states = F.dropout(states, self.dropout, self.training)
            scores, final = self.scores(states[:, None]).squeeze(-1), self.layer_activation
        if self.is_centred:
            scores = (
                scores
                - response_means(scores, response_index, num_responses)
                + (0.0 if self.has_target else 1.0)
            )
        shifted = scores + self.shift
        is_kept = (
            shifted >= 0 if self.is_centred else shifted > 0
        )  # equal centred scores, at the start, are 0 with a target
        if self.architecture.is_binary:
            return shifted + (is_kept.to(shifted.dtype) - shifted).detach(), scores
        if self.is_centred and final == "relu":
            weights = 1 + shifted if self.has_target else shifted
            # What is not a number stays one, for the objective to refuse.
            return torch.where(shifted < 0, 0.0, weights.clamp(max=_CEILING)), scores
        return _activated(shifted, final, response_index, num_responses), scores


class LearnedMasks(TokenMasks):
    """One (common) or two (independent) learned masks over the reference's hidden states.

    Args:
        architecture: a key of LEARNED_MASKS.
        sharing: "common" = one mask serves both terms; "independent" = one each.
        hidden_size, num_layers: of the reference model. initializer_range, norm_eps: its
            configuration's.
        terms: which terms are masked; the other keeps weight 1.
        layer_activation: of each layer's score; of the only one for `*_last`. mixer_activation: of
            the mixture (`*_all`).
        dropout: of the states the mask reads, in training mode only.
        target_sparsity: fraction of response tokens to hold at weight exactly 0, in (0, 1); see
            `control`. None leaves the fraction to training.
        weights: "released" or "centred", see this module; the numbers of the released code, or safe
            ones.
    Raises: ValueError for an unknown architecture, an option out of range, or one that the
        architecture would ignore.
    """

    def __init__(
        self,
        architecture: str,
        sharing: MaskSharing,
        hidden_size: int,
        num_layers: int,
        initializer_range: float = 0.02,
        norm_eps: float = 1e-5,
        terms: MaskedTerms = "both",
        layer_activation: MaskActivation = "relu",
        mixer_activation: MaskActivation = "relu",
        dropout: float = 0.0,
        target_sparsity: float | None = None,
        weights: MaskWeighting = "released",
    ) -> None:
        super().__init__()
        kind = check_mask_options(
            architecture, layer_activation, mixer_activation, dropout, target_sparsity, weights
        )
        self.config: dict[str, Any] = {
            "architecture": architecture,
            "sharing": sharing,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "initializer_range": initializer_range,
            "norm_eps": norm_eps,
            "terms": terms,
            "layer_activation": layer_activation,
            "mixer_activation": mixer_activation,
            "dropout": dropout,
            "target_sparsity": target_sparsity,
            "weights": weights,
        }
        self._feature = kind.feature
        self.requires = frozenset({kind.feature})
        self.terms, self.target_sparsity = terms, target_sparsity
        self.may_be_empty = True
        self.signed = (mixer_activation if kind.reads_all_layers else layer_activation) == "none"
        if sharing == "common" and terms == "both":
            self.l1_shares = (0.5, 0.5)
        else:
            self.l1_shares = (float(terms != "kl"), float(terms != "reward"))

        def build() -> LearnedMask:
            return LearnedMask(
                kind,
                hidden_size,
                num_layers,
                initializer_range,
                norm_eps,
                layer_activation,
                mixer_activation,
                dropout,
                target_sparsity is not None,
                weights,
            )

        self.common: LearnedMask | None = build() if sharing == "common" else None
        self.reward: LearnedMask | None = (
            build() if sharing == "independent" and terms != "kl" else None
        )
        self.kl: LearnedMask | None = (
            build() if sharing == "independent" and terms != "reward" else None
        )

    def forward(self, features: Features, response_index: Tensor, num_pairs: int) -> MaskWeights:
        states = require_feature(features, self._feature)
        weights = {"reward": unit_weights(response_index), "kl": unit_weights(response_index)}
        statistics: Metrics = {}
        for name, network in self._networks().items():
            values, scores = network(states, response_index, 2 * num_pairs)
            for term in (
                ("reward", "kl") if network is self.common and self.terms == "both" else (name,)
            ):
                weights[term] = values
            if self.target_sparsity is not None:
                statistics |= _score_statistics(name, scores.detach(), network)
        return MaskWeights(weights["reward"], weights["kl"], statistics)

    def control(self, record: Mapping[str, float]) -> None:
        """Move each mask's shift towards target_sparsity.

        Call it once per optimizer step, on every rank, after the step.

        The shift moves by what the fraction lacks, divided by the density of scores around the
        threshold (their share in a window around it, from the same step). Integral control alone
        would lag: a learning mask's scores move by up to a standard deviation per step, in one
        direction for a long time (an L1 penalty pushes all of them down). So the shift's own drift
        is integrated too:

            step  = (target - zero fraction) / density
            drift = drift + 0.5 * step
            shift = shift - (0.5 * step + drift)

        Nothing happens without a target.

        Args:
            record: means over the global batch of the objective's metrics (masks/*_zero_fraction,
                *_score_mean, ...), the same on every rank.
        """
        if self.target_sparsity is None:
            return
        for name, network in self._networks().items():
            mean, square = record[f"masks/{name}_score_mean"], record[f"masks/{name}_score_square"]
            deviation = math.sqrt(max(square - mean * mean, 0.0))
            window, least = float(network.window), _LEAST_DENSITY / max(deviation, 1e-12)
            density = record[f"masks/{name}_near_threshold"] / (2 * window) if window > 0 else least
            step = (self.target_sparsity - record[f"masks/{name}_zero_fraction"]) / max(
                density, least
            )
            with torch.no_grad():
                network.drift.add_(_DRIFT_GAIN * step).clamp_(-deviation, deviation)
                network.shift.sub_(_GAIN * step + float(network.drift))
                network.window.fill_(_WINDOW * deviation)

    def _networks(self) -> dict[str, LearnedMask]:
        """Each network under the term whose metrics speak of it."""
        common = "kl" if self.terms == "kl" else "reward"
        return {
            name: net
            for name, net in ((common, self.common), ("reward", self.reward), ("kl", self.kl))
            if net is not None
        }

    def save_pretrained(self, directory: str | Path) -> None:
        """Write mask_config.json and masks.safetensors into a local directory, creating it."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG_FILE).write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n")
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()},
            path / WEIGHTS_FILE,
        )

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "LearnedMasks":
        """Read what `save_pretrained` wrote; the masks come in eval mode.

        Raises: FileNotFoundError naming the file that is missing.
        """
        path = Path(directory)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (path / name).is_file():
                raise FileNotFoundError(
                    f"no {name} in {path}: not a directory written by LearnedMasks.save_pretrained"
                )
        masks = cls(**json.loads((path / CONFIG_FILE).read_text()))
        masks.load_state_dict(load_file(path / WEIGHTS_FILE))
        return masks.eval()


def _activated(
    values: Tensor, activation: MaskActivation, response_index: Tensor, num_responses: int
) -> Tensor:
    if activation == "relu":
        return F.relu(values)
    return (
        values
        if activation == "none"
        else rescale_per_response(values, response_index, num_responses)
    )


def _score_statistics(name: str, scores: Tensor, network: LearnedMask) -> Metrics:
    exact = scores.double()
    tokens = on_device(scores.numel(), scores)
    near = ((scores + network.shift.detach()).abs() <= network.window).float()
    return {
        f"masks/{name}_score_mean": (exact.sum(), tokens),
        f"masks/{name}_score_square": ((exact * exact).sum(), tokens),
        f"masks/{name}_near_threshold": (near.sum(), tokens),
        f"masks/{name}_shift": (network.shift.detach() * tokens, tokens),
    }
