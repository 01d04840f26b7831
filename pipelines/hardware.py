"""What a device computes per second, as an assumption to plan with; nothing is measured."""

import os

import torch

# Dense bfloat16 peak in TFLOP/s by a part of the device's name, the longest match wins (vendors' data sheets).
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


def sustained_tflops(device: torch.device, name: str | None = None) -> float:
    """TFLOP/s that one GPU, or all cores of this machine, sustain in a forward pass.

    Args:
        device: its type decides. name: of the GPU; by default that of this machine's.
    """
    if device.type != "cuda":
        return _CPU_CORE_TFLOPS * (os.cpu_count() or 1)
    name = name or (torch.cuda.get_device_name() if torch.cuda.is_available() else "")
    matches = [part for part in _PEAK_TFLOPS if part in name]
    return _GPU_UTILISATION * (_PEAK_TFLOPS[max(matches, key=len)] if matches else _UNKNOWN_GPU_TFLOPS)
