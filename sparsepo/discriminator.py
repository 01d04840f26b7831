"""A discriminator of tokens: how likely a frozen model's states find each token to be good.

Source: TLCR, arXiv:2407.16574 (read). One softmax over two classes, where the release takes two;
the standardised states and the linear map are ours.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS_FILE, SETTINGS_FILE = "discriminator.safetensors", "discriminator.json"


class TokenDiscriminator(nn.Module):
    """D_t in [0, 1], the probability that token t is good, of a state that has read token t.

    A linear map to two classes (bad, good) and their softmax. Each state is standardised over its
    features first, so that the scale of a layer does not matter. The map starts at zero: D is 1/2.

    Args:
        layer: of the reference, 1..L, whose states are read; the last is the one that the model's
            final norm has gone over. hidden_size: features of these states.
    Raises: ValueError for a size or a layer below 1.
    """

    def __init__(self, layer: int, hidden_size: int) -> None:
        super().__init__()
        if layer < 1 or hidden_size < 1:
            raise ValueError(f"layer={layer}, hidden_size={hidden_size}: both must be >= 1")
        self.layer, self.hidden_size = layer, hidden_size
        self.map = nn.Linear(hidden_size, 2)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def logits(self, states: Tensor) -> Tensor:
        """float32 [S, 2], of bad and good, for states [S, hidden_size] of any dtype.

        Raises: ValueError naming both sizes if the states have another one.
        """
        if states.shape[-1] != self.hidden_size:
            raise ValueError(
                f"the discriminator reads states of {self.hidden_size} features, these have "
                f"{states.shape[-1]}"
            )
        logits: Tensor = self.map(functional.layer_norm(states.float(), (self.hidden_size,)))
        return logits

    def forward(self, states: Tensor) -> Tensor:
        """float32 [S]: D_t."""
        return self.logits(states).softmax(-1)[:, 1]

    def loss_sum(self, states: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats, summed over tokens.

        Args:
            targets: float [S] in [0, 1], the wanted probability of good; 1/2 for a neutral token.
        """
        logps = self.logits(states).log_softmax(-1)
        return -(targets * logps[:, 1] + (1 - targets) * logps[:, 0]).sum()

    def save_pretrained(self, directory: str | Path, **facts: Any) -> None:
        """Write weights and settings.

        Args:
            facts: JSON values that are kept with the settings, such as what it was trained on.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        settings = {**facts, "layer": self.layer, "hidden_size": self.hidden_size}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "TokenDiscriminator":
        """What `save_pretrained` wrote, in eval mode and without gradient.

        Raises: ValueError naming the directory if it holds anything else.
        """
        folder = Path(directory)
        try:
            settings = json.loads((folder / SETTINGS_FILE).read_text())
            found = cls(int(settings["layer"]), int(settings["hidden_size"]))
            found.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{folder} holds no token discriminator: {reason}") from error
        return found.eval().requires_grad_(False)


def signed_value(probabilities: Tensor) -> Tensor:
    """2 D - 1 in [-1, 1]: above 0 for a token that is rather good."""
    return 2 * probabilities - 1
