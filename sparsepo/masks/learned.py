"""SparsePO: masks learned from the reference's hidden states, kept sparse by ReLU and an L1 penalty.

simple_last : relu(w . h_L + b)
simple_all  : relu(mixer . [relu(w_i . LN(h_i) + b_i)] for i = 1..L), one LayerNorm shared by all layers, no mixer bias
Values are >= 0 without an upper bound. Gradient flows to the mask's parameters only.
Source: arXiv:2410.05102, section on SparsePO, and its released code.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sparsepo.masks.base import TokenMasks, require_feature
from sparsepo.records import ReferenceFeatures

MaskSharing = Literal["common", "independent"]
MaskedTerms = Literal["both", "reward", "kl"]
CONFIG_FILE, WEIGHTS_FILE = "mask_config.json", "masks.safetensors"


class SimpleLast(nn.Module):
    """relu(w . h + b) of the last hidden state: [..., d] -> [...]."""

    feature = "reference_hidden"

    def __init__(self, hidden_size: int, num_layers: int, initializer_range: float, norm_eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))
        nn.init.normal_(self.weight, std=initializer_range)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.relu(hidden.to(self.weight.dtype) @ self.weight + self.bias)


class SimpleAll(nn.Module):
    """A score per layer, then a mixture of layers: [..., L, d] -> [...]."""

    feature = "reference_layers"

    def __init__(self, hidden_size: int, num_layers: int, initializer_range: float, norm_eps: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.weight = nn.Parameter(torch.empty(num_layers, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_layers))
        self.mixer = nn.Parameter(torch.empty(num_layers))
        nn.init.normal_(self.weight, std=initializer_range)
        nn.init.normal_(self.mixer, std=initializer_range)

    def forward(self, layers: Tensor) -> Tensor:
        if layers.shape[-2:] != self.weight.shape:
            raise ValueError(f"layer states end in {tuple(layers.shape[-2:])}, the mask was built for {tuple(self.weight.shape)}")
        states = self.layer_norm(layers.to(self.weight.dtype))
        per_layer = F.relu((states * self.weight).sum(-1) + self.bias)
        return F.relu(per_layer @ self.mixer)


LEARNED_MASKS: dict[str, type[SimpleLast] | type[SimpleAll]] = {"simple_last": SimpleLast, "simple_all": SimpleAll}


class LearnedMasks(TokenMasks):
    """One (common) or two (independent) learned masks over reference features.

    Args:
        architecture: a key of LEARNED_MASKS.
        sharing: "common" = one mask serves both terms; "independent" = one each.
        terms: which terms are masked; the other keeps weight 1.
        hidden_size, num_layers: of the reference model. initializer_range, norm_eps: its configuration's.
    Raises: ValueError for an unknown architecture.
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
    ) -> None:
        super().__init__()
        if architecture not in LEARNED_MASKS:
            raise ValueError(f"mask architecture {architecture!r} is not one of {', '.join(LEARNED_MASKS)}")
        self.config: dict[str, Any] = {
            "architecture": architecture,
            "sharing": sharing,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "initializer_range": initializer_range,
            "norm_eps": norm_eps,
            "terms": terms,
        }
        kind = LEARNED_MASKS[architecture]
        self._feature = kind.feature
        self.requires = frozenset({kind.feature})
        self.terms = terms
        if sharing == "common" and terms == "both":
            self.l1_shares = (0.5, 0.5)
        else:
            self.l1_shares = (float(terms != "kl"), float(terms != "reward"))

        def build() -> nn.Module:
            return kind(hidden_size, num_layers, initializer_range, norm_eps)

        self.common: nn.Module | None = build() if sharing == "common" else None
        self.reward: nn.Module | None = build() if sharing == "independent" and terms != "kl" else None
        self.kl: nn.Module | None = build() if sharing == "independent" and terms != "reward" else None

    def forward(self, features: ReferenceFeatures, like: Tensor) -> tuple[Tensor, Tensor]:
        states = require_feature(features, self._feature)
        ones = torch.ones_like(like, requires_grad=False)
        if self.common is not None:
            weights = self.common(states)
            return (weights if self.terms != "kl" else ones), (weights if self.terms != "reward" else ones)
        return (ones if self.reward is None else self.reward(states)), (ones if self.kl is None else self.kl(states))

    def save_pretrained(self, directory: str | Path) -> None:
        """Write mask_config.json and masks.safetensors into a local directory, creating it."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG_FILE).write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n")
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, path / WEIGHTS_FILE)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "LearnedMasks":
        """Read what `save_pretrained` wrote. FileNotFoundError names the file that is missing."""
        path = Path(directory)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (path / name).is_file():
                raise FileNotFoundError(f"no {name} in {path}: not a directory written by LearnedMasks.save_pretrained")
        masks = cls(**json.loads((path / CONFIG_FILE).read_text()))
        masks.load_state_dict(load_file(path / WEIGHTS_FILE))
        return masks
