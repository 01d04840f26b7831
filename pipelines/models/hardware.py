"""What a device computes per second and what fits on it, as assumptions to plan with.

Nothing is measured.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.models.directories import resolve_model
from pipelines.recipe import TrainSection

if TYPE_CHECKING:
    import torch

# Dense bfloat16 peak in TFLOP/s by a part of the device's name, the longest match wins (vendors'
# data sheets).
_PEAK_TFLOPS = {
    "B200": 2250.0,
    "GB200": 2450.0,
    "H200": 989.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "A10": 125.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "MI300X": 1307.0,
}
_UNKNOWN_GPU_TFLOPS = 100.0
_GPU_UTILISATION = 0.4  # of the peak, in a forward pass over text
_CPU_CORE_TFLOPS = 0.025  # sustained, float32
_LARGEST_MICRO_BATCH, _SMALLEST_MICRO_BATCH, _CPU_MICRO_BATCH = 16384, 2048, 2048  # tokens
# Of models so narrow that a layer's kernels end before the host has launched the next ones: twice
# as many tokens are half as many launches. Wider ones gain nothing and take memory.
_LARGEST_OF_NARROW, _NARROW_FEATURES = 32768, 1024
_ACTIVATION_SHARE = 0.35  # of a GPU's memory
# Of compiled decoder layers: two graphs of one layer with their backwards, on a machine that has
# compiled nothing yet; what they save of a step's arithmetic; and of the launches of a layer's
# kernels, forward and backward, in every micro-batch.
_COMPILE_SECONDS = 25.0
_SAVED_SHARE, _SAVED_LAYER_SECONDS = 0.3, 1.5e-3


@dataclass(frozen=True)
class CompileForecast:
    """Seconds that compiling the decoder layers takes and saves in a training, by assumptions."""

    seconds: float
    saved_seconds: float

    @property
    def pays(self) -> bool:
        return self.saved_seconds > self.seconds


def compile_forecast(
    flops: float, micro_batches: float, layers: int, tflops: float, workers: int
) -> CompileForecast:
    """Whether compiling the decoder layers of a training pays on GPUs.

    Args:
        flops, micro_batches: of the whole training, all workers together. layers: of the model.
            tflops: that one device sustains.
    """
    arithmetic = flops / (tflops * 1e12)
    launches = micro_batches * layers * _SAVED_LAYER_SECONDS
    return CompileForecast(_COMPILE_SECONDS, (_SAVED_SHARE * arithmetic + launches) / workers)


def sustained_tflops(device: str, name: str | None = None) -> float:
    """TFLOP/s that one GPU, or all cores of this machine, sustain in a forward pass.

    Args:
        device: "cuda" or "cpu". name: of the GPU; by default that of this machine's.
    """
    if device != "cuda":
        return _CPU_CORE_TFLOPS * (os.cpu_count() or 1)
    import torch

    name = name or (torch.cuda.get_device_name() if torch.cuda.is_available() else "")
    return _GPU_UTILISATION * (peak_tflops(name) or _UNKNOWN_GPU_TFLOPS)


def peak_tflops(name: str) -> float | None:
    """Dense bfloat16 peak of a GPU by its name, TFLOP/s; None if it is not in the table."""
    matches = [part for part in _PEAK_TFLOPS if part in name]
    return _PEAK_TFLOPS[max(matches, key=len)] if matches else None


def feed_forward_size(config: Any) -> int:
    """Features within a feed-forward layer, of the widest where layers differ."""
    found = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return int(max(found) if isinstance(found, list | tuple) else found or 4 * config.hidden_size)


def activation_bytes_per_token(config: Any, itemsize: int, checkpointing: bool) -> int:
    """What a forward keeps for the backward, per token.

    About 8 d + 3 ffn values per layer, or under checkpointing each layer's input and one layer.

    Measured: 36 d bytes per layer in bfloat16 for GPT-NeoX (ffn = 4 d).
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    layer = itemsize * (8 * width + 3 * feed_forward_size(config))
    return int(layers * itemsize * width + layer if checkpointing else layers * layer)


def micro_batch_tokens(
    train: TrainSection, model: str, gpus: float | None, device: "torch.device"
) -> int:
    """train.micro_batch_tokens, or what is likely to fit.

    It is a pure function of the section, the model and the device's size.

    Args:
        model: that is trained. gpus: what the run may take; it has a fraction's share of memory.
    """
    if train.micro_batch_tokens is not None:
        return train.micro_batch_tokens
    if device.type != "cuda":
        return _CPU_MICRO_BATCH
    import torch

    from pipelines.models.device import Placement
    from pipelines.models.loading import hf_config

    config = hf_config(resolve_model(model)).get_text_config()
    itemsize = Placement.choose(train.precision, device, 0, 1).compute.itemsize
    per_token = activation_bytes_per_token(config, itemsize, train.gradient_checkpointing)
    room = (
        _ACTIVATION_SHARE
        * torch.cuda.get_device_properties(device).total_memory
        * min(1.0, gpus or 1.0)
    )
    return tokens_within(room, per_token, config.hidden_size)


def tokens_within(room: float, per_token: int, width: int) -> int:
    """Tokens of a micro-batch on a GPU.

    Args:
        room: bytes for what a forward keeps. per_token: bytes of that. width: features of a state.
    """
    fitting = int(room / per_token) // 1024 * 1024
    largest = _LARGEST_OF_NARROW if width <= _NARROW_FEATURES else _LARGEST_MICRO_BATCH
    return max(_SMALLEST_MICRO_BATCH, min(largest, fitting))
