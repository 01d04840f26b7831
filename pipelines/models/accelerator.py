"""Whether this machine computes on a GPU, and what `auto` means there.

Torch knows, and takes seconds to import: it is asked only where a GPU is possible.
"""

import ctypes
import importlib.util
import runpy
import sys
from pathlib import Path

_ROCM_DEVICES = ("/dev/kfd", "/dev/dxg")
_CUDA_DRIVER = "libcuda.so.1"  # what the CUDA runtime opens


def device_kind() -> str:
    """What torch computes on in this process: "cuda", which is ROCm too, or "cpu"."""
    if "torch" not in sys.modules and not _may_have_gpu():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_name(setting: str, device: str) -> str:
    """`auto` is bfloat16 on a GPU, float32 on CPU; a dtype is itself."""
    if setting == "auto":
        return "bfloat16" if device == "cuda" else "float32"
    return setting


def _may_have_gpu() -> bool:
    """False where torch cannot find one: it is built without, or the driver is not there."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return True
    build = Path(found.origin).with_name("version.py")
    if not build.is_file():
        return True
    versions = runpy.run_path(str(build))
    if versions.get("hip"):
        return any(Path(device).exists() for device in _ROCM_DEVICES)
    if not versions.get("cuda"):
        return False
    if sys.platform != "linux":
        return True
    try:
        ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return False
    return True
