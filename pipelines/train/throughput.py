"""What one optimizer step cost: tokens per second, share of the device's peak (MFU), memory."""

import resource
from collections.abc import Sequence
from typing import Any

import torch

from pipelines.models import peak_tflops


class Throughput:
    """Turns a step's tokens and seconds into the rates that are logged.

    Args:
        config: of the policy. trained, frozen: parameters of the backbones that are trained, or run
            forward only (the online reference, a base under adapters counts as both). is_adapted:
            no gradient of the base's weights is computed.
    """

    def __init__(
        self,
        config: Any,
        parameters: int,
        is_adapted: bool,
        frozen_parameters: int,
        device: torch.device,
        world: int,
    ) -> None:
        # Forward 2 FLOP per parameter and token, backward 4: half of it for the weights' gradients.
        self.flops_per_token = (4 if is_adapted else 6) * parameters + 2 * frozen_parameters
        text = config.get_text_config()
        self._attention = (4 if is_adapted else 6) * 2 * text.num_hidden_layers * text.hidden_size
        self._device, self._world = device, world
        peak = peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak = None if peak is None else peak * 1e12 * world

    def record(
        self, lengths: Sequence[int], shared_lengths: Sequence[int], seconds: float
    ) -> dict[str, float]:
        """Rates of a step over pairs of these lengths.

        tokens_per_second counts 2 * prompt + chosen + rejected tokens of every pair, for any
        layout; mfu counts the FLOP of every token once per pair and causal attention within the
        pair, against the dense bfloat16 peak of all devices.
        """
        found = {
            "step_seconds": seconds,
            "pairs_per_second": len(lengths) / seconds,
            "tokens_per_second": sum(lengths) / seconds,
        }
        if self._peak is not None:
            flops = sum(
                self.flops_per_token * n + self._attention * n * n / 2 for n in shared_lengths
            )
            found["mfu"] = flops / seconds / self._peak
        found["memory_gib"] = self._memory_gib()
        return found

    def _memory_gib(self) -> float:
        """Peak of this rank so far: of the GPU's allocator, else of the process."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
